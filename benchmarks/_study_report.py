"""The tables of docs/study.md, from a tier's results: every figure in them is computed here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from swamp_ray.analysis.statistics import equivalence, holm, paired

Frame = Any
"""A DataFrame or a Series."""
ENDPOINT = 3
"""The primary endpoint is the mean over so many of the sparsest rounds."""
MARGIN = 0.5
"""Points of accuracy within which C3 calls two methods equivalent."""
AGAINST = ("imp", "imp_4t", "swamp_without_swa", "imp_swa")
"""SWAMP is compared with each of these, as far as the tier has it; Holm's correction is over all of them."""
LABELS = {
    "imp": "IMP", "imp_second": "IMP, second seed", "imp_ensemble": "two IMP solutions (ensemble)",
    "imp_swa": "IMP + SWA", "swamp": "SWAMP", "swamp_without_swa": "SWAMP without SWA", "imp_4t": "IMP, 4 T",
    "imp_best_of_4": "IMP, best of 4",
}


def report(tier: str, path: Path) -> None:
    """Print the tables as Markdown."""
    frame: Frame = pd.read_parquet(path)
    print("\n\n".join(tables(frame)))


def tables(frame: Frame) -> list[str]:
    """Accuracies; SWAMP against the other arms; averaging against its particles; barriers."""
    return [accuracy_table(frame), comparison_table(frame), averaging_table(frame), barrier_table(frame)]


def accuracy(frame: Frame, arm: str, what: str | None = None) -> Frame:
    """Test accuracy in percent, one row a seed and one column a round."""
    what = what or ("ensemble" if arm.endswith("_ensemble") else "average")
    chosen = frame[(frame["arm"] == arm) & (frame["what"] == what) & (frame["split"] == "test")
                   & (frame["metric"] == "accuracy")]
    return 100 * chosen.pivot(index="seed", columns="round", values="value")


def arms_of(frame: Frame) -> list[str]:
    """Arms with results, in the order of the labels."""
    present = set(frame["arm"])
    return [arm for arm in LABELS if arm in present]


def accuracy_table(frame: Frame) -> str:
    """Mean test accuracy and standard error over seeds, by arm and sparsity."""
    sparsities = frame.groupby("round")["sparsity"].first()
    rows = []
    for arm in arms_of(frame):
        found = accuracy(frame, arm)
        cells = [_mean(found[index].dropna().tolist()) for index in sparsities.index if index in found]
        rows.append([LABELS[arm], str(len(found)), *cells])
    return _markdown(["arm", "n", *(f"{100 * value:.1f} %" for value in sparsities)], rows)


def endpoint(frame: Frame, arm: str) -> Frame:
    """The primary endpoint of each seed: mean test accuracy over the sparsest rounds, in percent."""
    found = accuracy(frame, arm)
    return found[sorted(found.columns)[-ENDPOINT:]].mean(axis=1)


def comparison_table(frame: Frame) -> str:
    """SWAMP minus the other arms at the primary endpoint, paired by seed."""
    swamp = endpoint(frame, "swamp")
    pairs = {arm: _paired_values(swamp, endpoint(frame, arm)) for arm in AGAINST if arm in set(frame["arm"])}
    found = {arm: paired(*values) for arm, values in pairs.items() if len(values[0]) > 1}
    adjusted = holm({arm: one.p_value for arm, one in found.items()})
    rows = [[f"SWAMP - {LABELS[arm]}", str(one.num), f"{one.mean:+.2f}", f"{one.low:+.2f} to {one.high:+.2f}",
             f"{adjusted[arm]:.3g}", f"{one.detectable:.2f}"] for arm, one in found.items()]
    if "imp_ensemble" in set(frame["arm"]):
        values = _paired_values(swamp, endpoint(frame, "imp_ensemble"))
        if len(values[0]) > 1:
            one = paired(*values)
            p_value = equivalence(*values, MARGIN)
            rows.append([f"SWAMP - {LABELS['imp_ensemble']}", str(one.num), f"{one.mean:+.2f}",
                         f"{one.low:+.2f} to {one.high:+.2f}", f"{p_value:.3g} (equivalence within {MARGIN:g})",
                         f"{one.detectable:.2f}"])
    return _markdown(["difference in points", "n", "mean", "95 % interval", "p (Holm)", "detectable"], rows)


def averaging_table(frame: Frame) -> str:
    """The average minus the mean of its particles, by sparsity, paired by seed: C1."""
    rows = []
    for arm in ("swamp", "swamp_without_swa"):
        if arm not in set(frame["arm"]):
            continue
        average, particles = accuracy(frame, arm), accuracy(frame, arm, "particles")
        for index in sorted(average.columns):
            values = _paired_values(average[index].dropna(), particles[index].dropna())
            if len(values[0]) > 1:
                one = paired(*values)
                sparsity = frame[frame["round"] == index]["sparsity"].iloc[0]
                rows.append([LABELS[arm], f"{100 * sparsity:.1f} %", str(one.num), f"{one.mean:+.2f}",
                             f"{one.low:+.2f} to {one.high:+.2f}"])
    return _markdown(["arm", "sparsity", "n", "average - particles, points", "95 % interval"], rows)


def barrier_table(frame: Frame) -> str:
    """Error barriers on the test split, and the deepest dip below the chord, means over seeds: C1 and C5."""
    rows = []
    lines = frame[frame["what"].str.contains(" between ", regex=False) & (frame["metric"] == "error")]
    for (arm, _), found in lines.groupby(["arm", "round"]):
        cells = []
        for what in ("barrier between particles", "barrier between rounds", "dip between rounds"):
            values = [100 * value for value in found[found["what"] == what]["value"]]
            cells.append(_mean(values) if values else "")
        rows.append([LABELS[str(arm)], f"{100 * found['sparsity'].iloc[0]:.1f} %", *cells])
    return _markdown(["arm", "sparsity", "barrier between particles", "between rounds", "dip between rounds"], rows)


def _paired_values(first: Frame, second: Frame) -> tuple[list[float], list[float]]:
    common = [seed for seed in first.index if seed in second.index]
    return [float(first[seed]) for seed in common], [float(second[seed]) for seed in common]


def _mean(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    error = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
    return f"{mean:.2f} ± {error:.2f}"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]] | Mapping[str, str]) -> str:
    lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
