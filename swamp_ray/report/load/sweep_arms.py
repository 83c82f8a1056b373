"""The arms of a sweep at each sparsity: values by seed, costs, and which cannot be told from the best."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from swamp_ray.analysis.best_arms import Verdict, verdicts
from swamp_ray.sweep.results import CONFIG, SPACE, space_columns
from swamp_ray.training.cost import FACES

TARGET = "pruning.target"
SAME = 9
"""Sparsities that agree to so many decimals are one."""


@dataclass(frozen=True)
class ArmLevel:
    """An arm at one sparsity.

    Attributes:
        arm: Its name.
        sparsity: In [0, 1), rounded.
        values: Of the metric by seed.
        cost: Of the run up to there, mean over seeds, by face; NaN where one is not known.
        verdict: How it stands to the best arm of this sparsity.
    """

    arm: str
    sparsity: float
    values: Mapping[int, float]
    cost: Mapping[str, float]
    verdict: Verdict

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds; None for a single one."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


def arm_names(frame: Any) -> Any:
    """The arm of each row: the values of the entries that vary, without the target.

    Settings that differ in nothing but ``pruning.target`` are one arm, seen at further sparsities.
    """
    entries = [column for column in space_columns(frame) if column != SPACE + TARGET]
    varied = [column for column in entries if frame[column].nunique(dropna=False) > 1] or entries[:1]
    if not varied:
        return pd.Series(["all settings"] * len(frame), index=frame.index)
    groups = [column for column in varied if f"{CONFIG}{column.removeprefix(SPACE)}" not in _options(frame)]
    names = []
    for row in frame[varied].to_dict("records"):
        parts = []
        for column, value in row.items():
            word = str(column).removeprefix(SPACE).rpartition(".")[2]
            text = f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(text if column in groups else f"{word} {text}")
        names.append(", ".join(parts))
    return pd.Series(names, index=frame.index)


def _options(frame: pd.DataFrame) -> set[str]:
    """The columns of options, lengths without their unit."""
    names = {column for column in frame.columns if column.startswith(CONFIG)}
    return names | {name.removesuffix("_epochs").removesuffix("_steps") for name in names}


def arm_levels(frame: Any, metric: str, higher_is_better: bool) -> list[ArmLevel]:
    """Every arm at every sparsity that it has, in the order of arms, then of sparsities.

    Of several runs of an arm and a seed with a network of the same sparsity, the one that ends there counts: its last
    round may prune less than the others' would. Without one it is the first.

    Args:
        frame: What :func:`swamp_ray.sweep.results.collect` gave.
        metric: A column of it.
        higher_is_better: Whether a larger value is the better one.
    """
    rows: Any = frame.assign(arm=arm_names(frame), level=frame["sparsity"].round(SAME))
    last = rows.groupby("run")["round"].transform("max")
    rows = rows.assign(ends=(rows["round"] == last).astype(int))
    rows = rows.sort_values("ends", ascending=False, kind="stable").drop_duplicates(["arm", "level", "seed"])
    found: list[ArmLevel] = []
    values: dict[float, dict[str, dict[int, float]]] = {}
    costs: dict[tuple[str, float], dict[str, float]] = {}
    for key, group in rows.groupby(["arm", "level"], sort=False):
        arm = str(_pair(key)[0])
        level = float(_pair(key)[1])
        values.setdefault(level, {})[arm] = dict(zip(group["seed"].tolist(), group[metric].tolist(), strict=True))
        costs[arm, level] = {face: float(group[f"cost_so_far/{face}"].mean(skipna=False)) for face in FACES}
    for level in sorted(values):
        judged = verdicts(values[level], higher_is_better)
        for arm, by_seed in values[level].items():
            found.append(ArmLevel(arm, level, by_seed, costs[arm, level], judged[arm]))
    order = list(dict.fromkeys(rows.sort_index()["arm"]))
    return sorted(found, key=lambda one: (order.index(one.arm), one.sparsity))


def _pair(key: Any) -> tuple[Any, Any]:
    return key


def compared_sparsities(levels: Sequence[ArmLevel], most: int) -> list[float]:
    """So many sparsities at most, in order: those that most arms have, of these the sparsest."""
    counts: dict[float, int] = {}
    for one in levels:
        counts[one.sparsity] = counts.get(one.sparsity, 0) + 1
    shared = [sparsity for sparsity, count in counts.items() if count > 1] or list(counts)
    shared.sort(key=lambda sparsity: (-counts[sparsity], -sparsity))
    return sorted(shared[:most])


def table_of(levels: Sequence[ArmLevel]) -> pd.DataFrame:
    """One row an arm and sparsity; values in the metric's own unit."""
    rows = []
    for one in levels:
        rows.append({
            "arm": one.arm, "sparsity": one.sparsity, "weights_left": 1 - one.sparsity, "mean": one.mean,
            "standard_deviation": one.deviation, "n": len(one.values), **one.cost, "verdict": one.verdict.found,
            "difference_to_best": one.verdict.difference, "pairs": one.verdict.num_pairs,
            "p_value": one.verdict.p_value, "p_holm": one.verdict.adjusted})
    frame = pd.DataFrame(rows)
    unknown = ["standard_deviation", "difference_to_best", "p_value", "p_holm"]
    return frame.astype(dict.fromkeys(unknown, "float64"))
