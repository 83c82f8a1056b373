"""Bars of jobs: the right ones, on the right worker, with what was lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.report.charts.timeline import jobs_of, timelines, utilisation
from tests.figures import drawn, flaws, made_run


def job(worker: int | None, began: float, ended: float, **values: Any) -> dict[str, Any]:
    return {"kind": "particle", "round": 0, "particle": 0, "worker": worker, "host": "node", "device": "cpu",
            "attempt": 1, "retry": 0, "reseed": 0, "began": 1e9 + began, "ended": 1e9 + ended, "how": "done",
            "epochs": 1, **values}


def average(began: float, ended: float, **values: Any) -> dict[str, Any]:
    return job(None, began, ended, kind="average", particle=None, host=None, device=None, **values)


def test_bars_lie_where_the_jobs_were_and_pauses_between_attempts_are_cut_out(tmp_path: Path) -> None:
    run = made_run(tmp_path, "a", jobs=[
        job(0, 0, 10), job(1, 0, 6, particle=1, how="machine"), job(1, 6, 10, particle=1, retry=1), average(10, 12),
        job(0, 5000, 5008, attempt=2, round=1), average(5008, 5010, attempt=2, round=1)])
    jobs = jobs_of(run)
    assert list(zip(jobs["row"], jobs["began_s"], jobs["ended_s"], strict=True)) == [
        ("worker 1", 0, 6), ("worker 0", 0, 10), ("worker 1", 6, 10), ("averaging", 10, 12), ("worker 0", 12, 20),
        ("averaging", 20, 22)]
    assert jobs["lane"].tolist() == [0] * 6
    (chart,) = timelines([run])
    assert (chart.name, chart.title) == ("timeline_a", "Workers of a")
    assert "6 jobs of 2 workers" in chart.caption
    assert "2 attempts" in chart.caption
    assert "1 job failed and was" in chart.caption
    assert flaws(chart.figure) == []


def test_workers_are_busy_while_they_have_a_job_averaging_aside(tmp_path: Path) -> None:
    run = made_run(tmp_path, "a", jobs=[job(0, 0, 8), job(1, 0, 4), job(1, 2, 6, particle=1), average(8, 10)])
    assert utilisation(jobs_of(run)) == pytest.approx((8 + 6) / 20)


def test_jobs_of_one_worker_at_a_time_lie_beside_each_other(tmp_path: Path) -> None:
    run = made_run(tmp_path, "a", jobs=[job(0, 0, 9), job(0, 0, 9, particle=1), job(0, 0, 5, particle=2),
                                        job(0, 5, 9, particle=3), job(1, 0, 9, particle=4)])
    jobs = jobs_of(run).sort_values("particle")
    assert jobs["lane"].tolist()[-1] == 0
    assert sorted(jobs["lane"].tolist()[:3]) == [0, 1, 2]
    assert jobs["lanes"].tolist() == [3, 3, 3, 3, 1]
    assert "at the same time" in timelines([run])[0].caption


def test_a_run_that_recorded_no_jobs_has_no_timeline(tmp_path: Path) -> None:
    assert timelines([]) == []
    assert timelines([made_run(tmp_path, "old")]) == []


@pytest.mark.parametrize("rounds", [1, 30])
def test_a_single_worker_has_room(tmp_path: Path, rounds: int) -> None:
    jobs = [job(0, 0, 1, kind="dense", round=None, particle=None)]
    jobs += [job(0, 2 + index, 3 + index, round=index, how="done" if index else "error") for index in range(rounds)]
    (chart,) = timelines([made_run(tmp_path, "one", jobs=jobs)])
    assert flaws(chart.figure) == []


def test_hundreds_of_jobs_on_many_nodes_stay_legible(tmp_path: Path) -> None:
    dice, jobs = random.Random(0), []
    for index in range(12):
        for particle in range(40):
            began = 100 * index + dice.uniform(0, 10)
            jobs.append(job(particle, began, began + dice.uniform(50, 80), round=index, particle=particle,
                            host=f"a-node-with-a-very-long-name-{particle % 5}", attempt=1 + index // 4))
    (chart,) = timelines([made_run(tmp_path, "many", jobs=jobs)])
    assert len(drawn(chart)) == 480
    assert flaws(chart.figure) == []
