"""Runs as a report reads them: grouped into arms by what they trained, not by what they are called."""

from __future__ import annotations

from pathlib import Path

import pytest

from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.launch import run
from swamp_ray.report.load.runs import arms_of, read_runs
from tests.helpers import tiny


def test_runs_that_differ_in_their_seed_are_one_arm(tmp_path: Path) -> None:
    imp = [tiny(tmp_path, name=f"imp-seed{seed}", seed=seed, particles__count=1) for seed in (0, 1)]
    swamp = tiny(tmp_path, name="swamp-seed0", seed=0, particles__count=2)
    assert arms_of(["imp-seed0", "imp-seed1", "swamp-seed0"], [*imp, swamp]) == ["imp", "imp", "swamp-seed0"]


def test_different_recipes_never_share_a_name(tmp_path: Path) -> None:
    configs = [tiny(tmp_path, seed=seed, particles__count=count) for count in (1, 2) for seed in (0, 1)]
    names = ["a-seed0", "a-seed1", "a-seed2", "a-seed3"]
    assert arms_of(names, configs) == ["a-seed0", "a-seed0", "a-seed2", "a-seed2"]


def test_a_run_is_read_with_its_records_and_scalars(tmp_path: Path) -> None:
    done = run(tiny(tmp_path, name="one", pruning__target=0.5, particles__count=2))
    (found,) = read_runs(["one"], str(tmp_path))
    assert [record["sparsity"] for record in found.records] == [record.sparsity for record in done.records]
    rounds = found.metrics[found.metrics["kind"] == "round"]
    assert rounds["test/accuracy"].tolist() == [record.average["test"]["accuracy"] for record in done.records]
    assert (found.name, found.arm, found.seed, found.primary) == ("one", "one", done.prepared.config.seed, "accuracy")
    assert found.analyses == {}


def test_runs_that_start_from_different_files_are_different_arms(tmp_path: Path) -> None:
    configs = [tiny(tmp_path, seed=seed, start_from={"path": f"mask-{mask}"})
               for seed, mask in ((0, "a"), (1, "a"), (0, "b"))]
    assert arms_of(["a-seed0", "a-seed1", "b-seed0"], configs) == ["a", "a", "b-seed0"]


def test_one_recipe_and_seed_under_two_names_is_no_replication(tmp_path: Path) -> None:
    for name in ("one", "again"):
        run(tiny(tmp_path, name=name, pruning__target=0.5, particles__count=1))
    with pytest.raises(UserError, match="same run"):
        read_runs(["one", "again"], str(tmp_path))


def test_a_run_whose_config_is_empty_is_not_taken_for_one_of_defaults(tmp_path: Path) -> None:
    run(tiny(tmp_path, name="one", pruning__target=0.5, particles__count=1))
    (tmp_path / "runs" / "one" / "config.yaml").write_text("")
    with pytest.raises(CorruptArtifactError, match="empty"):
        read_runs(["one"], str(tmp_path))


def test_a_run_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    run(tiny(tmp_path, name="one", pruning__target=0.5, particles__count=1))
    with pytest.raises(UserError, match="named once"):
        read_runs(["one", str(tmp_path / "runs" / "one")], str(tmp_path))
