"""Overlap of masks between runs, from tickets that were made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from swamp_ray.report.charts.masks import by_chance, jaccard, mask_overlaps, masks_of
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.storage.tickets import ticket_bytes
from tests.figures import drawn, flaws, made_run, record

SIZE = 100


def masked_run(folder: Path, name: str, masks: dict[int, set[int]], **values: object) -> ReportRun:
    """A run of one layer of 100 weights; by round which of them its mask keeps."""
    records = []
    for index, kept in masks.items():
        mask = torch.tensor([weight in kept for weight in range(SIZE)])
        file = f"runs/{name}/tickets/{index}.safetensors"
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(ticket_bytes({"w": mask.float()}, {"w": mask}, {}))
        records.append(record(index, len(kept) / SIZE, ticket=file) | {"survivors": len(kept)})
    return made_run(folder, name, records, **values)  # pyright: ignore[reportArgumentType]


def numbers(*bounds: int) -> set[int]:
    return set(range(*bounds))


@pytest.fixture
def runs(tmp_path: Path) -> list[ReportRun]:
    """Two arms with two seeds each; at 50 weights the seeds of an arm have 25 in common, at 20 none."""
    dense = numbers(100)
    return [
        masked_run(tmp_path, "a0", {0: dense, 1: numbers(50), 2: numbers(20)}, arm="a", seed=0),
        masked_run(tmp_path, "a1", {0: dense, 1: numbers(25, 75), 2: numbers(25, 45)}, arm="a", seed=1),
        masked_run(tmp_path, "b0", {0: dense, 1: numbers(50), 2: numbers(10, 30)}, arm="b", seed=0),
        masked_run(tmp_path, "b1", {0: dense, 1: numbers(25, 75), 2: numbers(25, 45)}, arm="b", seed=1),
    ]


def test_pairs_are_told_apart_by_arm_and_seed(runs: list[ReportRun]) -> None:
    matrix, curve = mask_overlaps(runs)
    assert (matrix.name, curve.name) == ("mask_overlap_of_runs", "mask_overlap_against_sparsity")
    means = drawn(curve).set_index(["pair", "arm", "density"])["mean"]
    assert means["same arm, other seed", "a", 0.5] == pytest.approx(25 / 75)
    assert means["same arm, other seed", "b", 0.5] == pytest.approx(25 / 75)
    assert means["other arm, same seed", "", 0.5] == 1.0
    assert means["other arm, same seed", "", 0.2] == pytest.approx((10 / 30 + 1) / 2)
    assert drawn(curve)["by_chance"].tolist() == pytest.approx([by_chance(d) for d in drawn(curve)["density"]])
    assert 1.0 not in set(drawn(curve)["density"]), "dense masks have everything in common"


def test_the_matrix_is_of_the_sparsest_round_that_all_have(runs: list[ReportRun]) -> None:
    matrix, _ = mask_overlaps(runs)
    assert set(drawn(matrix)["survivors"]) == {20}
    pairs = drawn(matrix).set_index(["first", "second"])["overlap"]
    assert len(pairs) == 6
    assert pairs["a0", "a1"] == 0.0
    assert pairs["a0", "b0"] == pytest.approx(10 / 30)
    assert "80 % sparsity" in matrix.caption
    assert "4 runs" in matrix.caption


def test_masks_that_are_nested_are_said_to_be_and_others_are_not(tmp_path: Path) -> None:
    nested = [masked_run(tmp_path, f"n{seed}", {0: numbers(50), 1: numbers(20)}, seed=seed) for seed in (0, 1)]
    assert "lies in the one before" in mask_overlaps(nested)[0].caption
    back = masked_run(tmp_path, "back", {0: numbers(50), 1: numbers(45, 65)}, seed=2)
    assert "up to 15 weights" in mask_overlaps([nested[0], back])[0].caption


def test_what_cannot_be_compared_is_left_out(tmp_path: Path, runs: list[ReportRun]) -> None:
    assert mask_overlaps([]) == mask_overlaps(runs[:1]) == []
    gone = made_run(tmp_path, "gone", [record(0, 0.5, ticket="runs/gone/none") | {"survivors": 50}])
    assert mask_overlaps([runs[0], gone]) == []
    assert masks_of(gone, {50}).bits == {}
    with_gone = mask_overlaps([*runs, gone])
    assert set(drawn(with_gone[0])["first"]) == {"a0", "a1", "b0"}


def test_chance_is_what_random_masks_have_in_common() -> None:
    generator = np.random.default_rng(0)
    one, other = (np.packbits(generator.random(200_000) < 0.3) for _ in range(2))
    assert jaccard(one, other) == pytest.approx(by_chance(0.3), abs=0.005)
    assert jaccard(one, one) == 1.0
    assert jaccard(np.zeros(3, np.uint8), np.zeros(3, np.uint8)) == 1.0


def test_many_runs_stay_legible(tmp_path: Path) -> None:
    many = [masked_run(tmp_path, f"an-arm-with-a-long-name-{arm}-seed{seed}", {0: numbers(arm, 50 + arm)},
                       arm=f"an-arm-with-a-long-name-{arm}", seed=seed) for arm in range(9) for seed in range(3)]
    for chart in mask_overlaps(many):
        assert flaws(chart.figure) == [], chart.name
