"""Who may be spoken to, and with which token."""

from __future__ import annotations

from pathlib import Path

import pytest

from swamp_ray.errors import UserError
from swamp_ray.on_ray.access import Access, find_access, find_token, parse_address

TOKEN = "s3cret" * 8
FAR = "http://10.0.0.1:8265"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("address", "url"), [
    ("http://10.0.0.1:8265", "http://10.0.0.1:8265"), ("10.0.0.1:8265", "http://10.0.0.1:8265"),
    ("head", "http://head:8265"), ("https://ray.example.org", "https://ray.example.org:443"),
    ("https://example.org/ray/", "https://example.org:443/ray"), ("http://[::1]:8265", "http://[::1]:8265"),
])
def test_addresses(address: str, url: str) -> None:
    assert parse_address(address) == url


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "ftp://head", "http://", "http://h:99999", "http://h?x"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(UserError, match="--address"):
        parse_address(address)


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError) as error:
        parse_address(f"http://me:{TOKEN}@head:8265")
    assert TOKEN not in str(error.value)


@pytest.mark.parametrize(("environment", "url"), [
    ({}, "http://127.0.0.1:8265"),
    ({"RAY_ADDRESS": "http://127.0.0.1:1"}, "http://127.0.0.1:1"),
    ({"RAY_ADDRESS": "10.0.0.1:6379"}, "http://127.0.0.1:8265"),
    ({"RAY_ADDRESS": "http://127.0.0.1:1", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:2"}, "http://127.0.0.1:2"),
])
def test_the_address_comes_from_the_environment(environment: dict[str, str], url: str) -> None:
    assert find_access(None, environment=environment).url == url


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "http://localhost:8265", "http://[::1]:8265",
                                     "http://127.9.9.9:8265", "https://10.0.0.1:8265"])
def test_this_machine_and_https_need_no_token(address: str) -> None:
    assert find_access(address, environment={}).warning is None


@pytest.mark.parametrize("address", [FAR, "http://head:8265", "http://localhost.example.org:8265", "http://0.0.0.0:8265"])
def test_plain_http_to_another_host_without_a_token_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="--insecure"):
        find_access(address, environment={})
    assert "--insecure" in str(find_access(address, insecure=True, environment={}).warning)


def test_a_token_in_the_clear_is_warned_of() -> None:
    access = find_access(FAR, environment={"RAY_AUTH_TOKEN": TOKEN})
    assert access.headers == {"Authorization": f"Bearer {TOKEN}"}
    assert "in the clear" in str(access.warning)
    assert TOKEN not in f"{access!r} {access.warning}"
    assert find_access("https://head", environment={"RAY_AUTH_TOKEN": TOKEN}).warning is None


def test_tokens_are_found_where_ray_looks_and_in_that_order(home: Path) -> None:
    assert find_token({}) == (None, "")
    default = home / ".ray" / "auth_token"
    default.parent.mkdir()
    default.write_text("of-the-home\n")
    named = home / "named"
    named.write_text("of-the-file\n")
    assert find_token({}) == ("of-the-home", str(default))
    assert find_token({"RAY_AUTH_TOKEN_PATH": str(named)}) == ("of-the-file", str(named))
    both = {"RAY_AUTH_TOKEN_PATH": str(named), "RAY_AUTH_TOKEN": "of-the-variable"}
    assert find_token(both) == ("of-the-variable", "RAY_AUTH_TOKEN")
    assert find_token({**both, "RAY_AUTH_MODE": "disabled"}) == (None, "")


@pytest.mark.parametrize(("environment", "words"), [
    ({"RAY_AUTH_MODE": "token"}, "there is no token"),
    ({"RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, "does not exist"),
    ({"RAY_AUTH_TOKEN": f"{TOKEN}\nX-Other: 1"}, "one line"),
])
def test_tokens_that_are_none(environment: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        find_token(environment)
    assert TOKEN not in str(error.value)


def test_no_text_holds_the_token() -> None:
    assert Access(FAR, TOKEN).without_token(f"a {TOKEN} b") == "a (token) b"
    assert Access(FAR).without_token("a") == "a"
