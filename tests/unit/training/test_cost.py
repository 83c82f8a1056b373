"""The account of cost, by hand: epochs of all, epochs one after the other, FLOPs with and without the mask."""

from __future__ import annotations

from typing import Any

import pytest

from swamp_ray.config.reading import build_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.training.cost import Cost, NetworkFlops, Stretch, cost_of, dense_phases, round_phases

NETWORK = NetworkFlops({"first.weight": 1000.0, "second.weight": 200.0}, rest=30.0)
HALF_AND_QUARTER = {"first.weight": 0.5, "second.weight": 0.25}


def config_of(**sections: Any) -> SwampConfig:
    base = {"dense": {"length": 1}, "round": {"length": 4}, "averaging": {"within": "none"}, "particles": {"count": 3}}
    return build_config({**base, **sections})


class TestPhases:
    def test_particles_side_by_side_count_in_full_in_the_total_and_once_in_the_critical_path(self) -> None:
        training = (Stretch(40),)
        found = cost_of([(training,) * 3], 10, 16, NETWORK, HALF_AND_QUARTER)
        # 3 particles of 40 steps of 16 samples; 1230 FLOPs of a forward pass, 500 + 50 + 30 of them left.
        assert found == Cost(12.0, 4.0, 3 * 40 * 16 * 3 * 1230.0, 3 * 40 * 16 * 3 * 580.0)

    def test_the_longest_of_different_trainings_is_the_critical_one(self) -> None:
        found = cost_of([((Stretch(10),), (Stretch(25),), (Stretch(15),))], 10, 1, None, None)
        assert found == Cost(5.0, 2.5, None, None)

    def test_a_trunk_is_trained_once_and_its_particles_after_it(self) -> None:
        """A fork at 3/4 of 8 epochs with 4 particles: 6 + 4 x 2 epochs, 6 + 2 of them one after the other."""
        trunk, particle = (Stretch(60),), (Stretch(20),)
        found = cost_of([(trunk,), (particle,) * 4], 10, 16, NETWORK, HALF_AND_QUARTER)
        assert (found.total_epochs, found.critical_epochs) == (14.0, 8.0)
        assert found.sparse_flops == (60 + 4 * 20) * 16 * 3 * 580.0

    def test_two_gradients_a_step_are_two_epochs_and_twice_the_flops(self) -> None:
        found = cost_of([((Stretch(40, gradients=2),),)], 10, 16, NETWORK, HALF_AND_QUARTER)
        assert found == Cost(8.0, 8.0, 2 * 40 * 16 * 3 * 1230.0, 2 * 40 * 16 * 3 * 580.0)

    def test_density_may_change_along_a_training(self) -> None:
        training = (Stretch(10, density=1.0), Stretch(10, density=0.5), Stretch(20))
        found = cost_of([(training,)], 10, 1, NETWORK, HALF_AND_QUARTER)
        assert found.sparse_flops == 3 * (10 * 1230.0 + 10 * (500 + 100 + 30) + 20 * 580.0)

    def test_a_dense_gradient_costs_a_third_of_a_dense_step_in_place_of_a_sparse_one(self) -> None:
        """Evci et al. (2020): 2 f_S + f_D in a step of RigL that grows, 3 f_S in all others."""
        found = cost_of([((Stretch(100, dense_gradients=4),),)], 10, 1, NETWORK, HALF_AND_QUARTER)
        assert found.sparse_flops == 96 * 3 * 580.0 + 4 * (2 * 580.0 + 1230.0)
        assert found.dense_flops == 100 * 3 * 1230.0

    def test_what_cannot_be_counted_stays_unknown_in_sums(self) -> None:
        known = Cost(1.0, 1.0, 5.0, 4.0)
        assert known + Cost(2.0, 1.0, 5.0, None) == Cost(3.0, 2.0, 10.0, None)
        assert cost_of([((Stretch(5),),)], 5, 1, NETWORK, None).sparse_flops is None


class TestPrograms:
    def test_a_round_of_several_particles(self) -> None:
        phases = round_phases(config_of(), 10, 0, range(3), 0.0)
        assert phases == (((Stretch(40),), (Stretch(40),), (Stretch(40),)),)

    def test_retraining_is_shorter_from_the_second_round_on(self) -> None:
        config = config_of(round={"length": 4, "schedule": "retrain", "retrain_length": 1}, rewind={"weights": "none"})
        assert [round_phases(config, 10, index, [0], 0.0)[0][0][0].steps for index in (0, 1, 2)] == [40, 10, 10]

    def test_particles_of_different_lengths(self) -> None:
        config = config_of(particles={"count": 3, "vary": {"length": [2, 5]}})
        found = cost_of(round_phases(config, 10, 0, range(3), 0.0), 10, 1, None, None)
        assert (found.total_epochs, found.critical_epochs) == (2 + 5 + 2, 5)

    def test_only_particles_that_entered_count(self) -> None:
        config = config_of(particles={"count": 3, "vary": {"length": [2, 5]}})
        found = cost_of(round_phases(config, 10, 0, [0, 2], 0.0), 10, 1, None, None)
        assert (found.total_epochs, found.critical_epochs) == (4, 2)

    def test_the_dense_phase_has_every_weight(self) -> None:
        found = cost_of(dense_phases(config_of(), 10), 10, 16, NETWORK, HALF_AND_QUARTER)
        assert found == Cost(1.0, 1.0, 10 * 16 * 3 * 1230.0, 10 * 16 * 3 * 1230.0)

    @pytest.mark.parametrize("sections", [{"dense": {"length": 0}}, {"rewind": {"weights": "init"}}])
    def test_there_may_be_no_dense_phase(self, sections: dict[str, Any]) -> None:
        assert cost_of(dense_phases(config_of(**sections), 10), 10, 16, NETWORK, {}) == Cost()

    @pytest.mark.parametrize(("num", "total"), [(1, 8), (2, 10), (4, 14)])
    def test_a_late_fork_trains_its_trunk_once(self, num: int, total: int) -> None:
        """f T + N (1 - f) T with T = 8 and f = 3/4, and T one after the other."""
        config = config_of(round={"length": 8}, particles={"count": num, "fork_at": 0.75})
        found = cost_of(round_phases(config, 10, 0, range(num), 0.0), 10, 1, None, None)
        assert (found.total_epochs, found.critical_epochs) == (total, 8)


CHANGING: dict[str, Any] = {"dense": {"length": 0}, "particles": {"count": 1}}


class TestMasksThatChange:
    def test_growth_by_the_gradient_needs_it_whole_at_each_change(self) -> None:
        pruning = {"when": "dynamic", "scope": "erk", "updates": {"every": "5 steps", "until": 0.75}}
        [phase] = round_phases(config_of(**CHANGING, pruning=pruning), 10, 0, [0], 0.9)
        assert phase == ((Stretch(35), Stretch(5, dense_gradients=5)),), "at steps 5 to 25 of 40, before step 30"

    def test_growth_at_random_needs_no_gradient(self) -> None:
        pruning = {"when": "dynamic", "scope": "erk", "updates": {"every": "5 steps", "grow": "random"}}
        [phase] = round_phases(config_of(**CHANGING, pruning=pruning), 10, 0, [0], 0.9)
        assert phase == ((Stretch(40),),)

    def test_replicas_are_trained_one_after_the_other(self) -> None:
        pruning = {"when": "dynamic", "scope": "erk", "updates": {"every": "5 steps"}}
        config = config_of(**{**CHANGING, "particles": {"count": 4}}, pruning=pruning)
        found = cost_of(round_phases(config, 10, 0, [0], 0.9), 10, 16, None, None)
        assert (found.total_epochs, found.critical_epochs) == (16.0, 16.0)

    def test_a_change_by_the_gradient_takes_one_gradient_under_sam_too(self) -> None:
        pruning = {"when": "dynamic", "scope": "erk", "updates": {"every": "5 steps"}}
        [phase] = round_phases(config_of(**CHANGING, pruning=pruning, training={"sam_rho": 0.05}), 10, 0, [0], 0.9)
        assert phase == ((Stretch(35, gradients=2), Stretch(5, dense_gradients=5)),)

    def test_gradual_pruning_is_dense_at_first_and_falls_along_a_cubic(self) -> None:
        pruning = {"when": "gradual", "target": 0.8, "updates": {"every": "10 steps", "begin": 0.25, "until": 0.75}}
        [[training]] = round_phases(config_of(**CHANGING, pruning=pruning), 10, 0, [0], 0.8)
        assert [(one.steps, one.density) for one in training] == [
            (20, 1.0), (10, pytest.approx(0.2 + 0.8 * 0.5**3)), (10, None)]
