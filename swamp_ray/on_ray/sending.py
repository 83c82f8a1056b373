"""Whether data that are read while training can be sent to Ray's workers, found out before Ray starts."""

from __future__ import annotations

import io
from typing import Any

from swamp_ray.data.samples import Data, LazySamples
from swamp_ray.errors import UserError, first_line
from swamp_ray.run.prepare import Prepared
from swamp_ray.user_code.importing import is_import_path

_ADVICE = ("Open it where it is first used, in __getitem__, and leave it out of what is sent: let __getstate__ return "
           "the attributes with this one set to None. Or set execution.executor: inline.")


class _Nowhere(io.RawIOBase):
    """Takes bytes, and keeps none."""

    def writable(self) -> bool:
        """It is written to."""
        return True

    def write(self, data: Any) -> int:
        """How many bytes there were."""
        return memoryview(data).nbytes


def sendable(prepared: Prepared) -> Prepared:
    """A prepared run as it is, if Ray can send its data to workers; a run without Ray needs no sending.

    Raises:
        UserError: Names the part of the user's data that cannot be sent, and the attribute that holds it.
    """
    config = prepared.config
    if config.execution.executor == "ray" and is_import_path(config.data.name):
        refuse_unsendable(prepared.data, config.data.name)
    return prepared


def refuse_unsendable(data: Data, where: str) -> None:
    """Refuse datasets and transforms that hold what cannot leave this process: open files, locks, sockets.

    Args:
        data: Of a run on Ray.
        where: The data's name, for errors.

    Raises:
        UserError: Names the part that cannot be sent, and the attribute that holds it.
    """
    seen: set[int] = set()
    for name in ("train", "validation", "test"):
        split = getattr(data, name)
        if not isinstance(split, LazySamples):
            continue
        parts = {"dataset": split.dataset, "unchanged dataset": split.plain, "transform": split.train_transform}
        for what, part in parts.items():
            if part is None or id(part) in seen:
                continue
            seen.add(id(part))
            reason = _why_not(part)
            if reason is not None:
                raise UserError(f"the {what} of {name}, a {type(part).__name__}, cannot be sent to Ray's workers: "
                                f"{_culprit(part)}{reason}", where=where, do=_ADVICE)


def _why_not(part: Any) -> str | None:
    """Why an object cannot be sent, in one line; None if it can."""
    from ray.cloudpickle import cloudpickle

    try:
        # Arrays are left where they are: only whether they can be sent is asked.
        cloudpickle.dump(part, _Nowhere(), protocol=5, buffer_callback=lambda _buffer: None)
    except MemoryError:
        raise
    except Exception as error:  # whatever an object of the user's raises when it is pickled
        return first_line(error)
    return None


def _culprit(part: Any) -> str:
    """The attribute that cannot be sent, where it is one."""
    for name, value in getattr(part, "__dict__", {}).items():
        if _why_not(value) is not None:
            return f"its attribute {name!r} is a {type(value).__name__}; "
    return ""
