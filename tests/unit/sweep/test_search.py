"""Searchers and schedulers of a sweep, without Ray running."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from swamp_ray.config.sweep import Domain
from swamp_ray.config.sweep_reading import build_sweep
from swamp_ray.config.sweep_settings import Sweep
from swamp_ray.errors import UserError
from swamp_ray.sweep.schedulers import Halving, MedianOverMilestones, make_scheduler
from swamp_ray.sweep.search import InSpace, ListedSettings, SpaceForTune, check_search, make_search, search_seed

METRIC = "average/validation/accuracy"
GO, STOP = TrialScheduler.CONTINUE, TrialScheduler.STOP

MODULE = '''
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

class Fixed(Searcher):
    def __init__(self, space, metric, mode, seed, points_to_evaluate, lr=0.1):
        super().__init__(metric=metric, mode=mode)
        self.given = (space, seed, points_to_evaluate, lr)

    def suggest(self, trial_id):
        return {"training.lr": self.given[3]}

def searcher(space, *, metric, mode, seed, points_to_evaluate, lr=0.1):
    return Fixed(space, metric, mode, seed, points_to_evaluate, lr)

def nothing(space, **keywords):
    return None

def broken(space, **keywords):
    raise RuntimeError("no licence")

def scheduler(*, num_milestones, metric, mode, patience=1):
    made = FIFOScheduler()
    made.given = (num_milestones, metric, mode, patience)
    return made

def no_scheduler(**keywords):
    return None

number = 3
'''


def sweep(space: dict[str, Any] | None = None, **values: Any) -> Sweep:
    space = space or {"training.lr": {"loguniform": [0.001, 1.0]}}
    return build_sweep({"base": {}, "space": space, "at_sparsity": [0.5, 0.75, 0.9]} | values)


def searched(name: str, space: dict[str, Any] | None = None, seed: int = 0, **options: Any) -> Sweep:
    return sweep(space, search={"name": name, "seed": seed, "options": options})


def scheduled(name: str, **options: Any) -> Sweep:
    return sweep(scheduler={"name": name, "options": options})


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module of the user's."""
    (tmp_path / "own_search.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_search", raising=False)
    return "own_search"


class TestListedSettings:
    @given(st.lists(st.fixed_dictionaries({"training.lr": st.floats(0, 1)})))
    def test_suggests_the_list_in_its_order_and_ends(self, settings: list[dict[str, Any]]) -> None:
        searcher = ListedSettings(settings)
        assert [searcher.suggest(str(index)) for index in range(len(settings))] == settings
        assert searcher.suggest("one more") == searcher.suggest("and another") == Searcher.FINISHED

    def test_a_random_search_suggests_what_was_recorded_first_and_everything_once(self) -> None:
        one = sweep(num_samples=4, space={"training.lr": {"loguniform": [0.001, 1.0]},
                                          "particles.count": {"grid": [2, 4]}})
        settings = one.settings()
        recorded = [settings[5], settings[2]]
        searcher = make_search(one, recorded)
        found = [searcher.suggest(str(index)) for index in range(len(settings))]
        assert found[:2] == recorded
        assert found[2:] == [setting for setting in settings if setting not in recorded]
        assert searcher.suggest("end") == Searcher.FINISHED


class TestSpaceForTune:
    SPACE: ClassVar = {
        "training.lr": Domain(loguniform=(0.001, 1.0)),
        "training.clip_norm": Domain(choice=(None, 1, 1.5)),
        "mixed": Domain(choice=(True, 1, "true")),
        "lists": Domain(choice=([1, 2], [1], None)),
        "batch/size & rate": Domain(choice={"small": {"training.batch_size": 32},
                                            "large": {"training.batch_size": 64}}),
    }

    def settings(self) -> list[dict[str, Any]]:
        return [{"training.lr": 0.01, "training.clip_norm": clip, "mixed": mixed, "lists": values,
                 "batch/size & rate": group}
                for clip in (None, 1, 1.5) for mixed in (True, 1, "true") for values in ([1, 2], [1], None)
                for group in ("small", "large")]

    def test_every_setting_comes_back_with_the_types_it_had(self) -> None:
        space = SpaceForTune(self.SPACE)
        for setting in self.settings():
            found = space.setting(space.point(setting))
            assert found == setting
            assert [type(value) for value in found.values()] == [type(value) for value in setting.values()]

    def test_no_name_has_a_slash_and_all_choices_differ(self) -> None:
        domains = SpaceForTune(self.SPACE).domains()
        assert not any("/" in name for name in domains)
        assert all(len(set(domain.categories)) == len(domain.categories) for domain in domains.values()
                   if hasattr(domain, "categories"))

    def test_a_draw_that_rounding_put_outside_comes_back_inside(self) -> None:
        space = SpaceForTune({"training.lr": Domain(loguniform=(0.001, 1.0))})
        assert space.setting({"training.lr": 1.0000000000000002}) == {"training.lr": 1.0}


class Recorder(Searcher):
    """A searcher that notes what it is told."""

    def __init__(self) -> None:
        super().__init__(metric=METRIC, mode="max")
        self.told: list[Any] = []

    def suggest(self, trial_id: str) -> Any:
        return None

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.told.append((result["training_iteration"], result[METRIC]))

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.told.append("failed" if error else "pruned" if result is None else result[METRIC])


def report(milestone: int, value: float, complete: bool = False, metric: str = METRIC) -> dict[str, Any]:
    return {"milestone": milestone, metric: value, "training_iteration": 17} | ({"complete": True} if complete else {})


class TestWhatASearcherIsTold:
    def make(self, knows_stopped: bool, mode: str = "max") -> tuple[InSpace, list[Any]]:
        inner = Recorder()
        return InSpace(inner, SpaceForTune({}), METRIC, mode, knows_stopped), inner.told

    def test_a_complete_setting_with_its_value(self) -> None:
        searcher, told = self.make(knows_stopped=True)
        searcher.on_trial_result("a", report(1, 0.9))
        searcher.on_trial_complete("a", report(2, 0.8, complete=True))
        assert told == [(1, 0.9), 0.8]

    def test_a_stopped_one_as_stopped_with_the_milestone_that_led_to_it(self) -> None:
        searcher, told = self.make(knows_stopped=True)
        searcher.on_trial_result("a", report(1, 0.9))
        searcher.on_trial_complete("a", report(2, 0.7))
        assert told == [(1, 0.9), (2, 0.7), "pruned"]

    @pytest.mark.parametrize(("mode", "values"), [("max", (0.8, 0.2)), ("min", (0.2, 2.0))])
    def test_or_as_worse_than_all_that_was_seen(self, mode: str, values: tuple[float, float]) -> None:
        searcher, told = self.make(knows_stopped=False, mode=mode)
        for trial, value in zip("ab", values, strict=True):
            searcher.on_trial_complete(trial, report(3, value, complete=True))
        searcher.on_trial_complete("c", report(1, 0.99 if mode == "max" else 0.01))
        assert told[2] < min(values) if mode == "max" else told[2] > max(values)

    def test_a_milestone_that_comes_again_only_once(self) -> None:
        searcher, told = self.make(knows_stopped=True)
        for milestone in (1, 2, 1, 2, 3):
            searcher.on_trial_result("a", report(milestone, 0.5))
        assert told == [(1, 0.5), (2, 0.5), (3, 0.5)]

    @pytest.mark.parametrize("result", [None, {}, {"milestone": 1}, report(1, math.nan), report(2, -math.inf, True)])
    def test_without_a_finite_value_that_it_failed(self, result: dict[str, Any] | None) -> None:
        searcher, told = self.make(knows_stopped=False)
        searcher.on_trial_complete("a", result)
        assert told == ["failed"]


class TestErrorsOfASearch:
    @pytest.mark.parametrize(("one", "text"), [
        (searched("optun"), "search.name: must be random, optuna, hyperopt or package.module:function, but got "
                            "'optun'. Did you mean 'optuna'?"),
        (scheduled("ascha"), "Did you mean 'asha'?"),
        (sweep(search={"options": {"seed": 3}}), "There are none. The seed is search.seed."),
        (scheduled("none", grace_period=2), "scheduler.options: there is no such option, but got 'grace_period'"),
        (scheduled("asha", grace=2), "Did you mean 'grace_period'? There are: grace_period, reduction_factor."),
        (scheduled("asha", grace_period=4), "must be at most the number of milestones, 3"),
        (scheduled("asha", grace_period=0), "must be a whole number of at least 1, but got 0"),
        (scheduled("asha", grace_period=1.5), "scheduler.options.grace_period: must be a whole number"),
        (scheduled("asha", reduction_factor=1), "must be a number above 1"),
        (scheduled("asha", reduction_factor="2"), "must be a number above 1: one setting in so many goes on, but got"),
        (scheduled("median", min_samples_required=True), "must be a whole number"),
        (scheduled("median", hard_stop="no"), "must be true or false, but got 'no'"),
    ])
    def test_say_what_there_is(self, one: Sweep, text: str) -> None:
        with pytest.raises(UserError) as caught:
            check_search(one)
        assert text in str(caught.value)

    @pytest.mark.parametrize("package", ["optuna", "hyperopt"])
    def test_a_missing_package_comes_with_the_command(self, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=rf"needs the package {package}.*pip install 'swamp_ray\[{package}\]'"):
            check_search(searched(package))

    @pytest.mark.parametrize(("options", "text"), [
        ({"gama": 0.3}, "Did you mean 'gamma'? There are: n_initial_points, gamma."),
        ({"gamma": 1.0}, "must lie in (0, 1), but got 1.0"),
        ({"n_initial_points": 0}, "whole number of at least 1"),
        ({"random_state_seed": 1}, "The seed is search.seed."),
    ])
    def test_options_of_hyperopt(self, options: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "hyperopt", SimpleNamespace())
        with pytest.raises(UserError) as caught:
            check_search(searched("hyperopt", **options))
        assert text in str(caught.value)

    def test_grace_is_checked_once_the_milestones_are_known(self) -> None:
        one = sweep(scheduler={"name": "asha", "options": {"grace_period": 4}}, at_sparsity=[])
        check_search(one)
        check_search(one, num_milestones=4)
        with pytest.raises(UserError, match="number of milestones, 3"):
            check_search(one, num_milestones=3)


class TestOwnCode:
    def test_a_searcher_is_given_the_space_and_what_was_recorded(self, own: str) -> None:
        one = searched(f"{own}:searcher", lr=0.5)
        check_search(one)
        made: Any = make_search(one, [{"training.lr": 0.25}])
        space, seed, points, lr = made._inner.given
        assert (space["training.lr"].lower, space["training.lr"].upper) == (0.001, 1.0)
        assert (seed, points, lr) == (search_seed(one, 1), [{"training.lr": 0.25}], 0.5)
        assert made.suggest("a") == {"training.lr": 0.5}
        assert (made.metric, made.mode) == (METRIC, "max")

    @pytest.mark.parametrize(("name", "options", "text"), [
        ("searcher", {"rate": 1}, "unexpected keyword argument 'rate'"),
        ("sercher", {}, "Did you mean 'searcher'?"),
        ("number", {}, "search.name: must name a function, but got 'int'"),
    ])
    def test_what_cannot_work_is_found_without_calling_it(self, own: str, name: str, options: dict[str, Any],
                                                          text: str) -> None:
        with pytest.raises(UserError) as caught:
            check_search(searched(f"{own}:{name}", **options))
        assert text in str(caught.value)

    def test_its_own_error_is_shown(self, own: str) -> None:
        with pytest.raises(UserError, match="RuntimeError: no licence"):
            make_search(searched(f"{own}:broken"), [])

    def test_it_must_return_a_searcher(self, own: str) -> None:
        with pytest.raises(UserError, match="must return a Searcher of Ray Tune, but got 'NoneType'"):
            make_search(searched(f"{own}:nothing"), [])

    def test_a_scheduler_is_given_the_milestones(self, own: str) -> None:
        one = scheduled(f"{own}:scheduler", patience=2)
        check_search(one)
        made: Any = make_scheduler(one, 3)
        assert made.given == (3, METRIC, "max", 2)
        with pytest.raises(UserError, match="must return a TrialScheduler"):
            make_scheduler(scheduled(f"{own}:no_scheduler"), 3)


class TestSeeds:
    def test_a_restart_draws_anew_and_the_same_start_the_same(self) -> None:
        one = searched("optuna", seed=3)
        seeds = [search_seed(one, recorded) for recorded in range(50)]
        assert seeds == [search_seed(searched("optuna", seed=3), recorded) for recorded in range(50)]
        assert len({*seeds, *(search_seed(searched("optuna", seed=4), recorded) for recorded in range(50))}) == 100
        assert all(0 <= seed < 2**31 for seed in seeds)


class Trials:
    """Settings that report to a scheduler, as Ray would hand their reports on."""

    def __init__(self, scheduler: Any, metric: str = METRIC) -> None:
        self.scheduler, self.metric = scheduler, metric
        self.trials: dict[str, Any] = {}

    def report(self, name: str, milestone: int, value: float, complete: bool = False) -> str:
        if name not in self.trials:
            self.trials[name] = Named(name)
            self.scheduler.on_trial_add(None, self.trials[name])
        result = report(milestone, value, complete, self.metric)
        decision = self.scheduler.on_trial_result(self, self.trials[name], result)
        if decision == STOP or complete:
            self.scheduler.on_trial_complete(self, self.trials[name], result)
        return decision

    def get_live_trials(self) -> list[Any]:
        """Ray's controller has others waiting."""
        return [Named("waiting", "PENDING")]


class Named:
    def __init__(self, trial_id: str, status: str = "RUNNING") -> None:
        self.trial_id, self.status = trial_id, status


class TestHalving:
    def make(self, mode: str = "max", milestones: int = 4, **options: Any) -> Trials:
        return Trials(make_scheduler(sweep(scheduler={"name": "asha", "options": options}, mode=mode), milestones))

    def test_the_worse_half_stops(self) -> None:
        trials = self.make()
        assert [trials.report(name, 1, value) for name, value in zip("abcd", (0.5, 0.6, 0.4, 0.7), strict=True)] == [
            GO, GO, STOP, GO]
        assert [trials.report(name, 2, value) for name, value in zip("abd", (0.6, 0.5, 0.7), strict=True)] == [
            GO, STOP, GO]

    def test_the_smaller_value_goes_on_with_min(self) -> None:
        trials = self.make(mode="min")
        assert [trials.report("a", 1, 0.5), trials.report("b", 1, 0.6), trials.report("c", 1, 0.4)] == [GO, STOP, GO]

    def test_grace_period_and_reduction_factor(self) -> None:
        trials = self.make(grace_period=2, reduction_factor=4)
        values = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}
        assert [trials.report(name, 1, value) for name, value in values.items()] == [GO] * 4
        assert [trials.report(name, 2, value) for name, value in values.items()] == [GO, STOP, STOP, STOP]

    @pytest.mark.parametrize("milestones", [1, 2, 3, 4, 5, 8])
    def test_a_complete_setting_is_never_stopped(self, milestones: int) -> None:
        trials = self.make(milestones=milestones)
        for milestone in range(1, milestones + 1):
            assert trials.report("good", milestone, 0.9) == GO
        assert trials.report("good", milestones + 1, 0.1, complete=True) == GO
        assert trials.report("finished", milestones, 0.2, complete=True) == GO
        assert trials.report("also", milestones + 1, 0.2, complete=True) == GO

    def test_a_complete_setting_counts_for_the_others(self) -> None:
        trials = self.make()
        assert trials.report("complete", 1, 0.9, complete=True) == GO
        assert trials.report("new", 1, 0.5) == STOP

    def test_a_late_report_is_not_filed_under_an_earlier_rung(self) -> None:
        trials = self.make()
        assert trials.report("skips", 4, 0.3) == GO
        assert trials.report("skips", 5, 0.9, complete=True) == GO
        assert trials.report("new", 1, 0.2) == GO

    def test_reports_that_come_again_change_nothing(self) -> None:
        trials = self.make()
        for name, value in (("a", 0.5), ("b", 0.6)):
            assert trials.report(name, 1, value) == GO
        assert trials.report("b", 2, 0.6) == GO
        assert [trials.report("a", 1, 0.5), trials.report("a", 2, 0.7)] == [GO, GO]

    def test_a_value_that_is_no_number_stops(self) -> None:
        trials = self.make(grace_period=2)
        assert trials.report("a", 1, math.nan) == GO
        assert trials.report("a", 2, math.nan) == STOP
        assert trials.report("b", 2, 0.1) == GO

    def test_needs_no_metric_of_tune(self) -> None:
        assert Halving(2, METRIC, "max").set_search_properties(METRIC, "max")
        assert MedianOverMilestones(METRIC, "max").set_search_properties(None, None)


class TestMedian:
    def make(self, mode: str = "max", **options: Any) -> Trials:
        return Trials(make_scheduler(sweep(scheduler={"name": "median", "options": options}, mode=mode), 3))

    def test_who_collapses_after_a_good_start_stops(self) -> None:
        trials = self.make()
        for name in "abc":
            assert trials.report(name, 1, 0.8) == GO
            assert trials.report(name, 2, 0.7) == GO
        assert trials.report("late", 1, 0.81) == GO
        assert trials.report("late", 2, 0.2) == STOP

    def test_waits_for_enough_settings_without_pausing(self) -> None:
        trials = self.make(min_samples_required=2)
        assert [trials.report(name, 1, value) for name, value in zip("abc", (0.9, 0.8, 0.1), strict=True)] == [
            GO, GO, STOP]

    def test_grace_period(self) -> None:
        trials = self.make(min_samples_required=1, grace_period=2)
        assert [trials.report("a", 1, 0.9), trials.report("b", 1, 0.1)] == [GO, GO]
        assert [trials.report("a", 2, 0.9), trials.report("b", 2, 0.1)] == [GO, STOP]

    def test_a_soft_stop_pauses_and_lets_it_finish_later(self) -> None:
        trials = self.make(min_samples_required=1, hard_stop=False)
        trials.report("a", 1, 0.9)
        assert trials.report("b", 1, 0.1) == TrialScheduler.PAUSE
        assert [trials.report("b", milestone, 0.1) for milestone in (1, 2, 3)] == [GO] * 3

    def test_a_complete_setting_is_never_stopped_and_counts(self) -> None:
        trials = self.make(min_samples_required=1)
        trials.report("a", 1, 0.9)
        assert trials.report("b", 1, 0.1, complete=True) == GO
        assert trials.report("c", 1, 0.3) == STOP

    def test_a_value_that_is_no_number_stops(self) -> None:
        assert self.make().report("a", 1, math.nan) == STOP


def test_none_stops_nobody() -> None:
    trials = Trials(make_scheduler(scheduled("none"), 3))
    assert isinstance(trials.scheduler, FIFOScheduler)
    assert [trials.report(name, 1, value) for name, value in (("a", 0.9), ("b", 0.1))] == [GO, GO]
