"""Where a report goes, and how it gets there: the page with all files beside it, or nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from swamp_ray.config.paths import expanded
from swamp_ray.errors import RunError, UserError
from swamp_ray.storage.local import TEMPORARY_SUFFIX, link_error, opened_folder, sync_folder, write_atomic
from swamp_ray.storage.place import Place
from swamp_ray.storage.places import is_url, open_place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.sweep_folder import SweepDir

DEFAULT_OUTPUT = "report.html"
ENDINGS = (".html", ".htm")


@dataclass(frozen=True)
class Target:
    """A page, and a folder of files beside it.

    Attributes:
        place: A storage root, or None for plain files.
        root: Folder of the page: a key in the place, or a path.
        page: Name of the page.
    """

    place: Place | None
    root: str
    page: str

    @property
    def folder(self) -> str:
        """Name of the folder beside the page."""
        return self.page.rpartition(".")[0]

    def locate(self, name: str) -> Path | str:
        """Where a file of the report lies; ``name`` is relative to the page."""
        return Path(self.root, name) if self.place is None else self.place.locate(self._key(name))

    def write_all(self, files: Iterable[tuple[str, bytes]]) -> list[Path | str]:
        """Write files, each under its name relative to the page; the last is the page.

        In a folder all of them are written beside their places first, so that a full disk leaves the report that was
        there before. In an object store they are written one after the other, the page at the end.

        Raises:
            UserError: One could not be written.
        """
        with self._told():
            path = self._path()
            if path is not None:
                return _replace_all(path.parent, files, self._below(path))
            assert self.place is not None
            return [self._put(self.place, name, data) for name, data in files]

    def check_writable(self) -> None:
        """Try it, before any work is done; nothing of it stays.

        Raises:
            UserError: Nothing can be written there.
        """
        with self._told():
            path = self._path()
            if path is not None:
                _refuse_links(path, self._below(path))
                _try(path)
                return
            assert self.place is not None
            probe = f"{self.folder}/.probe-{uuid.uuid4().hex[:12]}"
            self._put(self.place, probe, b"")
            self.place.remove(self._key(probe), durable=False)

    def _path(self) -> Path | None:
        """The page, where it is a file that is put in place together with those beside it."""
        return Path(self.root, self.page) if self.place is None else self.place.path_of(self._key(self.page))

    def _below(self, page: Path) -> Path:
        """The folder below which no link is followed: the storage root, or the one that the user has named."""
        return page.parent if self.place is None else Path(self.place.locate(""))

    def _put(self, place: Place, name: str, data: bytes) -> Path | str:
        place.write(self._key(name), data)
        return self.locate(name)

    def _key(self, name: str) -> str:
        return f"{self.root}/{name}".lstrip("/")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """What the system says of a failed write, in words about the output file."""
        try:
            yield
        except UserError:
            raise
        except (RunError, OSError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            reason = (isinstance(cause, OSError) and cause.strerror) or str(error)
            kept = "A report that was there before is unharmed. " if Path(str(self.locate(self.page))).is_file() else ""
            raise UserError(f"the report cannot be written to {self.locate(self.page)} ({reason})", where="--output",
                            do=f"{kept}Make room or allow writing there, or choose another file with --output.") \
                from error


def target_of(found: Sequence[RunDir], output: str | Path | None) -> Target:
    """Where the report of some runs goes.

    Raises:
        UserError: The output is not the name of an HTML file.
    """
    if output is None and len(found) == 1:
        folder, _, page = found[0].report.key.rpartition("/")
        return Target(found[0].place, folder, page)
    return _named_target(DEFAULT_OUTPUT if output is None else expanded(str(output), "--output"))


def target_of_sweep(sweepdir: SweepDir, output: str | Path | None) -> Target:
    """Where the report of a sweep goes: by default beside its own tables.

    Raises:
        UserError: The output is not the name of an HTML file.
    """
    if output is None:
        return Target(sweepdir.place, sweepdir.spot().key, DEFAULT_OUTPUT)
    return _named_target(expanded(str(output), "--output"))


def _named_target(text: str) -> Target:
    _check_name(text)
    if is_url(text):
        folder, _, page = text.rpartition("/")
        return Target(open_place(folder), "", page)
    path = Path(text).absolute()
    return Target(None, str(path.parent), path.name)


def _check_name(text: str) -> None:
    if not is_url(text) and os.path.isdir(text):
        raise UserError("the report must be a file, and this is a folder", got=text, where="--output",
                        do=f"Name a file in it: --output {os.path.join(text, DEFAULT_OUTPUT)}")
    name = text.replace(os.sep, "/").rpartition("/")[2]
    if not name.lower().endswith(ENDINGS) or name.lower() in ENDINGS:
        proposed = f"{text}{ENDINGS[0]}" if name and name.lower() not in ENDINGS else \
            f"{text[:len(text) - len(name)]}{DEFAULT_OUTPUT}"
        raise UserError("the report is an HTML file", got=text, where="--output",
                        do=f"Let its name end in .html: --output {proposed}")


def _try(page: Path) -> None:
    """Write something beside a page, and take it away with all folders that were made for it."""
    if page.is_dir():
        raise UserError("the report must be a file, and this is a folder", got=str(page), where="--output",
                        do="Move that folder, or name another file with --output.")
    missing = [folder for folder in (page.parent, *page.parent.parents) if not folder.exists()]
    beside = page.with_suffix("")
    if beside.exists() and not beside.is_dir():
        raise UserError("the figures need a folder beside the page, and there is a file of its name", where="--output",
                        got=str(beside), do="Move that file, or give the page another name.")
    probe = page.parent / f".{page.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}"
    try:
        write_atomic(probe, b"")
        if beside.is_dir():
            write_atomic(beside / probe.name, b"")
    finally:
        for one in (probe, beside / probe.name):
            with contextlib.suppress(OSError):
                one.unlink(missing_ok=True)
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _refuse_links(page: Path, below: Path) -> None:
    """Raise RunError if a folder of the report below another is a link: files of another folder would be replaced."""
    beside = page.with_suffix("")
    for folder in (*reversed(beside.parents), beside):
        if below in folder.parents and folder.is_symlink():
            raise link_error(folder)


def _replace_all(root: Path, files: Iterable[tuple[str, bytes]], below: Path) -> list[Path | str]:
    """Write files under a folder, and give their paths once all of them are in place.

    Between `below` and the files no link is followed.
    """
    missing = [folder for folder in (root, *root.parents) if not folder.exists()]
    staging = root / f".report.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}"
    names: list[str] = []
    try:
        for name, data in files:
            write_atomic(staging / name, data)
            names.append(name)
        for name in names:
            target = root / name
            with opened_folder(target.parent, below, make=True) as folder:
                os.replace(staging / name, target.name, dst_dir_fd=folder)
        for folder in dict.fromkeys((root / name).parent for name in names):
            sync_folder(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for folder in missing:  # stays, if anything came to lie in it
            with contextlib.suppress(OSError):
                folder.rmdir()
    return [root / name for name in names]
