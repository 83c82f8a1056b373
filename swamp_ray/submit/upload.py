"""What a submission carries to the cluster: the user's code, never data, results or environments."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swamp_ray.errors import UserError
from swamp_ray.submit.ignoring import GITIGNORE, IGNORE_FILES, Rules, read_rules
from swamp_ray.submit.private_files import NAMED, link_reason, why_content_private, why_private

MAX_BYTES = 100_000_000
MAX_FILES = 20_000
NUM_NAMED = 5
CONFIG_NAME = "swamp-submitted.yaml"
PACKAGE = Path(__file__).resolve().parents[1]
TOOLS = frozenset({
    ".git", ".hg", ".svn", "__pycache__", ".ipynb_checkpoints", ".mypy_cache", ".pytest_cache", ".ruff_cache",
    ".pyright", ".hypothesis", ".cache", ".tox", ".nox", ".eggs", "node_modules", ".idea", ".vscode", ".DS_Store",
})
"""Names of folders and files that tools leave behind."""
ENVIRONMENT_MARKS = ("pyvenv.cfg", "conda-meta")
COMPILED = (".pyc", ".pyo")


@dataclass(frozen=True)
class Upload:
    """Files of a folder.

    Attributes:
        folder: The folder.
        sizes: Bytes of each file, by its path relative to the folder, in order.
        left_out: Why a file or a folder stays behind, by its path.
    """

    folder: Path
    sizes: Mapping[str, int]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Size of all files, before they are compressed."""
        return sum(self.sizes.values())

    def __str__(self) -> str:
        """``"3 files (1.2 kB) of FOLDER"``."""
        count = len(self.sizes)
        return f"{count:,} file{'s' * (count != 1)} ({_size(self.num_bytes)}) of {self.folder}"

    def reason(self, path: str) -> str | None:
        """Why a file is not in the upload, None if nothing is known about it."""
        found = (self.left_out.get(part) for part in (path, *(str(one) for one in Path(path).parents)))
        return next((reason for reason in found if reason is not None), None)

    def private(self) -> list[tuple[str, str]]:
        """What stays behind because it must stay secret, or leads elsewhere: path and reason, in order."""
        return sorted((path, why) for path, why in self.left_out.items() if why in NAMED)

    def digest(self) -> str:
        """SHA-256 over the names and bytes of all files."""
        total = hashlib.sha256()
        for path in self.sizes:
            total.update(path.encode() + b"\0" + hashlib.sha256((self.folder / path).read_bytes()).digest())
        return total.hexdigest()


def select_files(folder: Path, excluded: Mapping[Path, str]) -> Upload:
    """The files of a folder that are uploaded.

    Left out is what ``.gitignore`` and ``.rayignore`` name (a file that git tracks in spite of ``.gitignore`` stays
    in), what holds keys or may do so, whether or not git tracks it, links that lead out of the folder, version control,
    virtual environments, caches, storage roots, links to folders, and swamp_ray itself, which travels on its own.

    Args:
        folder: The folder.
        excluded: Further paths that stay behind, and why: the data, the storage root.

    Raises:
        UserError: There is no such folder, or it holds too many files.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise UserError("the folder of the code does not exist", got=str(folder), where="--working-dir")
    walk = _Walk(folder, {Path(os.path.realpath(path)): why for path, why in excluded.items()}, _tracked(folder))
    walk.enter(folder, "", _rules_above(folder))
    return Upload(folder, dict(sorted(walk.sizes.items())), walk.left_out)


class _Walk:
    def __init__(self, folder: Path, excluded: Mapping[Path, str], tracked: frozenset[str]) -> None:
        self.top = _repository(folder) or folder
        self.prefix = folder.relative_to(self.top).as_posix().removeprefix(".")
        self.folder = folder
        self.excluded = excluded
        self.tracked = tracked
        self.tracked_folders = {parent.as_posix() for path in tracked for parent in Path(path).parents}
        self.sizes: dict[str, int] = {}
        self.left_out: dict[str, str] = {}

    def enter(self, folder: Path, relative: str, rules: Rules, ignored: str | None = None) -> None:
        """Take what a folder holds; of a folder that is ignored only what git tracks."""
        rules = rules.reading(folder, "/".join(filter(None, (self.prefix, relative))))
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            self.left_out[relative] = f"it cannot be read: {error.strerror}"
            return
        for entry in entries:
            path = f"{relative}/{entry.name}" if relative else entry.name
            is_folder = entry.is_dir(follow_symlinks=False)
            source = ignored or rules.decides("/".join(filter(None, (self.prefix, path))), is_folder)
            reason = self._reason(entry, path, is_folder, source)
            if reason is not None:
                self.left_out[path] = reason
            elif is_folder:
                self.enter(Path(entry.path), path, rules, source)
            else:
                self._take(entry, path)

    def _take(self, entry: os.DirEntry[str], path: str) -> None:
        self.sizes[path] = entry.stat().st_size
        if len(self.sizes) > MAX_FILES:
            raise UserError(f"a submission must have at most {MAX_FILES:,} files, but {self.folder} has more",
                            where="--working-dir", do="Submit from the folder of your code, or name what must stay "
                            "behind in a .gitignore.")

    def _reason(self, entry: os.DirEntry[str], path: str, is_folder: bool, source: str | None) -> str | None:
        """Why an entry stays behind, None if it comes along; `source` is the file by which it is ignored."""
        real = Path(os.path.realpath(entry.path))
        if real in self.excluded:
            return self.excluded[real]
        private = why_private(path, is_folder)
        if private is not None:
            return private
        if entry.name in TOOLS or entry.name.endswith(COMPILED):
            return "made by tools"
        if entry.name in IGNORE_FILES:
            # Ray would apply it once more on what is left, to the config as well.
            return "it has done its work here"
        tracked = path in (self.tracked_folders if is_folder else self.tracked)
        if source is not None and not (tracked and source == GITIGNORE):
            return source
        if is_folder:
            return _kind_of_folder(Path(entry.path), path)
        if path == CONFIG_NAME:
            return "replaced by the config that is submitted"
        return self._reason_of_file(entry)

    def _reason_of_file(self, entry: os.DirEntry[str]) -> str | None:
        if entry.is_symlink():
            reason = link_reason(Path(entry.path), self.folder)
            if reason is not None:
                return reason
            # Not the entry's own methods, which raise where links lead in a circle.
            if os.path.isdir(entry.path):
                return "a link to a folder"
        return why_content_private(Path(entry.path)) if os.path.isfile(entry.path) else "not a file"


def _kind_of_folder(folder: Path, path: str) -> str | None:
    """Why a folder stays behind because of what it holds."""
    if any((folder / mark).exists() for mark in ENVIRONMENT_MARKS):
        return "a virtual environment"
    if (folder / "artifacts").is_dir() and any((folder / name).is_dir() for name in ("runs", "sweeps")):
        return "results"
    if path == PACKAGE.name and (folder / "submit" / "upload.py").is_file():
        return "swamp_ray travels on its own"
    return None


def _repository(folder: Path) -> Path | None:
    return next((one for one in (folder, *folder.parents) if (one / ".git").exists()), None)


def _rules_above(folder: Path) -> Rules:
    """The rules of the folders above, as far as the repository reaches."""
    top = _repository(folder)
    if top is None:
        return Rules()
    rules = Rules(tuple(read_rules(top / ".git" / "info" / "exclude", "", GITIGNORE)))
    for parent in reversed(folder.parents):
        if parent == top or top in parent.parents:
            rules = rules.reading(parent, parent.relative_to(top).as_posix().removeprefix("."))
    return rules


def _tracked(folder: Path) -> frozenset[str]:
    """Files that git tracks; none without git or outside of a repository."""
    if _repository(folder) is None:
        return frozenset()
    try:
        listed = subprocess.run(["git", "-C", str(folder), "ls-files", "-z"], capture_output=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return frozenset()
    names = listed.stdout.split(b"\0") if listed.returncode == 0 else []
    return frozenset(os.fsdecode(name) for name in names if name)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e5 else f"{num_bytes / 1e3:.1f} kB"


def check_size(upload: Upload, limit: int = MAX_BYTES) -> None:
    """Refuse an upload that is too large, which is nearly always data that nobody meant to upload.

    Raises:
        UserError: It names the largest files.
    """
    if upload.num_bytes <= limit:
        return
    largest = sorted(upload.sizes.items(), key=lambda item: -item[1])[:NUM_NAMED]
    lines = "".join(f"\n  {_size(size):>10}  {path}" for path, size in largest)
    raise UserError(
        f"at most {_size(limit)} can be uploaded, but these are {upload}. The largest:{lines}\n", where="--working-dir",
        do="Name what must stay behind in a .gitignore or .rayignore, or give the folder of your code alone. Data "
           "belong on a file system that the cluster sees (data.root).")


def stage(upload: Upload, config_text: str, folder: Path) -> None:
    """Copy an upload and the config into an empty folder.

    Raises:
        UserError: A file cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in upload.sizes:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copy(upload.folder / path, target)
        except OSError as error:
            raise UserError(f"a file cannot be uploaded: {error.strerror}", got=str(upload.folder / path),
                            where="--working-dir") from error
    config = folder / CONFIG_NAME
    config.touch(mode=0o600)
    config.write_text(config_text, encoding="utf-8")


def stage_version(folder: Path, version: str) -> None:
    """Let the swamp_ray that travels be known by its own version, whatever is installed on the cluster."""
    facts = folder / f"{PACKAGE.name}-{version}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE.name}\nVersion: {version}\n")


def stage_package(folder: Path) -> Path:
    """Copy this swamp_ray package into a folder; the path of the copy."""
    target = folder / PACKAGE.name
    shutil.copytree(PACKAGE, target, ignore=lambda _folder, names: _compiled(names))
    return target


def _compiled(names: Iterable[str]) -> set[str]:
    return {name for name in names if name in TOOLS or name.endswith(COMPILED)}
