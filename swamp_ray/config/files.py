"""Config files, each read once: a pipe or standard input has its text only the first time."""

from __future__ import annotations

import codecs
import errno
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from swamp_ray.config.paths import expanded
from swamp_ray.errors import UserError, nearest

MAX_BYTES = 10_000_000
STDIN = "-"
SHOWN = 8
"""Files that an error names."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)


@dataclass(frozen=True)
class ConfigFile:
    """A config file that was read.

    Attributes:
        text: What it holds.
        source: How errors name it.
        folder: What the path of a sweep's base config is relative to.
        name: What a run or sweep is called that does not name itself; None for a pipe, whose name means nothing.
    """

    text: str
    source: str
    folder: Path
    name: str | None


def read_config_file(path: str | Path | ConfigFile) -> ConfigFile:
    """Read a config file: a path, or ``-`` for standard input. What was read already is given back.

    Raises:
        UserError: It cannot be read or holds no text; similar names are suggested.
    """
    if isinstance(path, ConfigFile):
        return path
    if str(path) == STDIN:
        return _stream(_read_stdin(), "standard input")
    found = Path(expanded(os.fspath(path), "CONFIG"))
    try:
        with found.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
            mode = os.fstat(file.fileno()).st_mode
    except (OSError, ValueError) as error:
        raise _unreadable(error, found, str(path)) from error
    if stat.S_ISREG(mode):
        return ConfigFile(_decoded(data, str(found)), str(found), found.parent, found.stem)
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        return _stream(data, str(found))
    return ConfigFile(_decoded(data, str(found)), str(found), Path(), None)


def _stream(data: bytes, source: str) -> ConfigFile:
    text = _decoded(data, source)
    # An empty file is a config with all defaults; an empty pipe is a command before it that failed.
    if not text.strip():
        raise UserError("the config is empty", where=source, do="See whether the command that writes it has failed, or "
                        "give /dev/null for a run with all defaults.")
    return ConfigFile(text, source, Path(), None)


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise UserError("standard input is closed", where="CONFIG", do="Give the path of a config.")
    try:
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"the config cannot be read: {_reason(error)}", where="standard input") from error


def _decoded(data: bytes, source: str) -> str:
    if len(data) > MAX_BYTES:
        raise UserError(f"the config cannot be read: it holds more than {MAX_BYTES // 1_000_000} MB", where=source)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"the config cannot be read: {error}", where=source, do="Save it as UTF-8.") from error


def _unreadable(error: OSError | ValueError, found: Path, given: str) -> UserError:
    """What is wrong with a path from which no config can be read, in a sentence."""
    where = given or "CONFIG"
    if not given:
        return UserError("the path of the config is empty", where=where, do="Give the path of a file.")
    if isinstance(error, FileNotFoundError):
        if found.is_symlink():
            return UserError(f"the config cannot be read: it is a link to {os.readlink(found)}, which does not exist",
                             where=where)
        if not found.parent.is_dir():
            return UserError(f"the config does not exist, and neither does the folder {found.parent}", where=where,
                             do="See whether the path is right, and the current folder the one that you mean.")
        return UserError("the config does not exist", where=where,
                         do=_similar_file(found) or "See whether the path is right, and the current folder the one "
                         "that you mean.")
    if isinstance(error, IsADirectoryError):
        return UserError("the config must be a file, but this is a folder", where=where, do=_configs_in(found))
    advice = _READABLE if isinstance(error, PermissionError) else ""
    return UserError(f"the config cannot be read: {_reason(error)}", where=where, do=advice)


_READABLE = "Allow yourself to read it, e.g. with chmod u+r, or copy it."
_REASONS = {
    errno.EACCES: "you are not allowed to read it", errno.EPERM: "you are not allowed to read it",
    errno.ENOTDIR: "a part of its path is a file, not a folder", errno.ELOOP: "its links lead round in a circle",
    errno.ENAMETOOLONG: "its name is too long", errno.EMFILE: "this process has too many files open",
    errno.EIO: "the disk or the network under it fails", errno.ENXIO: "it is a socket, not a file",
    errno.ESTALE: "the network folder that it lies in is gone", errno.EBADF: "it is closed",
}


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, OSError):
        said = error.strerror or type(error).__name__
        return _REASONS.get(error.errno or 0, f"{said[:1].lower()}{said[1:]}")
    return "its path holds a character that no path may hold"


def _configs_in(folder: Path) -> str:
    try:
        found = sorted(one.name for one in folder.iterdir() if one.suffix in {".yaml", ".yml"})
    except OSError:
        return ""
    more = " ..." if len(found) > SHOWN else ""
    return f"There are: {', '.join(found[:SHOWN])}{more}." if found else "Give the path of a file."


def _similar_file(path: Path) -> str:
    try:
        others = [found.name for found in path.parent.iterdir() if found.suffix in {".yaml", ".yml"} and found != path]
        return "" if path.exists() else nearest(path.name, others)
    except (OSError, ValueError):
        return ""
