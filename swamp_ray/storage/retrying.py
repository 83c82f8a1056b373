"""Storage that misbehaves for a while: operations are tried again, with pauses that grow, and only for so long."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from swamp_ray.errors import RunError
from swamp_ray.storage.place import Place
from swamp_ray.storage.wrapped_place import WrappedPlace

DEFAULT_PATIENCE_S = 60.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

_MAY_PASS = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EINTR, errno.EREMOTEIO}
_AFTERWARDS = "Repair the storage, then run the same command again: it goes on from there."

_T = TypeVar("_T")
_logger = logging.getLogger("swamp_ray.storage")


class PassingError(RunError):
    """The storage failed in a way that may pass: a timeout, a server that is overloaded, a network file system away.

    Args:
        what: What failed, without a full stop.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what}. {_AFTERWARDS}")

    def __reduce__(self) -> tuple[object, ...]:
        return (PassingError, (self.what,))


def may_pass(error: OSError) -> bool:
    """Whether another try may succeed; a full disk, missing rights and a quota stay."""
    return error.errno in _MAY_PASS


def storage_error(what: str, error: OSError) -> RunError:
    """A failed operation on a file in words: `PassingError` where it is worth another try."""
    reason = f"{what}: {error.strerror or error}"
    return PassingError(reason) if may_pass(error) else RunError(f"{reason}. {_AFTERWARDS}")


class Patience:
    """Tries an operation again while it fails in a way that may pass.

    When the time was spent in vain, the next operations are tried once only, until one succeeds: whoever then tidies
    up does not wait all over again.

    Args:
        seconds: How long all tries of one operation may take together; 0: one try.
        clock: Seconds that only grow.
        sleep: Waits so many seconds.
    """

    def __init__(self, seconds: float = DEFAULT_PATIENCE_S, clock: Callable[[], float] = time.monotonic,
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self.seconds = seconds
        self._clock = clock
        self._sleep = sleep
        # Its own: the process's generator decides how particles are trained.
        self._random = random.Random()
        self._exhausted = False

    def call(self, operation: Callable[[], _T]) -> tuple[_T, bool]:
        """What the operation returns, and whether it was tried more than once.

        Raises:
            RunError: It failed until the time was over, or in a way that does not pass.
        """
        began = self._clock()
        tries = 0
        while True:
            tries += 1
            try:
                result = operation()
            except PassingError as error:
                self._pause(error, began, tries)
            else:
                self._exhausted = False
                return result, tries > 1

    def _pause(self, error: PassingError, began: float, tries: int) -> None:
        pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (tries - 1)) * self._random.uniform(0.5, 1.0)
        waited = self._clock() - began
        if self._exhausted or waited + pause > self.seconds:
            self._exhausted = True
            raise RunError(f"{error.what}. It was tried {tries} time{'s' * (tries > 1)} in {waited:.0f} s "
                           f"(execution.storage_patience_s). What was stored before is unharmed. {_AFTERWARDS}"
                           ) from error
        if tries == 1:
            _logger.warning("%s; trying again for up to %.0f s", error.what, self.seconds)
        self._sleep(pause)


class PatientPlace(WrappedPlace):
    """A place whose operations are tried again, see `Patience`.

    Args:
        inner: The place.
        patience: For how long.
    """

    def __init__(self, inner: Place, patience: Patience) -> None:
        super().__init__(inner)
        self.patience = patience

    def reading(self, operation: Callable[[], _T]) -> _T:
        """Carry out an operation, more than once if need be."""
        return self.patience.call(operation)[0]

    def writing(self, operation: Callable[[], _T]) -> _T:
        """Carry out an operation, more than once if need be."""
        return self.patience.call(operation)[0]

    def write(self, key: str, data: bytes, *, keep_existing: bool = False, private: bool = False) -> bool:
        """Write an object; one that is kept may be what an earlier try of this very call has written."""
        written, again = self.patience.call(
            lambda: self.inner.write(key, data, keep_existing=keep_existing, private=private))
        return written or (again and self._holds(key, data))

    def swap(self, key: str, data: bytes, expected: bytes) -> bool:
        """Replace an object; one that differs may hold what an earlier try of this very call has written."""
        swapped, again = self.patience.call(lambda: self.inner.swap(key, data, expected))
        return swapped or (again and self._holds(key, data))

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.read(key) == data
        except FileNotFoundError:
            return False


def impatient(place: Place) -> Place:
    """The same place without second tries: for what is not worth waiting for, such as log lines."""
    return place.inner if isinstance(place, PatientPlace) else place
