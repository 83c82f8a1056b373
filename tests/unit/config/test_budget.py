"""A sweep's budget: rounds get the lengths with which every setting costs the same."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from swamp_ray.config.budget import Budget, with_budget
from swamp_ray.config.reading import build_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.errors import UserError
from swamp_ray.training.cost import Cost, cost_of, dense_phases, round_phases

STEPS = 1000
NO_MASKS = {"target": 0.75, "rate": 0.5}  # 1, 1/2 and 1/4 of the weights: three rounds


def config_of(**sections: Any) -> SwampConfig:
    base = {"dense": {"length": 2}, "round": {"length": 10}, "averaging": {"within": "none"}, "pruning": NO_MASKS,
            "particles": {"count": 1}}
    return build_config({**base, **sections})


def cost(config: SwampConfig, counts: tuple[int, ...] = (1, 1, 1)) -> Cost:
    """By the programs of its trainings."""
    phases = [*dense_phases(config, STEPS)]
    for index, count in enumerate(counts):
        phases += round_phases(config, STEPS, index, range(count), 1 - 0.5**index)
    return cost_of(phases, STEPS, 1, None, None)


CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "imp": ({}, (1, 1, 1)),
    "swamp": ({"particles": {"count": 4}, "averaging": {"within": "swa"}}, (4, 4, 4)),
    "swamp_plus": ({"particles": {"count": 1, "schedule": [{"sparsity": 0.5, "count": 3}]}}, (1, 3, 3)),
    "no dense phase": ({"rewind": {"weights": "init"}}, (1, 1, 1)),
    "continued": ({"rewind": {"schedule": "continue"}}, (1, 1, 1)),
    "soups": ({"round": {"length": 10, "schedule": "retrain", "retrain_length": 3}, "rewind": {"weights": "none"},
               "particles": {"count": 2}}, (2, 2, 2)),
    "a quarter": ({"round": {"length": 10, "schedule": "retrain"}, "rewind": {"weights": "none"}}, (1, 1, 1)),
    "varied": ({"particles": {"count": 3, "vary": {"length": [4, 8]}}}, (3, 3, 3)),
    "late fork": ({"particles": {"count": 4, "fork_at": 0.75}}, (4, 4, 4)),
}


@pytest.mark.parametrize("of", ["total", "critical"])
@pytest.mark.parametrize("case", CASES)
def test_programs_take_what_the_budget_says(case: str, of: Any) -> None:
    sections, counts = CASES[case]
    found = cost(with_budget(config_of(**sections), Budget(epochs=100, of=of)), counts)
    assert getattr(found, f"{of}_epochs") == pytest.approx(100, abs=len(counts) * 4 / STEPS)


def test_equal_totals_and_equal_critical_paths_by_hand() -> None:
    """98 epochs for three rounds: 3 x 4 particles of 8 1/6 epochs, or of 32 2/3."""
    config = config_of(particles={"count": 4})
    assert with_budget(config, Budget(epochs=100)).round.length.amount == pytest.approx(98 / 12)
    assert with_budget(config, Budget(epochs=100, of="critical")).round.length.amount == pytest.approx(98 / 3)


def test_proportions_of_lengths_stay() -> None:
    config = config_of(**CASES["soups"][0])
    found = with_budget(config, Budget(epochs=200)).round
    assert found.retrain_length is not None
    assert found.retrain_length.amount / found.length.amount == pytest.approx(0.3)


@pytest.mark.parametrize(("sections", "where"), [
    ({"round": {"length": "100 steps"}}, "round.length"), ({"dense": {"length": "10 steps"}}, "dense.length"),
    ({"particles": {"count": 2, "vary": {"length": ["5 steps", "6 steps"]}}}, r"particles.vary.length\[0\]")])
def test_lengths_in_steps_are_refused(sections: dict[str, Any], where: str) -> None:
    with pytest.raises(UserError, match=f"{where}: a sweep's budget needs lengths in epochs"):
        with_budget(config_of(**sections), Budget(epochs=100))


def test_a_budget_that_the_dense_phase_uses_up_is_refused() -> None:
    with pytest.raises(UserError, match=r"budget.epochs: the budget leaves no epochs for the rounds, but got 2"):
        with_budget(config_of(), Budget(epochs=2))


def test_a_given_start_is_refused() -> None:
    with pytest.raises(UserError, match="start_from: a sweep's budget cannot be met from a given start"):
        with_budget(config_of(start_from={"path": "ticket.safetensors"}), Budget(epochs=100))


TREE: dict[str, Any] = {"base": {"dense": {"length": 2}, "round": {"length": 10}, "pruning": NO_MASKS},
                        "space": {"particles.count": {"grid": [1, 4]}}}


def test_rounds_that_a_structure_decides_are_refused() -> None:
    with pytest.raises(UserError, match=r"pruning.structure: a sweep's budget cannot be met where"):
        with_budget(config_of(pruning={"structure": "2:4", "target": 0.5}), Budget(epochs=100))


class TestSweeps:
    def test_members_have_the_lengths(self) -> None:
        sweep = build_sweep({**TREE, "budget": {"epochs": 50}})
        lengths = [sweep.member({"particles.count": count}, 0).round.length.amount for count in (1, 4)]
        assert lengths == pytest.approx([16, 4])

    def test_a_stored_sweep_reads_back_with_its_budget(self) -> None:
        sweep = build_sweep({**TREE, "budget": {"epochs": 50}})
        again = build_sweep(yaml.safe_load(yaml.safe_dump(sweep.resolved())))
        assert again.identity() == sweep.identity()
        assert again.config.budget == Budget(epochs=50)

    def test_another_budget_is_another_sweep_and_none_is_that_of_before(self) -> None:
        plain, small, large = (build_sweep({**TREE, **budget}) for budget in (
            {}, {"budget": {"epochs": 50}}, {"budget": {"epochs": 60}}))
        assert "budget" not in plain.identity()
        assert small.identity() != large.identity()
