"""The token of an embedded Ray, and how the environment is left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from ray import _raylet

from swamp_ray.on_ray.own_token import VARIABLES, OwnToken, private_folder

RAYLET: Any = _raylet
DISABLED, TOKEN = RAYLET.AuthenticationMode.DISABLED, RAYLET.AuthenticationMode.TOKEN


def _settings() -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in (*VARIABLES, "RAY_AUTH_TOKEN_PATH")}


def _token_of_ray() -> str:
    return RAYLET.AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True)


@pytest.mark.parametrize(("found", "mode"), [
    ({"RAY_AUTH_MODE": "disabled"}, DISABLED),
    ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-the-cluster"}, TOKEN),
    ({"RAY_AUTH_TOKEN": "of-the-cluster"}, DISABLED),
    ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "FILE"}, TOKEN),
    ({"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_K8S_TOKEN_AUTH": "true", "AUTOSCALER_METRIC_PORT": "44217",
      "RAY_enable_metrics_collection": "1"}, DISABLED),
    ({}, DISABLED),
])
def test_an_embedded_ray_has_a_token_whatever_the_user_has_set_and_the_settings_come_back(
    found: dict[str, str], mode: Any, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("of-the-cluster")
    with pytest.MonkeyPatch.context() as environment:
        for name in (*VARIABLES, "RAY_AUTH_TOKEN_PATH"):
            environment.delenv(name, raising=False)
        for name, value in found.items():
            environment.setenv(name, str(file) if value == "FILE" else value)
        before = _settings()
        token = OwnToken()
        assert RAYLET.get_authentication_mode() == TOKEN
        own = os.environ["RAY_AUTH_TOKEN"]
        assert len(own) == 64
        assert own != "of-the-cluster"
        assert _token_of_ray() == own
        token.put_back()
        assert _settings() == before
        assert RAYLET.get_authentication_mode() == mode
        if mode == TOKEN:
            assert _token_of_ray() == "of-the-cluster"
        os.environ["RAY_AUTH_MODE"] = "theirs"
        token.put_back()
        assert os.environ["RAY_AUTH_MODE"] == "theirs", "a second call does nothing"


def test_each_embedded_ray_has_another_token() -> None:
    tokens = set()
    for _ in range(3):
        token = OwnToken()
        tokens.add(os.environ["RAY_AUTH_TOKEN"])
        token.put_back()
    assert len(tokens) == 3


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_the_folder_of_ray_lies_in_a_private_one(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    folder = Path(private_folder())
    assert folder.parent.parent == tmp_path
    assert folder.parent.stat().st_mode & 0o777 == 0o700
    assert private_folder() == str(folder)


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_a_folder_that_others_have_put_there_is_not_used(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    taken = tmp_path / f"ray-{os.getuid()}"
    if kind == "open":
        taken.mkdir()
        taken.chmod(0o777)
    elif kind == "link":
        (tmp_path / "theirs").mkdir(mode=0o700)
        taken.symlink_to(tmp_path / "theirs")
    else:
        taken.write_text("")
    folder = Path(private_folder())
    assert folder.parent != taken
    assert folder.parent.stat().st_mode & 0o777 == 0o700
