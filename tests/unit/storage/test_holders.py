from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pytest

from swamp_ray.storage.holders import parse_holder, this_process

NAP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(120)"]


def test_this_process_lives() -> None:
    holder = this_process("tiny")
    assert holder.life == "alive"
    assert str(holder) == f"process {os.getpid()} on {holder.host}"


def test_a_killed_process_is_gone_before_and_after_it_is_waited_for() -> None:
    process = subprocess.Popen(NAP, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    holder = replace(this_process("tiny"), pid=process.pid, started=None)
    assert holder.life == "alive"
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert holder.life == "gone"
    process.wait()
    process.stdout.close()
    assert holder.life == "gone"


def test_a_later_process_with_the_same_number_is_another_one() -> None:
    holder = this_process("tiny")
    assert holder.started is not None
    assert replace(holder, started=holder.started - 1).life == "gone"


def test_a_process_of_another_machine_container_or_system_cannot_be_seen() -> None:
    holder = replace(this_process("tiny"), pid=2**22 + 1)
    assert holder.life == "gone"
    assert replace(holder, boot="another").life == "elsewhere"
    assert replace(holder, namespace="another").life == "elsewhere"
    assert replace(holder, boot="").life == "elsewhere"


def test_a_holder_comes_back_from_its_fields() -> None:
    holder = this_process("tiny", "session")
    assert parse_holder(asdict(holder)) == holder


@pytest.mark.parametrize("plain", [
    None, [], "process", {}, {"pid": 1}, {**asdict(this_process("t")), "pid": -1},
    {**asdict(this_process("t")), "pid": True}, {**asdict(this_process("t")), "pid": 10**30},
    {**asdict(this_process("t")), "started": "1"}, {**asdict(this_process("t")), "boot": None},
])
def test_what_is_no_holder_is_none(plain: object) -> None:
    assert parse_holder(plain) is None
