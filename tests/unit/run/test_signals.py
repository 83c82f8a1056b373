"""Signals: the first one stops a run in good order, further ones only hurry it up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from swamp_ray.run.signals import Stopping


@pytest.fixture
def stopping() -> Iterator[Stopping]:
    stopping = Stopping()
    hook, handlers = sys.unraisablehook, stopping.install()
    yield stopping
    stopping.restore(handlers)
    sys.unraisablehook = hook


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_raises_and_further_ones_make_impatient(stopping: Stopping, number: int) -> None:
    stopping.check()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    assert stopping.asked()
    assert not stopping.impatient
    os.kill(os.getpid(), number)
    assert stopping.impatient


def test_a_signal_where_it_is_only_noted_does_not_raise(stopping: Stopping) -> None:
    with stopping.noted():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping.asked()
    with pytest.raises(KeyboardInterrupt):
        stopping.check()


def test_handlers_are_put_back(stopping: Stopping) -> None:
    other = Stopping()
    handlers = other.install()
    assert signal.getsignal(signal.SIGINT) is other
    other.restore(handlers)
    assert signal.getsignal(signal.SIGINT) is stopping


LOST_SIGNAL = """
import os, signal, sys, time
from swamp_ray.run.signals import Stopping

class Library:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

stopping = Stopping()
stopping.install()
try:
    library = Library()
    del library
    for _ in range(200):
        time.sleep(0.05)
        stopping.check()
    print("lost")
except KeyboardInterrupt:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    print("tidied up")
"""


def test_a_stop_is_not_lost_in_a_callback_and_a_second_one_does_not_disturb() -> None:
    done = subprocess.run([sys.executable, "-c", LOST_SIGNAL], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "tidied up", "")
