"""An embedded Ray answers its own run alone: it asks for a random token, and its files are in a private folder."""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path
from typing import Any

from ray import _raylet

from swamp_ray.errors import UserError

_RAYLET: Any = _raylet
"""Ray's compiled part, which is not typed."""
_TOKEN_BYTES = 32
_FIXED = {
    "RAY_AUTH_MODE": "token",
    # With this a Kubernetes API would be asked whether a token is right, which knows nothing of this one.
    "RAY_ENABLE_K8S_TOKEN_AUTH": "false",
    # The servers of Prometheus' metrics would answer without a token. The first one can be switched off; those of
    # the dashboard's and the autoscaler's process cannot, but do without one where the port cannot exist.
    "RAY_enable_metrics_collection": "false",
    "DASHBOARD_METRIC_PORT": "-1",
    "AUTOSCALER_METRIC_PORT": "-1",
}
VARIABLES = (*_FIXED, "RAY_AUTH_TOKEN")


class OwnToken:
    """A new random token in this process's environment, which the processes that it starts inherit.

    The user's settings are put back by :meth:`put_back`. Whatever mode they name, it is not the mode of a Ray that is
    started here: they are meant for clusters.

    Raises:
        UserError: Ray doesn't take the token.
    """

    def __init__(self) -> None:
        self._before = {name: os.environ.get(name) for name in VARIABLES}
        self._is_set = True
        token = secrets.token_hex(_TOKEN_BYTES)
        os.environ.update({**_FIXED, "RAY_AUTH_TOKEN": token})
        _read_again()
        taken = _RAYLET.AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True)
        if _RAYLET.get_authentication_mode() != _RAYLET.AuthenticationMode.TOKEN or taken != token:
            self.put_back()
            raise UserError("this Ray does not ask for a token, so others on the network could use it", where="Ray",
                            do="Install the version of Ray that constraints.txt names.")

    def put_back(self) -> None:
        """Leave the environment as it was found; not while the Ray that asks for this token is running."""
        if not self._is_set:
            return
        self._is_set = False
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_again()


def _read_again() -> None:
    # Ray read the environment when it was imported, which may have been long ago, and keeps the token that it found.
    _RAYLET.Config.initialize("")
    _RAYLET.AuthenticationTokenLoader.instance().reset_cache()


def private_folder() -> str:
    """A folder for the files and sockets of an embedded Ray, inside of one that only this user can enter.

    Ray makes its own folders writable for everybody, so that others on this machine could put their sockets in place
    of Ray's.
    """
    base = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    folder = base / f"ray-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        if not _is_private(folder):
            folder = Path(tempfile.mkdtemp(prefix="ray-", dir=base))
    return str(folder / "ray")


def _is_private(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
