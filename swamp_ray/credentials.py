"""Tokens, keys and passwords in what a user types: they are told by their names and shapes, and replaced in records."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HIDDEN = "***"
"""Stands in a record where a credential was."""
SHORTEST = 6
"""A shorter value is not looked for in other texts: it would be found in words that are no secret."""

_WORDS = frozenset({"token", "secret", "secrets", "password", "passwd", "passwort", "pwd", "passphrase", "credential",
                    "credentials", "apikey", "accesskey", "secretkey", "privatekey", "authorization", "bearer", "auth",
                    "sig", "signature", "sas", "pat", "cookie", "dsn"})
# A word after which a name speaks of something else than the credential itself.
_ABOUT = frozenset({"file", "path", "dir", "folder", "name", "env", "variable", "url", "uri", "length", "len", "size",
                    "dim", "dims", "count", "index", "column", "field", "type", "kind", "mode", "ids", "embedding",
                    "dropout", "id"})
_NO_SECRETS = ("PWD", "OLDPWD", "SSH_AUTH_SOCK", "GPG_KEY")
_STRONG_KEYS = frozenset({"api", "access", "private", "secret", "account", "auth", "encryption", "ssh", "license",
                          "signing", "master", "storage", "session"})
_SHAPES = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bhf_[A-Za-z0-9]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}"
    r"|\bglpat-[\w-]{16,}|\bxox[abprs]-[\w-]{10,}|\bsk-[\w-]{20,}|\bAIza[\w-]{30,}"
    r"|\beyJ[\w-]{10,}\.[\w-]{5,}\.[\w-]{5,}", re.DOTALL)
_IN_URL = re.compile(r"(?<=://)[^/\s@'\"]+(?=@)")
_PARAMETER = re.compile(r"([?&])([\w.\-%]+)=([^&#\s'\"]+)")
_PAIR = re.compile(r"([\w.\-]*[A-Za-z][\w.\-]*)(['\"]?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;&{}\[\]\"']+)")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}")


def names_credential(name: str, broadly: bool = False) -> bool:
    """Whether an option, a variable or a parameter of this name holds a credential.

    Args:
        name: Such as ``data.options.api_key`` or ``HF_TOKEN``.
        broadly: Count every key, ``image_key`` as well.
    """
    last = name.replace("%", "").rpartition(".")[2]
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", last)]
    if not words or words[-1] in _ABOUT:
        return False
    if _WORDS & set(words):
        return True
    if words[-1] != "key":
        return False
    return broadly or bool(_STRONG_KEYS & set(words))


def concealed(text: str, known: Iterable[str] = ()) -> str:
    """A text without what has the shape of a credential, and without values that are known to be some."""
    for value in sorted(known, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    text = _IN_URL.sub(HIDDEN, _SHAPES.sub(HIDDEN, text))
    text = _PARAMETER.sub(_without_parameter, text)
    return _BEARER.sub(rf"\1 {HIDDEN}", text)


def concealed_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line whose credentials are replaced: ``--set a.token=x``, ``--token x``, URLs with passwords."""
    found: list[str] = []
    before = ""
    for argument in arguments:
        option = before if before.startswith("-") and not argument.startswith("-") else ""
        if option and "=" not in option and names_credential(option.lstrip("-"), broadly=True):
            found.append(HIDDEN)
        else:
            found.append(_concealed_argument(argument))
        before = argument
    return found


def _concealed_argument(argument: str) -> str:
    name, equals, value = argument.partition("=")
    if equals and re.fullmatch(r"[\w.\-]+", name) and names_credential(name.lstrip("-"), True) and _is_secret(value):
        return f"{name}={HIDDEN}"
    return concealed(_PAIR.sub(_without_value, argument))


def _without_value(found: re.Match[str]) -> str:
    name, sign, value = found.groups()
    hidden = names_credential(name, broadly=True) and _is_secret(value) and not value.startswith("//")
    return f"{name}{sign}{HIDDEN}" if hidden else found[0]


def _without_parameter(found: re.Match[str]) -> str:
    sign, name, _ = found.groups()
    return f"{sign}{name}={HIDDEN}" if names_credential(name, broadly=True) else found[0]


def _is_secret(value: object) -> bool:
    """Whether a value can be a secret: no number of a few digits, truth value or nothing."""
    text = str(value).strip("'\" ")
    return not (text.lower() in ("", "true", "false", "null", "none", "~") or re.fullmatch(r"[\d.]{1,5}", text))


def credentials_in(value: Any, name: str = "") -> set[str]:
    """The credentials in a configuration or another tree of plain values."""
    if isinstance(value, Mapping):
        return {secret for key, inner in value.items() for secret in credentials_in(inner, str(key))}
    if isinstance(value, list | tuple):
        return {secret for inner in value for secret in credentials_in(inner, name)}
    if isinstance(value, str):
        if names_credential(name) and _is_secret(value):
            return {value}
        return {found[0] for found in (*_SHAPES.finditer(value), *_IN_URL.finditer(value))} | {
            found[3] for found in _PARAMETER.finditer(value) if names_credential(found[2], broadly=True)}
    if isinstance(value, int) and not isinstance(value, bool) and names_credential(name) and _is_secret(value):
        return {str(value)}
    return set()


def concealed_tree(value: Any, name: str = "") -> Any:
    """A tree of plain values whose credentials are replaced."""
    if isinstance(value, Mapping):
        return {key: concealed_tree(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [concealed_tree(inner, name) for inner in value]
    if credentials_in(value, name):
        return HIDDEN if names_credential(name) else concealed(str(value))
    return value


class Concealer:
    """Replaces credentials in lines that go into records: by shape, and those of the environment and of a config.

    Args:
        tree: A configuration.
        environment: Variables of the process.
    """

    def __init__(self, tree: Any = None, environment: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        known = {value for name, value in variables.items()
                 if name not in _NO_SECRETS and names_credential(name) and _is_secret(value)}
        self._known = frozenset(value for value in known | credentials_in(tree) if len(value) >= SHORTEST)

    def __call__(self, text: str) -> str:
        """The text without credentials."""
        return concealed(text, self._known)
