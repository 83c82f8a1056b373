"""What the study's results say of each claim: a verdict by a fixed rule, with the figures that it rests on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

from _study_frames import (
    AGAINST,
    LABELS,
    MARGIN,
    MASKS,
    Frame,
    by_round,
    compared,
    endpoint,
    lines,
    log_ratio,
    masked,
    over_mean,
    pairs,
    sparsities,
)

from swamp_ray.analysis.statistics import Paired, equivalence, holm

LEVEL = 0.05
UNKNOWN = "not yet known"


class Finding(NamedTuple):
    """A claim's verdict, and why."""

    verdict: Literal["holds", "does not hold", "not yet known", "in part"]
    why: str


def interval(one: Paired, digits: int = 2) -> str:
    """A mean with its 95 % interval."""
    return f"{one.mean:+.{digits}f} ({one.low:+.{digits}f} to {one.high:+.{digits}f})"


def comparisons(frame: Frame, what: str | None = None) -> dict[str, tuple[Paired, float]]:
    """SWAMP minus other arms at the primary endpoint, with p-values after Holm's correction.

    Args:
        frame: The results.
        what: Which of an arm's networks; default: those of its rounds as the protocol measures them.
    """
    if "swamp" not in set(frame["arm"]):
        return {}
    swamp = endpoint(frame, "swamp", what)
    found = {}
    for arm in AGAINST:
        one = compared(swamp, endpoint(frame, arm, what)) if arm in set(frame["arm"]) else None
        if one is not None:
            found[arm] = one
    adjusted = holm({arm: one.p_value for arm, one in found.items()})
    return {arm: (one, adjusted[arm]) for arm, one in found.items()}


def _too_few(what: str = "seeds") -> Finding:
    return Finding("not yet known", f"too few {what} have been run")


def _superior(frame: Frame, arm: str) -> Finding:
    """Whether SWAMP is better than an arm at the primary endpoint."""
    if arm not in (found := comparisons(frame)):
        return _too_few()
    one, p_value = found[arm]
    text = (f"SWAMP - {LABELS[arm]}: {interval(one)} points at the primary endpoint, n = {one.num}, "
            f"p = {p_value:.3g} after Holm's correction")
    if p_value < LEVEL:
        return Finding("holds" if one.mean > 0 else "does not hold", text)
    return Finding("not yet known", f"{text}; a difference of {one.detectable:.2f} points would have been found in "
                                    "80 % of such studies")


def _without_loss(found: Mapping[int, Paired], sign: int) -> int | None:
    """The first round from which on every interval stays above -MARGIN (sign 1) or below it (sign -1)."""
    first = None
    for index in sorted(found, reverse=True):
        one = found[index]
        if (one.low if sign > 0 else -one.high) < -MARGIN:
            break
        first = index
    return first


def averaging(frame: Frame) -> Finding:
    """C1: from some sparsity on, averaging loses nothing against the particles."""
    found = by_round(frame, "swamp", minus=("swamp", "particles"))
    if not found:
        return _too_few()
    first = _without_loss(found, 1)
    levels = sparsities(frame, "swamp")
    worst = min(found, key=lambda index: found[index].mean)
    text = (f"average - mean of its particles: {interval(found[min(found)])} points dense, "
            f"{interval(found[max(found)])} at {100 * levels[max(found)]:.1f} %; the most it loses is at "
            f"{100 * levels[worst]:.1f} % ({interval(found[worst])})")
    if first is None:
        return Finding("does not hold" if found[max(found)].high < 0 else "not yet known", text)
    return Finding("holds", f"from {100 * levels[first]:.1f} % on it loses less than {MARGIN:g} points "
                            f"(the whole 95 % interval, at each sparsity): {text}; n = {found[first].num}")


def more_accurate(frame: Frame) -> Finding:
    """C2: SWAMP is more accurate than IMP at equal sparsity."""
    return _at_each_sparsity(frame, "imp")


def equal_cost(frame: Frame) -> Finding:
    """C2 at equal total epochs."""
    return _at_each_sparsity(frame, "imp_4t")


def _at_each_sparsity(frame: Frame, arm: str) -> Finding:
    """The verdict at the primary endpoint, and where SWAMP is ahead of an arm and where behind it."""
    found = _superior(frame, arm)
    rounds = by_round(frame, "swamp", minus=(arm, "average")) if arm in set(frame["arm"]) else {}
    if not rounds:
        return found
    levels = sparsities(frame, "swamp")
    worst, best = (choose(rounds, key=lambda index: rounds[index].mean) for choose in (min, max))
    places = ", ".join(f"{interval(rounds[index])} at {100 * levels[index]:.1f} %"
                       for index in sorted({worst, best}))
    return Finding(found.verdict, f"{found.why}. Of all sparsities, the lowest and the highest difference: {places}")


def on_par(frame: Frame) -> Finding:
    """C3: SWAMP is on par with the ensemble of two IMP solutions."""
    if not {"swamp", "imp_ensemble"} <= set(frame["arm"]):
        return _too_few()
    swamp, ensemble = endpoint(frame, "swamp"), endpoint(frame, "imp_ensemble")
    one = compared(swamp, ensemble)
    if one is None:
        return _too_few()
    p_value = equivalence(*pairs(swamp, ensemble), MARGIN)
    text = (f"SWAMP - ensemble: {interval(one)} points at the primary endpoint, n = {one.num}; equivalence within "
            f"{MARGIN:g} points: p = {p_value:.3g}")
    if p_value < LEVEL:
        return Finding("holds", text)
    if one.low > 0:
        return Finding("holds", f"SWAMP is better. {text}")
    return Finding("does not hold" if one.high < 0 else "not yet known", text)


def flatter(frame: Frame) -> Finding:
    """C4: curvature falls from IMP over one SWA particle to SWAMP."""
    steps = {"IMP + SWA / IMP": (("imp_swa", "average"), ("imp", "average")),
             "SWAMP / one of its particles": (("swamp", "average"), ("swamp", "particle"))}
    texts, verdicts = [], []
    for label, (first, second) in steps.items():
        for metric in ("trace", "scaled trace"):
            one = log_ratio(frame, first, second, metric)
            if one is None:
                return _too_few()
            texts.append(f"{label}, {metric}: {math.exp(one.mean):.2f} "
                         f"({math.exp(one.low):.2f} to {math.exp(one.high):.2f})")
            verdicts.append("holds" if one.high < 0 else "does not hold" if one.low > 0 else "not yet known")
    return Finding(_together(verdicts), "ratios of curvature at the sparsest round: " + "; ".join(texts))


def _together(verdicts: list[str]) -> Literal["holds", "does not hold", "not yet known", "in part"]:
    if len(set(verdicts)) == 1:
        return verdicts[0]  # pyright: ignore[reportReturnType]
    return "in part" if "holds" in verdicts else "not yet known" if UNKNOWN in verdicts else "does not hold"


def connected(frame: Frame) -> Finding:
    """C5: successive rounds are linearly connected, and between them the error is lower still."""
    barriers, dips = lines(frame, "barrier between rounds"), lines(frame, "dip between rounds")
    if not barriers:
        return _too_few()
    levels = sparsities(frame, "swamp")
    first = _without_loss(barriers, -1)
    worst = max(barriers, key=lambda index: barriers[index].mean)
    lower = [index for index, one in dips.items() if one.high < 0]
    text = (f"largest error barrier between successive rounds (excess over the straight line, Entezari et al., 2022): "
            f"{interval(barriers[worst])} points, in the "
            f"step from {100 * levels[worst]:.1f} %; the error between them is below the straight line at "
            f"{len(lower)} of {len(dips)} steps (deepest {min(one.mean for one in dips.values()):.2f} points); "
            f"n = {barriers[worst].num}. {_over_mean(frame, levels)}")
    if first == min(barriers):
        return Finding("holds", text)
    if first is None:
        return Finding("not yet known" if barriers[max(barriers)].low < MARGIN else "does not hold", text)
    return Finding("in part", f"from {100 * levels[first]:.1f} % on: {text}")


def _over_mean(frame: Frame, levels: Mapping[int, float]) -> str:
    """What the other barrier, that of Frankle et al. (2020), says under the same rule; no verdict rests on it."""
    found = over_mean(frame)
    if not found:
        return "The excess over the mean of the ends (Frankle et al., 2020) is not known"
    worst = max(found, key=lambda index: found[index][0].mean)
    one, measured = found[worst]
    least = "" if measured else "at least "
    above = [f"{100 * levels[index]:.1f} %" for index, (other, _) in found.items() if other.low > MARGIN]
    broken = (f"by it the rule is broken in the steps from {', '.join(above)}" if above
              else "by it, too, no step's interval lies above the margin" if measured
              else "whether some step breaks the rule by it was not measured")
    bound = "" if measured else " (half the distance between the ends: the line itself was not kept)"
    return (f"The excess over the mean of the ends (Frankle et al., 2020) is {least}{interval(one)} points in the step "
            f"from {100 * levels[worst]:.1f} %{bound}; {broken}")


def both_help(frame: Frame) -> Finding:
    """C6: SWA helps, and several particles help."""
    found = {"SWA": _superior(frame, "swamp_without_swa"), "particles": _superior(frame, "imp_swa")}
    return Finding(_together([one.verdict for one in found.values()]),
                   "; ".join(f"{name}: {one.verdict} ({one.why})" for name, one in found.items()))


def better_mask(frame: Frame) -> Finding:
    """C7: in both ways of training, SWAMP's mask is better than IMP's; and each is better than a shuffled one."""
    texts, verdicts = [], []
    for arm in ("imp", "swamp"):
        found = {what: masked(frame, arm, what) for what in MASKS}
        one = compared(found["mask of swamp"], found["mask of imp"])
        if one is None:
            return _too_few()
        verdicts.append("holds" if one.low > 0 else "does not hold" if one.high < 0 else UNKNOWN)
        control = compared(found["mask of swamp"], found["shuffled mask of swamp"])
        texts.append(f"with the training of {LABELS[arm]}: {interval(one)} points, detectable {one.detectable:.2f}"
                     + (f" (against SWAMP's mask shuffled within layers: {interval(control)})" if control else ""))
    return Finding(_together(verdicts), f"mask of SWAMP - mask of IMP at the sparsest round, {'; '.join(texts)}")


CLAIMS: dict[str, tuple[str, Callable[[Frame], Finding], str]] = {
    "C1": ("averaging loses nothing from some sparsity on", averaging, "averaging"),
    "C2": ("SWAMP beats IMP at equal epochs a particle", more_accurate, "accuracy"),
    "C2, at equal cost": ("SWAMP beats IMP with 4 T epochs a round", equal_cost, "cost"),
    "C3": ("SWAMP is on par with two IMP solutions", on_par, "ensemble"),
    "C4": ("minima are flatter", flatter, "curvature"),
    "C5": ("successive rounds are linearly connected", connected, "connectivity"),
    "C6": ("SWA and several particles each help", both_help, "differences"),
    "C7": ("SWAMP's mask is better than IMP's", better_mask, "swap"),
}
"""Each in words, how it is judged, and its figure."""


def findings(frame: Frame) -> dict[str, Finding]:
    """What the results say of each claim."""
    return {claim: judge(frame) for claim, (_, judge, _) in CLAIMS.items()}
