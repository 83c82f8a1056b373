"""Lottery Pools: as an obvious loop makes them, chosen on validation alone; a pool of one ticket is that ticket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from swamp_ray import load_ticket
from swamp_ray.analysis import lottery_pools
from swamp_ray.analysis.bench import Bench, Point
from swamp_ray.analysis.lottery_pools import COEFFICIENTS, keep_pool, lottery_pool, neighbours, pool_network
from swamp_ray.cli import main
from swamp_ray.config.reading import with_values
from swamp_ray.launch import run
from swamp_ray.run.prepare import prepare
from swamp_ray.storage.run_folder import RunDir
from tests.helpers import tiny


def bench_of(storage: Path, **values: Any) -> Bench:
    run(tiny(storage, **values))
    return Bench(RunDir(storage, "tiny"))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return bench_of(tmp_path_factory.mktemp("pools"), pruning__rate=0.5, pruning__target=0.875, data__validation=0.3,
                    averaging__within="none", particles__count=2, training__lr=0.01, round__length="4 steps",
                    dense__length="2 steps", training__schedule__warmup="1 step", dense__warmup="1 step")


def obvious_prune(point: np.ndarray, num: int, k: int) -> np.ndarray:
    order = sorted(range(num), key=lambda place: (-abs(point[place]), place))
    found = point.copy()
    found[order[k:]] = 0
    return found


def test_it_is_the_obvious_loop(bench: Bench) -> None:
    num = bench.layout.num_prunable
    entered = 0
    for index in bench.rounds:
        k = int(bench.mask(index).sum())

        def score(point: np.ndarray) -> float:
            return bench.measure(point, ("validation",))["validation"]["accuracy"]

        pool, members = bench.average(index), []
        best = score(pool)
        for distance in range(1, len(bench.rounds)):
            for other in (index - distance, index + distance):
                if other not in bench.rounds:
                    continue
                tried = []
                for c in COEFFICIENTS:
                    mixed = (1 - c) * pool.astype(np.float64) + c * bench.average(other).astype(np.float64)
                    point = mixed.astype(np.float32)
                    tried.append(obvious_prune(point, num, k) if k < num else point)
                scores = [score(point) for point in tried]
                if max(scores) > best:
                    best = max(scores)
                    pool = tried[scores.index(best)]
                    members.append({"round": other, "coefficient": COEFFICIENTS[scores.index(best)]})
        row = lottery_pool(bench, index)
        assert row["members"] == members
        assert row["after"]["validation"]["accuracy"] == best >= row["before"]["validation"]["accuracy"]
        found, mask = pool_network(bench, index, members)
        assert found.tobytes() == pool.tobytes()
        assert mask.sum() == k
        assert not np.any(found[:num][~mask])
        entered += len(members)
    assert entered, "some pool has a neighbour: else this test could not fail"


def test_neighbours_come_by_distance_the_denser_first(bench: Bench) -> None:
    assert bench.rounds == [0, 1, 2, 3]
    assert neighbours(bench, 2) == [1, 3, 0]
    assert neighbours(bench, 0) == [1, 2, 3]


def test_the_test_split_chooses_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    measure = Bench.measure

    def noted(self: Bench, point: Point, splits: Any = ("train", "test"), statistics: Any = None) -> Any:
        asked.append(tuple(splits))
        return measure(self, point, splits, statistics)

    monkeypatch.setattr(Bench, "measure", noted)
    row = lottery_pool(bench, 2)
    assert asked[0] == ("validation", "test")
    assert set(asked[1:1 + 3 * len(COEFFICIENTS)]) == {("validation",)}
    assert asked[1 + 3 * len(COEFFICIENTS):] == ([("validation", "test")] if row["members"] else [])


def test_a_pool_of_one_ticket_is_that_ticket(tmp_path: Path) -> None:
    bench = bench_of(tmp_path, pruning__target=0.0)
    row = lottery_pool(bench, 0)
    assert row["members"] == []
    assert row["after"] == row["before"]
    pool = load_ticket(keep_pool(bench, row).location)
    ticket = bench.ticket(0)
    assert pool.state.keys() == ticket.state.keys()
    assert all(torch.equal(pool.state[name], ticket.state[name]) for name in ticket.state)
    assert all(torch.equal(pool.masks[name], ticket.masks[name]) for name in ticket.masks)


def test_a_better_pool_is_a_ticket_that_can_be_used(bench: Bench, tmp_path: Path) -> None:
    index = next(index for index in bench.rounds[1:-1] if lottery_pool(bench, index)["members"])
    row = lottery_pool(bench, index)
    spot = keep_pool(bench, row)
    assert str(spot.location).endswith(row["ticket"])
    before = spot.read()
    assert keep_pool(bench, row).read() == before
    ticket = load_ticket(spot.location)
    assert ticket.meta["lottery_pool"] == row["members"]
    assert ticket.sparsity == pytest.approx(row["sparsity"])
    model = bench.trainer.model
    ticket.load_into(model)
    assert bench.trainer.metrics(("validation",))["validation"] == pytest.approx(row["after"]["validation"])
    further = with_values(bench.config, {"start_from": {"path": str(spot.location)}, "storage": str(tmp_path)})
    assert prepare(further).plan[0].sparsity == pytest.approx(row["sparsity"])


def test_a_structure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lottery_pools, "COEFFICIENTS", (0.5,))
    bench = bench_of(tmp_path, model__name="mlp", model__options={"hidden": [16, 8]}, pruning__structure="2:4",
                     pruning__target=0.5, pruning__rate=0.2, averaging__within="none")
    point, mask = pool_network(bench, 2, [{"round": 1, "coefficient": 0.5}, {"round": 0, "coefficient": 0.2}])
    assert set(mask.reshape(-1, 4).sum(axis=1).tolist()) == {2}
    assert not np.any(point[:mask.size][~mask])


def test_the_command_prints_keeps_and_does_not_measure_twice(bench: Bench) -> None:
    root = str(bench.rundir.place.uri)
    arguments = ["analyze", "lottery-pools", "tiny", "--storage", root]
    first = CliRunner().invoke(main, [*arguments, "--round", "2"])
    assert first.exit_code == 0, first.output
    assert "lottery-pools of tiny" in first.output
    assert "ticket:" in first.output
    again = CliRunner().invoke(main, [*arguments, "--json"])
    assert again.exit_code == 0, again.output
    rows = json.loads(again.stdout)["tiny"]
    assert [row["round"] for row in rows] == bench.rounds
    kept = json.loads(bench.rundir.analysis("lottery-pools").read() or b"{}")
    assert kept["rows"] == rows
    for row in rows:
        assert (Path(root) / row["ticket"]).is_file()
