"""Where the settings of a sweep come from: a list, or a search algorithm through Ray Tune."""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from ray import tune
from ray.tune.search import Searcher

from swamp_ray.config.sweep import Domain
from swamp_ray.config.sweep_settings import Setting, Sweep, setting_key
from swamp_ray.errors import UserError, nearest
from swamp_ray.seeding import derive_seed
from swamp_ray.sweep.schedulers import COMPLETE, MILESTONE, check_count, check_scheduler
from swamp_ray.user_code.extras import call, check_call, check_options, require, unknown_name
from swamp_ray.user_code.importing import is_import_path, load_object

SEARCHES = ("random", "optuna", "hyperopt")
SAMPLERS = ("TPESampler", "GPSampler", "RandomSampler")
"""Optuna's samplers that take every kind of entry."""

_WHERE = "search.name"
_HYPEROPT = ("n_initial_points", "gamma")
_SEED = "The seed is search.seed."


class ListedSettings(Searcher):
    """Suggests the settings of a list, in its order, and then no more."""

    def __init__(self, settings: Sequence[Setting]) -> None:
        super().__init__()
        self._left = iter(list(settings))

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """A list needs neither."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next setting."""
        return dict(found) if (found := next(self._left, None)) is not None else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing is learned."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing is kept: a sweep resumes from its own records."""


class SpaceForTune:
    """Entries and values of a space in terms that every searcher takes.

    Ray splits names at slashes, and searchers mix up values that are equal (1 and true) or no scalars. So names are
    quoted, and such values are given as JSON.
    """

    def __init__(self, space: Mapping[str, Domain]) -> None:
        self._space = dict(space)
        self._names = {entry: quote(entry, safe=".") for entry in space}
        self._choices = {entry: _choices(domain.values) for entry, domain in space.items()
                         if domain.values is not None}

    def domains(self) -> dict[str, Any]:
        """The space in Ray Tune's terms."""
        return {self._names[entry]: self._domain(entry, domain) for entry, domain in self._space.items()}

    def _domain(self, entry: str, domain: Domain) -> Any:
        if domain.uniform is not None:
            return tune.uniform(*domain.uniform)
        if domain.loguniform is not None:
            return tune.loguniform(*domain.loguniform)
        return tune.choice([given for given, _ in self._choices[entry]])

    def point(self, setting: Setting) -> dict[str, Any]:
        """A setting as a searcher would suggest it."""
        return {self._names[entry]: self._given(entry, setting[entry]) for entry in self._space}

    def _given(self, entry: str, value: Any) -> Any:
        if entry not in self._choices:
            return value
        return next(given for given, meant in self._choices[entry] if _text(meant) == _text(value))

    def setting(self, point: Mapping[str, Any]) -> Setting:
        """The setting that a searcher means."""
        return {entry: self._meant(entry, point[self._names[entry]]) for entry in self._space}

    def _meant(self, entry: str, given: Any) -> Any:
        if entry in self._choices:
            return next(meant for known, meant in self._choices[entry] if known == given)
        low, high = self._space[entry].uniform or self._space[entry].loguniform or (-math.inf, math.inf)
        return min(high, max(low, float(given)))


def _choices(values: Sequence[Any]) -> list[tuple[Any, Any]]:
    scalars = all(value is None or isinstance(value, bool | int | float | str) for value in values)
    distinct = scalars and len(set(values)) == len(values)
    return [(value if distinct else _text(value), value) for value in values]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


class InSpace(Searcher):
    """A searcher of Ray Tune that suggests settings of the sweep's space and is told how they ended.

    A setting that was stopped early has no final value. Its last one is better than it would have become, because
    accuracy falls with sparsity: to compare it with final values would reward what was stopped for being bad.

    Args:
        inner: The searcher.
        space: The space that it searches.
        metric: Its metric.
        mode: max or min.
        knows_stopped: Whether the searcher has a word for trials that were stopped (Optuna: pruned). Otherwise they
            are told as worse than anything seen.
    """

    def __init__(self, inner: Searcher, space: SpaceForTune, metric: str, mode: str, knows_stopped: bool) -> None:
        super().__init__(metric=metric, mode=mode)
        self._inner = inner
        self._space = space
        self._knows_stopped = knows_stopped
        self._told: dict[str, int] = {}
        self._worst: float | None = None

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """They are set."""
        return True

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Left to the searcher."""
        return self._inner.set_max_concurrency(max_concurrent)

    def suggest(self, trial_id: str) -> Any:
        """The next setting, None for later, or FINISHED."""
        found = self._inner.suggest(trial_id)
        return self._space.setting(found) if isinstance(found, dict) else found

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A milestone; one that is reported again, after a new start, is not told twice."""
        milestone = result.get(MILESTONE, 0)
        if milestone > self._told.get(trial_id, 0):
            self._told[trial_id] = milestone
            self._inner.on_trial_result(trial_id, {**result, "training_iteration": milestone})

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The end of a setting: complete, stopped or failed."""
        value = (result or {}).get(self.metric)
        if error or not result or value is None or not math.isfinite(value):
            self._inner.on_trial_complete(trial_id, error=True)
            return
        worst = value if self._worst is None else (min if self.mode == "max" else max)(self._worst, value)
        self._worst = worst
        if result.get(COMPLETE):
            self._inner.on_trial_complete(trial_id, result=result)
        elif self._knows_stopped:
            self.on_trial_result(trial_id, result)  # Ray keeps the result that led to the stop from searchers
            self._inner.on_trial_complete(trial_id)
        else:
            margin = 1 + abs(worst)
            worse = worst - margin if self.mode == "max" else worst + margin
            self._inner.on_trial_complete(trial_id, result={**result, str(self.metric): worse})

    def save(self, checkpoint_path: str) -> None:
        """Nothing is kept: a sweep resumes from its own records."""


def make_search(sweep: Sweep, recorded: Sequence[Setting]) -> Searcher:
    """The searcher that a sweep names. It knows metric and mode: ``TuneConfig`` needs neither.

    Args:
        sweep: The sweep.
        recorded: Settings that were suggested before the sweep was stopped. They come first again, in this order.

    Raises:
        UserError: There is no such searcher, a package is missing, or its options do not fit.
    """
    check_search(sweep)
    config = sweep.config
    name = sweep.config.search.name
    if name == "random":
        known = {setting_key(setting) for setting in recorded}
        return ListedSettings([*recorded, *(new for new in sweep.settings() if setting_key(new) not in known)])
    space = SpaceForTune(config.space)
    points = [space.point(setting) for setting in recorded]
    seed = search_seed(sweep, len(recorded))
    if name == "optuna":
        inner = _optuna(sweep, space, points, seed)
    elif name == "hyperopt":
        inner = _hyperopt(sweep, space, points, seed)
    else:
        inner = call(load_object(name, _WHERE), _WHERE, Searcher, space.domains(), metric=config.metric,
                     mode=config.mode, seed=seed, points_to_evaluate=points, **config.search.options)
        inner.set_search_properties(config.metric, config.mode, space.domains())
    return InSpace(inner, space, config.metric, config.mode, knows_stopped=name == "optuna")


def search_seed(sweep: Sweep, num_recorded: int) -> int:
    """A seed in [0, 2**31): another one after a restart, or a search would draw its first settings again."""
    return derive_seed(sweep.config.search.seed, "sweep search", num_recorded) % 2**31


def check_search(sweep: Sweep, num_milestones: int | None = None) -> None:
    """What can be wrong with search and scheduler. Ray need not run.

    Args:
        sweep: The sweep.
        num_milestones: How many milestones there are, if that is known by now.

    Raises:
        UserError: There is no such search or scheduler, a package is missing, or options do not fit.
    """
    config = sweep.config
    search = sweep.config.search
    check_scheduler(sweep, num_milestones or len(config.at_sparsity) or None)
    if is_import_path(search.name):
        keywords = {"metric": config.metric, "mode": config.mode, "seed": 0, "points_to_evaluate": []} | search.options
        check_call(load_object(search.name, _WHERE), ({},), keywords, _WHERE)
    elif search.name == "random":
        check_options(search.options, (), "search.options", _SEED)
    elif search.name == "optuna":
        _sampler(search.options, seed=0)
    elif search.name == "hyperopt":
        require("hyperopt", "hyperopt", _WHERE)
        _check_hyperopt(search.options)
    else:
        raise unknown_name(search.name, SEARCHES, _WHERE)


def _optuna(sweep: Sweep, space: SpaceForTune, points: list[dict[str, Any]], seed: int) -> Searcher:
    from ray.tune.search.optuna import OptunaSearch

    optuna = require("optuna", "optuna", _WHERE)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return OptunaSearch(OptunaSearch.convert_search_space(space.domains()), metric=sweep.config.metric,
                        mode=sweep.config.mode, points_to_evaluate=points or None,
                        sampler=_sampler(sweep.config.search.options, seed))


def _sampler(options: Mapping[str, Any], seed: int) -> Any:
    optuna = require("optuna", "optuna", _WHERE)
    name = options.get("sampler", SAMPLERS[0])
    if name not in SAMPLERS:
        raise UserError(f"must be one of {', '.join(SAMPLERS)}", got=name, where="search.options.sampler",
                        do=nearest(str(name), SAMPLERS))
    kind = getattr(optuna.samplers, name)
    where = f"search.options of Optuna's {name}"
    check_options(options, ["sampler", *_plain_options(kind)], where, _SEED)
    keywords = {option: value for option, value in options.items() if option != "sampler"}
    for option, value in keywords.items():
        if option.startswith("n_"):
            check_count(value, f"search.options.{option}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        try:
            return kind(seed=seed, **keywords)
        except ImportError as error:
            raise UserError("a package that this sampler needs is missing", where=where, do=str(error)) from error
        except (TypeError, ValueError) as error:
            raise UserError(str(error), where=where) from error


def _plain_options(kind: type) -> list[str]:
    """Options of a class that a YAML file can give: numbers and switches."""
    return [name for name, parameter in inspect.signature(kind).parameters.items()
            if isinstance(parameter.default, bool | int | float) or name == "multivariate"]


def _hyperopt(sweep: Sweep, space: SpaceForTune, points: list[dict[str, Any]], seed: int) -> Searcher:
    from ray.tune.search.hyperopt import HyperOptSearch

    return HyperOptSearch(HyperOptSearch.convert_search_space(space.domains()), metric=sweep.config.metric,
                          mode=sweep.config.mode, points_to_evaluate=points or None, random_state_seed=seed,
                          **sweep.config.search.options)


def _check_hyperopt(options: Mapping[str, Any]) -> None:
    check_options(options, _HYPEROPT, "search.options", _SEED)
    if "n_initial_points" in options:
        check_count(options["n_initial_points"], "search.options.n_initial_points")
    gamma = options.get("gamma", 0.25)
    if isinstance(gamma, bool) or not isinstance(gamma, int | float) or not 0 < gamma < 1:
        raise UserError("must lie in (0, 1)", got=gamma, where="search.options.gamma")
