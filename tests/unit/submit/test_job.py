"""Submitted jobs: ids, attempts, exit codes, and logs that are sent more than once."""

from __future__ import annotations

import pytest

from swamp_ray.errors import UserError
from swamp_ray.submit.job import Job, Lines, choose

BASE = "swamp-my-run-0123abcd"


@pytest.mark.parametrize(("job_id", "base", "attempt"), [
    (BASE, BASE, 1), (f"{BASE}-2", BASE, 2), (f"{BASE}-13", BASE, 13),
    ("swamp-run-2-0123abcd-4", "swamp-run-2-0123abcd", 4), ("raysubmit_x", "raysubmit_x", 1),
])
def test_ids_tell_the_attempt(job_id: str, base: str, attempt: int) -> None:
    job = Job(job_id, "RUNNING")
    assert (job.base, job.attempt) == (base, attempt)


@pytest.mark.parametrize(("status", "exit_code", "outcome"), [
    ("SUCCEEDED", 0, 0), ("FAILED", 1, 1), ("FAILED", 2, 2), ("FAILED", 130, 130), ("FAILED", None, 1),
    ("FAILED", -9, 1), ("FAILED", 127, 1), ("STOPPED", None, 130),
])
def test_the_exit_code_is_that_of_the_run(status: str, exit_code: int | None, outcome: int) -> None:
    assert Job(BASE, status, exit_code=exit_code).outcome() == outcome


def test_a_name_means_its_last_attempt() -> None:
    jobs = [Job(f"{BASE}-2", "STOPPED", {"name": "my-run"}), Job(BASE, "FAILED", {"name": "my-run"}),
            Job(f"{BASE}-10", "RUNNING", {"name": "my-run"}), Job("swamp-other-00000000", "RUNNING", {"name": "other"})]
    assert choose(jobs, "my-run").id == f"{BASE}-10"
    assert choose(jobs, BASE).id == BASE
    assert choose(jobs, f"{BASE}-2").id == f"{BASE}-2"


def test_a_name_of_several_or_none_is_refused() -> None:
    jobs = [Job(BASE, "STOPPED", {"name": "my-run"}), Job("swamp-my-run-ffffffff", "RUNNING", {"name": "my-run"})]
    with pytest.raises(UserError, match=f"several jobs: {BASE}, swamp-my-run-ffffffff"):
        choose(jobs, "my-run")
    with pytest.raises(UserError, match="Did you mean 'my-run'"):
        choose(jobs, "myrun")
    with pytest.raises(UserError, match="swamp jobs"):
        choose([], "my-run")


def test_a_log_that_is_sent_again_is_not_repeated() -> None:
    written: list[str] = []
    lines = Lines(written.append)
    lines.begin()
    for part in ("on", "e\ntwo\nth", ""):
        lines.add(part)
    assert written == ["one", "two"]
    lines.begin()
    lines.add("one\ntwo\nthree\nfour\nend")
    lines.end()
    assert written == ["one", "two", "three", "four", "end"]


def test_the_servers_own_words_are_left_out() -> None:
    written: list[str] = []
    lines = Lines(written.append)
    lines.begin()
    lines.add("2026-01-01 00:00:00,000\tINFO job_manager.py:568 -- Runtime env is setting up.\n"
              f"Running entrypoint for job {BASE}: exec python -m swamp_ray run x\nround 0\n")
    assert written == ["round 0"]
