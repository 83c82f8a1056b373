"""A place in an object store: s3://, gs:// and az://, through obstore, which is imported nowhere else."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from swamp_ray.errors import RunError, UserError
from swamp_ray.storage.append import PartAppender, parts_of, read_parts
from swamp_ray.storage.place import Appender, Entry, IsLine, Through, check_key, directly
from swamp_ray.storage.retrying import PassingError

try:
    import obstore
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
    from obstore.store import AzureStore, GCSStore, S3Store
except ImportError as error:
    raise UserError("a storage root in an object store needs the package obstore", where="storage",
                    do="Install it with: pip install obstore") from error

PIECE_BYTES = 16 << 20
"""Larger objects are read and written in pieces of this size: the time limit is for one request."""
REQUEST_S = 60

_URL = re.compile(r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._-]*)/*(.*?)/*")
_STORES: dict[str, Any] = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}
_CREDENTIALS = {"s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", "gs": "GOOGLE_APPLICATION_CREDENTIALS",
                "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"}
_STATUS = re.compile(r"status code: (\d{3})")
_NO_SUCH_RANGE = 416
_PASSING_STATUS = {408, 409, 425, 429}
# Asked for credentials by a client that has found none in its environment.
_METADATA_SERVERS = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")

_T = TypeVar("_T")


class ObjectPlace:
    """A bucket, or a prefix in one.

    Credentials come from the environment, as do ``AWS_REGION``, ``AWS_ENDPOINT_URL`` and ``AWS_ALLOW_HTTP``.

    Args:
        url: ``s3://bucket/folder``, ``gs://bucket/folder`` or ``az://container/folder``.

    Raises:
        UserError: It is no such URL, or the environment lacks what the store needs.
    """

    def __init__(self, url: str) -> None:
        found = _URL.fullmatch(url)
        try:
            if found is None:
                raise ValueError
            self._scheme, self._bucket, self._prefix = found.groups()
            check_key(self._prefix)
        except ValueError:
            raise UserError("the storage root must be like s3://bucket/folder, of letters, digits, '.', '_', '=' and "
                            "'-'", got=url, where="storage") from None
        try:
            self._store = _STORES[self._scheme](
                self._bucket,
                # Trying again is left to `Patience`, which says so and knows when to stop.
                retry_config={"max_retries": 0},
                client_options={"timeout": f"{REQUEST_S}s", "connect_timeout": "10s", "allow_http": _allows_http()})
        except (BaseError, ValueError) as error:
            raise UserError(f"the object store cannot be used ({_first_line(error)})", got=url, where="storage",
                            do=f"Set {_CREDENTIALS[self._scheme]} in the environment.") from error

    @property
    def uri(self) -> str:
        """The URL, without a slash at its end."""
        return "/".join(filter(None, [f"{self._scheme}://{self._bucket}", self._prefix]))

    def locate(self, key: str) -> Path | str:
        """The URL of an object."""
        check_key(key)
        return f"{self.uri}/{key}" if key else self.uri

    def read(self, key: str) -> bytes:
        """All bytes of one version of an object."""
        return self._read(key)[0]

    def write(self, key: str, data: bytes, *, keep_existing: bool = False, private: bool = False) -> bool:
        """One put, conditional where an existing object is to be kept; who may read it is the bucket's own matter."""
        try:
            self._put(key, data, "create" if keep_existing else "overwrite")
        except AlreadyExistsError:
            return False
        return True

    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        """One put, on the condition that the object is still the version that was compared."""
        try:
            found, version = self._read(key)
            if found != expected:
                return False
            self._put(key, data, version)
        except (FileNotFoundError, PreconditionError, AlreadyExistsError):
            return False
        return True

    def remove(self, key: str, *, durable: bool = True) -> None:
        """Delete an object."""
        try:
            self._ask(key, "removed", lambda path: obstore.delete(self._store, path))
        except FileNotFoundError:
            return

    def size(self, key: str) -> int | None:
        """Bytes of an object."""
        try:
            return self._ask(key, "read", lambda path: obstore.head(self._store, path))["size"]
        except FileNotFoundError:
            return None

    def entries(self, folder: str) -> list[Entry]:
        """The objects directly under a prefix."""
        found = [Entry(_last(meta["path"]), meta["size"], meta["last_modified"].timestamp())
                 for meta in self._list(folder)["objects"]]
        return sorted(found, key=lambda entry: entry.name)

    def folders(self, folder: str) -> list[str]:
        """The prefixes directly under a prefix."""
        return sorted(_last(prefix) for prefix in self._list(folder)["common_prefixes"])

    def others(self, folder: str) -> dict[str, str]:
        """Nothing: an object store has objects alone."""
        return {}

    def appender(self, key: str, *, durable: bool = False, is_line: IsLine | None = None,
                 through: Through = directly) -> Appender:
        """Append numbered objects, none of which is ever torn."""
        return PartAppender(self, key, through, durable=durable)

    def read_appended(self, key: str, start: int = 0) -> bytes:
        """The bytes of all parts together."""
        return read_parts(self, key, start)

    def appended(self, folder: str) -> list[tuple[str, float]]:
        """The prefixes directly under a prefix that hold something."""
        found = [(name, self.entries(f"{folder}/{name}")) for name in self.folders(folder)]
        return [(name, max(entry.modified_s for entry in parts)) for name, parts in found if parts]

    def rewrite_appended(self, key: str, data: bytes) -> bool:
        """Never done: several objects cannot be replaced at once."""
        return False

    def remove_appended(self, key: str) -> None:
        """Remove all parts."""
        for name, _ in parts_of(self, key):
            self.remove(f"{key}/{name}")

    def path_of(self, key: str) -> Path | None:
        """None: there are no files."""
        return None

    def made_folder(self, key: str) -> Path | None:
        """None: there are no folders."""
        return None

    @property
    def is_seen_by_all(self) -> bool:
        """Yes: a URL leads everywhere to the same."""
        return True

    def free_bytes(self) -> int | None:
        """None: there is no bound."""
        return None

    def free_files(self) -> int | None:
        """None: there is no bound."""
        return None

    def on_trial(self) -> contextlib.AbstractContextManager[None]:
        """Without effect: there are no empty prefixes."""
        return contextlib.nullcontext()

    @property
    def has_locks(self) -> bool:
        """No: conditional puts stand in for them."""
        return False

    def locked(self, folder: str) -> contextlib.AbstractContextManager[None]:
        """Without effect: an object store has no locks. Conditional puts stand in for them."""
        return contextlib.nullcontext()

    def pin(self) -> None:
        """Without effect: a bucket is known by its name."""

    def check_pinned(self) -> None:
        """Without effect as well."""

    def unpin(self) -> None:
        """Without effect as well."""

    def _list(self, folder: str) -> Any:
        return self._ask(folder, "listed", lambda path: obstore.list_with_delimiter(self._store, path or None))

    def _read(self, key: str) -> tuple[bytes, Any]:
        """The bytes, and what `_put` needs to replace exactly this version."""

        def get(path: str) -> tuple[bytes, Any]:
            try:
                first = obstore.get(self._store, path, options={"range": (0, PIECE_BYTES)})
            except BaseError as error:
                if _status(error) != _NO_SUCH_RANGE:
                    raise
                first = obstore.get(self._store, path)  # empty
            meta = first.meta
            pieces = [bytes(first.bytes())]
            version = {name: meta[name] for name in ("e_tag", "version") if meta.get(name) is not None}
            for start in range(PIECE_BYTES, meta["size"], PIECE_BYTES):
                options: Any = {"range": (start, min(start + PIECE_BYTES, meta["size"])), "if_match": meta["e_tag"]}
                pieces.append(bytes(obstore.get(self._store, path, options=options).bytes()))
            return b"".join(pieces), version

        try:
            return self._ask(key, "read", get)
        except PreconditionError as error:
            raise PassingError(f"{self.locate(key)}: was replaced while it was read") from error

    def _put(self, key: str, data: bytes, mode: Any) -> None:
        # A conditional put is a single request; a multipart one appears at its end, at once and whole.
        in_pieces = mode == "overwrite" and len(data) > 2 * PIECE_BYTES
        self._ask(key, "written", lambda path: obstore.put(
            self._store, path, data, mode=mode, use_multipart=in_pieces, chunk_size=PIECE_BYTES, max_concurrency=4))

    def _ask(self, key: str, done: str, request: Callable[[str], _T]) -> _T:
        """A request for a key; what goes wrong for a reason of the store's raises RunError or PassingError."""
        check_key(key)
        path = "/".join(filter(None, [self._prefix, key]))
        try:
            return request(path)
        except (AlreadyExistsError, PreconditionError):
            raise
        except (BaseError, OSError) as error:
            if isinstance(error, FileNotFoundError) and done != "written" and "NoSuchBucket" not in str(error):
                raise FileNotFoundError(f"{self.locate(key)} does not exist") from error
            raise self._error(f"{self.locate(key)}: could not be {done}", error) from error

    def _error(self, what: str, error: Exception) -> RunError:
        text = _answer(error)
        reason = _first_line(error)
        if any(server in text for server in _METADATA_SERVERS):
            return RunError(f"{what}: no credentials were found ({reason}). Set {_CREDENTIALS[self._scheme]} in the "
                            "environment, on every node.")
        status = _status(error)
        if isinstance(error, FileNotFoundError) or "NoSuchBucket" in text:
            return RunError(f"{what}: there is no bucket {self._bucket!r}. Create it, or name another storage.")
        if status is None or status >= 500 or status in _PASSING_STATUS:
            return PassingError(f"{what}: {reason}")
        return RunError(f"{what}: {reason}. Check the credentials and their rights, then run the same command again: "
                        "it goes on from there.")


def _allows_http() -> bool:
    return os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true", "yes", "on")


def _answer(error: Exception) -> str:
    """What the server said, without the client's account of itself."""
    return str(error).partition("\n\nDebug source")[0]


def _status(error: Exception) -> int | None:
    """The HTTP status of the answer; None if there was none."""
    found = _STATUS.search(_answer(error))
    return int(found[1]) if found else None


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _first_line(error: Exception) -> str:
    """The first line of an error, without the start of the server's answer."""
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return line.partition(": <?xml")[0]
