"""A run's costs: the same beforehand, in its records, in its metrics and in a sweep's table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.commands.check import cost_lines, rounds_table
from swamp_ray.launch import run
from swamp_ray.run.costs import planned_costs
from swamp_ray.run.prepare import prepare
from swamp_ray.text.costs import cost_text, epochs_text, flops_text
from swamp_ray.training.cost import NetworkFlops
from tests.helpers import tiny

STEPS, BATCH = 5, 16  # 86 samples of the tiny data are trained on


def records_of(storage: Path, name: str = "tiny") -> list[dict[str, Any]]:
    lines = (storage / "runs" / name / "rounds.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda record: record["round"])


def by_hand(network: NetworkFlops, densities: dict[str, float], epochs: int) -> float:
    forward = network.rest
    for name, flops in network.layers.items():
        forward += densities[name] * flops
    return 3 * forward * epochs * STEPS * BATCH


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage root with one run."""
    folder = tmp_path_factory.mktemp("costs")
    run(tiny(folder))
    return folder


class TestARun:
    def test_records_hold_the_account_of_their_round_and_of_all_before(self, storage: Path) -> None:
        network = prepare(tiny(storage)).flops.network
        assert network is not None
        dense = dict.fromkeys(network.layers, 1.0)
        epochs, critical = 1, 1
        all_flops = masked = by_hand(network, dense, 1)
        for record in records_of(storage):
            # Three particles of two epochs each.
            expected = {"total_epochs": 6, "critical_epochs": 2, "dense_flops": by_hand(network, dense, 6),
                        "sparse_flops": by_hand(network, record["layer_densities"], 6)}
            assert record["cost"] == pytest.approx(expected)
            epochs, critical = epochs + 6, critical + 2
            all_flops, masked = all_flops + expected["dense_flops"], masked + expected["sparse_flops"]
            assert record["cost_so_far"] == pytest.approx({
                "total_epochs": epochs, "critical_epochs": critical, "dense_flops": all_flops, "sparse_flops": masked})
        assert masked < 0.7 * all_flops

    def test_metrics_hold_them_too(self, storage: Path) -> None:
        lines = [json.loads(line) for line in (storage / "runs/tiny/metrics.jsonl").read_text().splitlines()]
        rounds = {line["round"]: line for line in lines if line["kind"] == "round"}
        for record in records_of(storage):
            for what in ("cost", "cost_so_far"):
                logged = {face: rounds[record["round"]][f"{what}/{face}"] for face in record[what]}
                assert logged == record[what]

    def test_the_plan_says_the_same_epochs_beforehand(self, storage: Path) -> None:
        planned, last = planned_costs(prepare(tiny(storage))), records_of(storage)[-1]
        assert planned.whole.total_epochs == last["cost_so_far"]["total_epochs"] == 19
        assert planned.whole.critical_epochs == last["cost_so_far"]["critical_epochs"] == 7
        assert planned.whole.dense_flops == last["cost_so_far"]["dense_flops"]
        assert not planned.has_layer_densities

    def test_a_record_of_before_is_read_and_completed_by_the_same_command(self, storage: Path) -> None:
        path = storage / "runs/tiny/rounds.jsonl"
        whole = records_of(storage)
        older = [{key: value for key, value in one.items() if key not in ("cost", "cost_so_far", "check")}
                 for one in whole]
        path.write_text("".join(f"{json.dumps(one)}\n" for one in older))
        run(tiny(storage))
        latest = {one["round"]: one for one in map(json.loads, path.read_text().splitlines())}
        assert [latest[one["round"]]["cost_so_far"] for one in whole] == [one["cost_so_far"] for one in whole]


def test_with_densities_by_layer_the_plan_knows_the_flops_of_masks(tmp_path: Path) -> None:
    config = tiny(tmp_path, pruning__scope="erk", particles__count=1)
    planned = planned_costs(prepare(config))
    assert planned.has_layer_densities
    run(config)
    for record, cost in zip(records_of(tmp_path), planned.rounds, strict=True):
        assert cost.sparse_flops == pytest.approx(record["cost"]["sparse_flops"])


def test_a_network_whose_flops_cannot_be_counted_says_so_and_shows_its_epochs(tmp_path: Path) -> None:
    config = tiny(tmp_path, model__name="tests.uncountable:Odd", particles__count=1, pruning__target=0.5)
    prepared = prepare(config)
    (line,) = cost_lines(prepared)
    assert line == ("costs 5 epochs of all particles, 5 one after the other, FLOPs not known: no operation that torch "
                    "has a formula for multiplies by odd.weight")
    assert [list(column.cells)[-2:] for column in rounds_table(prepared).columns][-2:] == [["-", "-"], ["-", "-"]]
    run(config)
    last = records_of(tmp_path)[-1]
    assert last["cost_so_far"] == {"total_epochs": 5, "critical_epochs": 5, "dense_flops": None, "sparse_flops": None}
    about = json.loads((tmp_path / "runs/tiny/run.json").read_text())
    assert about["flops"] == {"reason": prepared.flops.reason}


@pytest.mark.parametrize(("flops", "text"), [
    (None, "-"), (0.0, "0 FLOPs"), (532.0, "532 FLOPs"), (1.5e6, "1.5 MFLOPs"), (9.996e8, "1 GFLOPs"),
    (123.4e12, "123 TFLOPs"), (float("nan"), "-")])
def test_flops_in_words(flops: float | None, text: str) -> None:
    assert flops_text(flops) == text


def test_costs_in_words() -> None:
    whole = {"total_epochs": 1386.0, "critical_epochs": 30.25, "dense_flops": 1.17e12, "sparse_flops": 3.28e11}
    assert cost_text(whole) == ("1,386 epochs of all particles, 30.2 one after the other, 1.17 TFLOPs (328 GFLOPs at "
                                "the masks' density)")
    assert epochs_text(None) == "-"
