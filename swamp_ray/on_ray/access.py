"""Where a cluster's Jobs server is, and with which token it may be spoken to."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from swamp_ray.errors import UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
HIDDEN = "(token)"
_WHERE = "--address"
_TUNNEL = ("a tunnel (ssh -L 8265:127.0.0.1:8265 HOST, or kubectl port-forward) together with "
           f"--address {DEFAULT_ADDRESS}")


@dataclass(frozen=True)
class Access:
    """How a Jobs server is reached.

    Attributes:
        url: ``http://HOST:PORT`` or ``https://HOST:PORT``.
        token: Sent with each request; None where no token is known. It is in no text of this object.
        source: Where the token was found.
        warning: What the user should know before anything is sent.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    source: str = ""
    warning: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Headers of each request."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    def without_token(self, text: str) -> str:
        """A text in which the token cannot stand."""
        return text if not self.token else text.replace(self.token, HIDDEN)


def find_access(address: str | None, insecure: bool = False, environment: Mapping[str, str] | None = None) -> Access:
    """The Jobs server that is meant, if it may be spoken to.

    Args:
        address: What the user gave; default: ``RAY_API_SERVER_ADDRESS``, ``RAY_ADDRESS`` if it is a URL, this machine.
        insecure: Allow plain HTTP without a token to another host.
        environment: Default: this process's.

    Raises:
        UserError: The address is none, a token is asked for and there is none, or it would not be safe.
    """
    environment = os.environ if environment is None else environment
    url = parse_address(address or _from_environment(environment) or DEFAULT_ADDRESS)
    token, source = find_token(environment)
    if url.startswith("https://") or is_loopback(url):
        return Access(url, token, source)
    if token is not None:
        return Access(url, token, source, f"the token travels in the clear to {url}: use https, or {_TUNNEL}")
    if not insecure:
        raise UserError(
            "plain HTTP to another host without a token is refused: who reaches that port can run anything on the "
            "cluster, and who listens on the way can change what you submit", got=url, where=_WHERE,
            do=f"Use https, or {_TUNNEL}; or switch token authentication on (RAY_AUTH_MODE=token). In a network that "
               "you trust add --insecure.")
    return Access(url, warning=f"plain HTTP without a token to {url}, as --insecure asks")


def _from_environment(environment: Mapping[str, str]) -> str | None:
    found = (environment.get(name, "") for name in ADDRESS_VARIABLES)
    return next((value for value in found if value.startswith(("http://", "https://"))), None)


def parse_address(address: str) -> str:
    """``http://HOST:PORT`` or ``https://HOST:PORT``.

    Raises:
        UserError: It is something else.
    """
    text = address.rstrip("/") if "://" in address else f"http://{address.rstrip('/')}"
    hint = "It is the dashboard's, for example http://10.0.0.1:8265."
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise UserError("an address must be a URL", got=address, where=_WHERE, do=hint) from None
    if parts.username or parts.password:
        raise UserError("an address must not hold a user or a password", where=_WHERE,
                        do="Keep the token in RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token.")
    if parts.scheme == "ray":
        raise UserError("jobs are submitted to the dashboard's port, not to that of Ray Client", got=address,
                        where=_WHERE, do=hint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or address in ("auto", "local"):
        raise UserError("an address must be like http://HOST:PORT", got=address, where=_WHERE, do=hint)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    default = 443 if parts.scheme == "https" else 8265
    return f"{parts.scheme}://{host}:{port or default}{parts.path}"


def is_loopback(url: str) -> bool:
    """Whether a URL means this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def token_file(environment: Mapping[str, str]) -> Path:
    """Where Ray keeps the token, whether or not it is there."""
    given = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(given).expanduser() if given else Path.home() / ".ray" / "auth_token"


def find_token(environment: Mapping[str, str]) -> tuple[str | None, str]:
    """The token, and where it was: as Ray looks for it.

    Raises:
        UserError: ``RAY_AUTH_MODE=token`` and there is none, or a file that is named cannot be read.
    """
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return None, ""
    token = environment.get("RAY_AUTH_TOKEN", "").strip()
    source = "RAY_AUTH_TOKEN"
    if not token:
        token, source = _read_token(token_file(environment), "RAY_AUTH_TOKEN_PATH" in environment)
    if not token and mode == "token":
        raise UserError("RAY_AUTH_MODE is token, but there is no token", where="RAY_AUTH_MODE",
                        do="Put the cluster's token into a file and name it in RAY_AUTH_TOKEN_PATH, or into "
                           "~/.ray/auth_token.")
    if any(not 32 < ord(letter) < 127 for letter in token):
        raise UserError("the token must be one line of plain letters and digits", where=source)
    return (token, source) if token else (None, "")


def _read_token(file: Path, is_named: bool) -> tuple[str, str]:
    try:
        return file.read_text(encoding="utf-8").strip(), str(file)
    except FileNotFoundError:
        if is_named:
            raise UserError("the token's file does not exist", got=str(file), where="RAY_AUTH_TOKEN_PATH") from None
        return "", ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the token cannot be read ({getattr(error, 'strerror', None) or 'it is no text'})",
                        where=str(file)) from None
