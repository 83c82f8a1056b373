"""Where commands print: an output that no terminal, pipe, encoding or name in the data can end or take over."""

from __future__ import annotations

import codecs
import contextlib
import copy
import errno
import os
import re
import sys
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleDimensions, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.segment import Segment
from rich.style import StyleType
from rich.table import Column, Table
from rich.text import Text, TextType

NARROWEST = 40
"""Columns that are used at least: below that, whatever is printed is cut to nothing."""
_WIDEST = 10_000
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)
_PLAIN = {"±": "+-", "\u00d7": "x", "\u2013": "-", "\u2014": "-", "…": "...", "•": "*", "→": "->",
          "≤": "<=", "≥": ">=", "µ": "u", "─": "-", "━": "-", "│": "|", "╸": "-", "╺": "-", "═": "=", "\ufffd": "?"}
# Codes that move the cursor, retitle the window or turn the direction of writing; tabs and line feeds stay.
_CODES = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")


def visible(text: str) -> str:
    """A text whose escape, control and direction codes are replaced, so that a terminal does not act on them."""
    return _CODES.sub("\ufffd", text)


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """How characters are written that a stream has no bytes for."""
    assert isinstance(error, UnicodeEncodeError)
    found = error.object[error.start : error.end]
    spelled = [_PLAIN.get(one) or one.encode("ascii", "backslashreplace").decode("ascii") for one in found]
    return "".join(spelled), error.end


ENCODABLE = "swamp_ray.plainly"
codecs.register_error(ENCODABLE, _plainly)


def make_streams_safe() -> None:
    """Have standard output and error write what their encoding lacks in ASCII, in place of raising."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if callable(reconfigure):
            with contextlib.suppress(ValueError, OSError):
                reconfigure(errors=ENCODABLE)


def leave_stdout() -> None:
    """Standard output goes nowhere from now on: Python flushes it at its end, and would complain then."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Stream:
    """A text stream that writes every character somehow, and nothing more once its reader is gone."""

    def __init__(self, stream: Any, is_stdout: bool) -> None:
        self._stream = stream
        self._is_stdout = is_stdout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._while_read():
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                encoding = getattr(self._stream, "encoding", None) or "ascii"
                self._stream.write(text.encode(encoding, ENCODABLE).decode(encoding))
        return len(text)

    def flush(self) -> None:
        with self._while_read():
            self._stream.flush()

    @contextlib.contextmanager
    def _while_read(self) -> Any:
        try:
            yield
        except OSError as error:
            if error.errno not in _GONE:
                raise
            if self._is_stdout:
                leave_stdout()
        except ValueError:
            if not getattr(self._stream, "closed", False):
                raise


def is_live(console: Console) -> bool:
    """Whether a display that moves the cursor can be shown."""
    return console.is_terminal and not console.is_dumb_terminal


class Output(Console):
    """Standard output or error, as commands and runs print to it.

    Once nobody reads it, as after ``| head``, nothing more is printed, and the work goes on. What the stream's encoding
    lacks is written in ASCII. Codes in names and messages do not reach the terminal. A table is never cut.
    """

    _least = NARROWEST

    @property
    def file(self) -> IO[str]:
        """The stream that is written to."""
        stream: Any = _Stream(super().file, is_stdout=not self.stderr)
        return stream

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file

    @property
    def size(self) -> ConsoleDimensions:
        """Columns and rows, not fewer columns than can be used."""
        found = super().size
        return ConsoleDimensions(max(self._least, found.width), found.height)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size

    def render_str(self, text: str, **options: Any) -> Text:
        """A text in characters that the stream can encode: their number decides how wide a column is."""
        try:
            plain = text.encode(self.encoding, ENCODABLE).decode(self.encoding)
        except (LookupError, UnicodeError):
            plain = text
        return super().render_str(plain, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments without codes of the text's own."""
        for segment in super().render(renderable, options):
            if segment.control or not _CODES.search(segment.text):
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)

    def print(self, *objects: Any, **options: Any) -> None:
        """Like rich's, and a table is as wide as it has to be.

        A table's title and caption are lines of their own: rich would break them at the table's width, inside a word
        where the table is narrow.
        """
        if len(objects) != 1 or not isinstance(objects[0], Table):
            super().print(*objects, **options)
            return
        table = copy.copy(objects[0])
        title = table.title
        caption = table.caption
        table.title = None
        table.caption = None
        table.columns = [self._uncut(column) for column in table.columns]
        wanted = Measurement.get(self, self.options.update(max_width=_WIDEST), table)
        self._print_words(title, table.title_style or "table.title")
        self._least = wanted.minimum if self.is_terminal else wanted.maximum
        try:
            super().print(table, **options)
        finally:
            self._least = NARROWEST
        self._print_words(caption, table.caption_style or "table.caption")

    def _uncut(self, column: Column) -> Column:
        """A column whose lines stay whole is as wide as its widest cell, unless it says how narrow it may be.

        Without this rich shortens a number to its first digits where the terminal is narrow.
        """
        if not column.no_wrap or column.min_width is not None:
            return column
        options = self.options.update(max_width=_WIDEST)
        cells = [column.header, *column.cells]
        widest = max(Measurement.get(self, options, cell).maximum for cell in cells)
        column = copy.copy(column)
        column.min_width = widest
        return column

    def _print_words(self, words: TextType | None, style: StyleType) -> None:
        """A title or a caption: broken between words at the terminal's width, whole where there is no terminal."""
        if words:
            super().print(words, style=style, soft_wrap=not self.is_terminal)

    def on_broken_pipe(self) -> None:
        """Print to nowhere from now on; rich would end the process."""
        self.quiet = True
        leave_stdout()
