"""Config files, each read once: a pipe or standard input has its text only the first time."""

from __future__ import annotations

import codecs
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from swamp_ray.config_paths import expanded
from swamp_ray.errors import UserError, nearest

MAX_BYTES = 10_000_000
STDIN = "-"
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
        raise UserError(f"the config cannot be read: {error}", where=str(path), do=_similar_file(found)) from error
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
        raise UserError(f"the config cannot be read: {error}", where="standard input") from error


def _decoded(data: bytes, source: str) -> str:
    if len(data) > MAX_BYTES:
        raise UserError(f"the config cannot be read: it holds more than {MAX_BYTES // 1_000_000} MB", where=source)
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(f"the config cannot be read: {error}", where=source, do="Save it as UTF-8.") from error


def _similar_file(path: Path) -> str:
    try:
        others = [found.name for found in path.parent.iterdir() if found.suffix in {".yaml", ".yml"} and found != path]
        return "" if path.exists() else nearest(path.name, others)
    except (OSError, ValueError):
        return ""
