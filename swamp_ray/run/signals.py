"""Ctrl-C and SIGTERM: the first one stops a run in good order, further ones hurry it up."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_stopped = threading.Event()


def was_stopped() -> bool:
    """Whether this process was asked to stop since handlers were installed last."""
    return _stopped.is_set()


class Stopping:
    """What the user or the system has asked for.

    The first signal raises KeyboardInterrupt, wherever the process is; within :meth:`noted` it is only noted, because
    whoever works there looks at :meth:`asked` and stops at the next good moment. Further signals never raise, so that
    tidying up is not disturbed; they make it :attr:`impatient`.
    """

    def __init__(self) -> None:
        self._num_signals = 0
        self._only_note = False

    def install(self) -> dict[int, Any]:
        """Handle the signals from now on (in the main thread; elsewhere there is nothing to do).

        Returns:
            The handlers that stood there before, for :meth:`restore`.
        """
        if threading.current_thread() is not threading.main_thread():
            return {}
        _stopped.clear()
        return {number: signal.signal(number, self) for number in SIGNALS}

    @staticmethod
    def restore(handlers: dict[int, Any]) -> None:
        """Put back what :meth:`install` found."""
        for number, handler in handlers.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def __call__(self, _signal: int, _frame: object) -> None:
        """The signal handler."""
        self._num_signals += 1
        _stopped.set()
        if self._num_signals > 1:
            return
        sys.unraisablehook = _quiet_interrupts
        if not self._only_note:
            raise KeyboardInterrupt

    def asked(self) -> bool:
        """Whether a signal has come."""
        return self._num_signals > 0

    @property
    def impatient(self) -> bool:
        """Whether a second signal has come: leave at once."""
        return self._num_signals > 1

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has come: it may have been noted, or lost in a callback."""
        if self.asked():
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """A block in which a first signal does not raise."""
        self._only_note = True
        try:
            yield
        finally:
            self._only_note = False


@contextlib.contextmanager
def handled(stopping: Stopping | None) -> Iterator[Stopping]:
    """What is given, whose handlers are installed; else a new one, for as long as the block takes."""
    if stopping is not None:
        yield stopping
        return
    stopping = Stopping()
    handlers = stopping.install()
    try:
        yield stopping
    finally:
        stopping.restore(handlers)


def _quiet_interrupts(unraisable: sys.UnraisableHookArgs) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
