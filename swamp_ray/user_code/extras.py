"""Optional packages, user code and options of a sweep: what is wrong with them is said before anything starts."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from swamp_ray.errors import UserError, nearest
from swamp_ray.user_code.importing import own_traceback


def require(package: str, extra: str, where: str) -> Any:
    """An optional package, imported.

    Raises:
        UserError: It is not installed, or cannot be imported.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == package
        reason = "" if missing else f" Its own error: {error}"
        raise UserError(f"this needs the package {package}", where=where,
                        do=f"Install it with: pip install 'swamp_ray[{extra}]'.{reason}") from error


def check_options(options: Mapping[str, Any], known: Iterable[str], where: str, hint: str = "") -> None:
    """Refuse options that do not exist.

    Raises:
        UserError: It names those that exist.
    """
    known = list(known)
    for option in options:
        if option not in known:
            there_are = f"There are: {', '.join(known)}." if known else "There are none."
            raise UserError("there is no such option", got=option, where=where,
                            do=" ".join(part for part in (nearest(option, known), there_are, hint) if part))


def unknown_name(name: str, known: Iterable[str], where: str) -> UserError:
    """The error for a name that is neither built in nor an import path."""
    known = list(known)
    hint = nearest(name, known)
    return UserError(f"must be {', '.join(known)} or package.module:function", got=name, where=where, do=hint)


def check_call(function: Any, arguments: Iterable[Any], keywords: Mapping[str, Any], where: str) -> None:
    """Whether user code can be called like this, without calling it.

    Raises:
        UserError: It is no function, or takes other arguments.
    """
    if not callable(function):
        raise UserError("must name a function", got=type(function).__name__, where=where)
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*arguments, **keywords)
    except TypeError as error:
        given = ", ".join(["space"] * len(list(arguments)) + [f"{name}=" for name in keywords])
        raise UserError(f"the function is called with ({given}), which does not fit its signature: {error}",
                        where=where) from None


def call(function: Callable[..., Any], where: str, kind: type, *arguments: Any, **keywords: Any) -> Any:
    """What user code makes.

    Raises:
        UserError: It raised something (its traceback is in the text), or made something else.
    """
    try:
        made = function(*arguments, **keywords)
    except Exception as error:
        raise UserError("the function raised an error", where=where, do=f"Its own error:\n{own_traceback(error)}\n",
                        ) from error
    if not isinstance(made, kind):
        raise UserError(f"the function must return a {kind.__name__} of Ray Tune", got=type(made).__name__, where=where)
    return made
