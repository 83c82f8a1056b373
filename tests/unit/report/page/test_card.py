"""What a card says of a run, and what it leaves out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from swamp_ray.report.load.runs import ReportRun
from swamp_ray.report.page.card import card, failures, status
from swamp_ray.text.tables import percent


def attempt(*kinds: str, **values: Any) -> dict[str, Any]:
    incidents = [{"time": "2026-01-01T00:00:00+0000", "who": "round 1, particle 0", "kind": kind, "reason": "why"}
                 for kind in kinds]
    return {"started": "2026-01-01T00:00:00+0000", "host": "here", "executor": "ray", "trained": 1, "found": 0,
            "trained_epochs": 6, "incidents": incidents, **values}


def facts(run: ReportRun) -> dict[str, str]:
    return dict(card(run).facts)


def test_it_says_what_was_run_with_what_and_what_it_took(swamp: ReportRun) -> None:
    found = facts(swamp)
    prunable, parameters = swamp.about["num_prunable"], swamp.about["num_parameters"]
    pruned = (prunable - swamp.records[-1]["survivors"]) / parameters
    assert found["Model"] == (f"digits_cnn, {prunable:,} prunable weights of {parameters:,} parameters; at "
                              f"{percent(swamp.records[-1]['sparsity'])} sparsity {percent(pruned)} of all parameters "
                              "are pruned")
    assert found["Seed"] == "0"
    assert found["Commit"] == swamp.about["attempts"][0]["commit"]
    assert found["Epochs"].startswith("19 particle-epochs, the dense phase included; ")
    assert "torch " in found["Versions"]
    assert found["Failures"] == "None."
    assert card(swamp).status == ""


def test_what_is_not_known_is_left_out(swamp: ReportRun) -> None:
    bare = replace(swamp, about={"status": "complete", "primary": "accuracy"}, metrics=swamp.metrics.iloc[:0])
    assert not {"Hardware", "Versions", "Command", "Commit", "When", "Wall time", "Failures"} & facts(bare).keys()
    assert all(text and "None" not in text for text in facts(bare).values())


@pytest.mark.parametrize(("attempts", "text"), [
    ([attempt()], "None."),
    ([attempt("machine", "machine", "reseed")],
     "2 failures of machines; 1 training began anew with another seed."),
    ([attempt("drop"), attempt()],
     "1 particle was left out because it diverged; 1 attempt was ended from outside; it was started 2 times."),
    ([attempt("something new")], "1 something new."),
    ([], ""),
])
def test_failures_are_counted_in_a_sentence(attempts: list[dict[str, Any]], text: str) -> None:
    assert failures(attempts) == text


def test_wall_time_counts_every_attempt_and_says_where_one_is_missing(swamp: ReportRun) -> None:
    def wall_time(*attempts: dict[str, Any]) -> str:
        return facts(replace(swamp, about={**swamp.about, "attempts": list(attempts)}))["Wall time"]

    assert wall_time(attempt(seconds=50.0), attempt(seconds=25.0)) == "1 min 15 s, in 2 attempts"
    assert wall_time(attempt(), attempt(seconds=25.0)) == "at least 25 s, in 2 attempts"


def test_incidents_are_listed(swamp: ReportRun) -> None:
    failed = card(replace(swamp, about={**swamp.about, "attempts": [attempt("machine")]}))
    assert failed.incidents == (("2026-01-01T00:00:00+0000", "round 1, particle 0", "machine", "why"),)


@pytest.mark.parametrize(("recorded", "reason", "words"), [
    ("running", None, "2 of 3 rounds are finished; it was ended from outside"),
    ("failed", "the disk is full", "its last attempt: failed. the disk is full"),
    ("interrupted", None, "its last attempt: interrupted."),
])
def test_an_unfinished_run_says_how_far_it_is(swamp: ReportRun, recorded: str, reason: str | None, words: str) -> None:
    attempts = [attempt(status=recorded, **({"reason": reason} if reason else {}))]
    metrics = swamp.metrics[swamp.metrics["round"].fillna(0) < 2]
    found = status(replace(swamp, records=swamp.records[:2], metrics=metrics,
                           about={**swamp.about, "status": recorded, "attempts": attempts}))
    assert found.startswith("Unfinished: ")
    assert words in found
