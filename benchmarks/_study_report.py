"""The tables of docs/study.md, from a tier's results: every figure in them is computed here and nowhere else."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from _study_claims import CLAIMS, comparisons, findings, interval
from _study_frames import (
    COLLAPSED,
    LABELS,
    MARGIN,
    MASKS,
    WITH_AUGMENTATION,
    Frame,
    accuracy,
    arms_of,
    by_round,
    compared,
    endpoint,
    lines,
    masked,
    over_mean,
    pairs,
    sparsities,
    values,
)
from _study_runs import DIVERGED
from _study_tiers import Tier

from swamp_ray.analysis.statistics import Paired, equivalence

NETWORKS = (("imp", "average"), ("imp_swa", "average"), ("swamp", "particle"), ("swamp", "average"))


def write(tier: str, text: str, page: Path) -> None:
    """Put a tier's results into a page, between the marks that are there for them."""
    begin, end = f"<!-- results: {tier} -->\n", f"<!-- end of results: {tier} -->"
    old = page.read_text()
    page.write_text(re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}\n\n{end}", old,
                           flags=re.DOTALL))


def report(name: str, tier: Tier, frame: Frame, drawn: Collection[str]) -> str:
    """Everything that a tier's results say, as Markdown.

    Args:
        name: Of the tier.
        tier: Its parts.
        frame: Its results.
        drawn: The figures that there are.
    """
    if frame.empty:
        return "Nothing of this tier has been run yet."
    return "\n\n".join([progress(name, tier, frame), f"What this says of each claim{interim(tier, frame)}:",
                        *paragraphs(name, frame, drawn), failures(frame),
                        *(f"{title}\n\n{table}" for title, table in tables(frame) if table)])


def progress(name: str, tier: Tier, frame: Frame) -> str:
    """What has been run where, and how long it took."""
    done = frame[["part", "seed"]].drop_duplicates()
    parts = frame.groupby(["part", "seed"])["seconds"].first()
    machines = sorted({f"{row.cpu}{f', {row.gpu}' if row.gpu else ''}" for row in frame[["cpu", "gpu"]]
                       .drop_duplicates().itertuples()})
    versions = ", ".join(sorted(set(frame["torch"])))
    dates = " to ".join(dict.fromkeys([min(frame["date"]), max(frame["date"])]))
    return (f"{len(done)} of {len(tier.order())} parts have been run ({dates}; "
            f"{'; '.join(machines)}; torch {versions}; {parts.sum() / 3600:.1f} hours of one process in all; a part is "
            "an arm, or a measurement, with a seed). "
            f"Means ± standard errors over n seeds; `benchmarks/study.py {name} --report` makes this section.")


def failures(frame: Frame) -> str:
    """How many runs diverged, and how many networks collapsed."""
    trained = frame[frame["what"] == "average"].groupby("arm")["seed"].nunique()
    broken = frame[(frame["what"] == DIVERGED) & frame["arm"].isin(trained.index)][["arm", "seed"]].drop_duplicates()
    which = ", ".join(f"{LABELS.get(arm, arm)}, seed {seed}" for arm, seed in broken.itertuples(index=False))
    collapsed = []
    for arm in trained.index:
        found = accuracy(frame, str(arm)).stack()
        if fallen := int((found <= 100 * COLLAPSED).sum()):
            collapsed.append(f"{LABELS.get(str(arm), arm)} {fallen} of {len(found)}")
    if not len(broken) and not collapsed:
        return "No run diverged, and no network collapsed."
    diverged = (f"{len(broken)} of {trained.sum()} runs diverged ({which}), and count as guessing from there on."
                if len(broken) else "No run diverged.")
    return diverged + (f" Networks that collapsed (test accuracy of {100 * COLLAPSED:.0f} % or less; they stay in all "
                       f"means): {', '.join(collapsed)}." if collapsed else "")


def interim(tier: Tier, frame: Frame) -> str:
    """Whether parts are missing that may change what is said."""
    done = set(zip(frame["part"], frame["seed"], strict=True))
    return "" if {(part.name, seed) for part, seed in tier.order()} <= done else " (interim: parts are missing)"


def paragraphs(name: str, frame: Frame, drawn: Collection[str]) -> Iterator[str]:
    """One a claim: its verdict, why, and its figure."""
    for claim, one in findings(frame).items():
        what, _, figure = CLAIMS[claim]
        yield f"**{claim}: {what}: {one.verdict}.** {capital(one.why)}."
        if figure in drawn:
            yield f"![{claim}: {what}](figures/study_{name}_{figure}.svg)"


def capital(text: str) -> str:
    """With a capital letter at the beginning."""
    return text[:1].upper() + text[1:]


def tables(frame: Frame) -> list[tuple[str, str]]:
    """Headings and tables; a table of which nothing is known is empty."""
    return [
        ("Test accuracy (%) by sparsity:", accuracy_table(frame)),
        ("SWAMP against other arms at the primary endpoint, paired by seed:", comparison_table(frame)),
        ("The average minus the mean of its particles:", averaging_table(frame)),
        ("Error barriers of SWAMP on the test split, in points:", barrier_table(frame)),
        ("Curvature at the sparsest round:", curvature_table(frame)),
        ("Test accuracy (%) with swapped masks at the sparsest round:", swap_table(frame)),
        ("IMP with the normalisation statistics that training left, minus IMP with re-estimated ones:",
         as_trained_table(frame)),
        ("With normalisation statistics of augmented training images (added when all arms had been run), mean test "
         "accuracy over the three sparsest rounds:", augmented_table(frame)),
        ("Whether T is long enough:", length_table(frame)),
    ]


def accuracy_table(frame: Frame) -> str:
    """Mean test accuracy and standard error over seeds, by arm and sparsity."""
    if not (arms := [arm for arm in arms_of(frame) if len(sparsities(frame, arm)) > 1]):
        return ""
    levels = sorted({round(level, 4) for arm in arms for level in sparsities(frame, arm).values()})
    rows = []
    for arm in arms:
        found = accuracy(frame, arm)
        own = {round(level, 4): index for index, level in sparsities(frame, arm).items() if index in found}
        cells = [_mean(found[own[level]].dropna().tolist()) if level in own else "" for level in levels]
        rows.append([LABELS[arm], str(len(found)), *cells])
    return _markdown(["arm", "n", *(f"{100 * value:.1f} %" for value in levels)], rows)


def comparison_table(frame: Frame) -> str:
    """SWAMP minus the other arms at the primary endpoint, paired by seed."""
    rows = [[f"SWAMP - {LABELS[arm]}", str(one.num), f"{one.mean:+.2f}", f"{one.low:+.2f} to {one.high:+.2f}",
             f"{adjusted:.3g}", f"{one.detectable:.2f}"] for arm, (one, adjusted) in comparisons(frame).items()]
    if {"swamp", "imp_ensemble"} <= set(frame["arm"]):
        swamp, ensemble = endpoint(frame, "swamp"), endpoint(frame, "imp_ensemble")
        one = compared(swamp, ensemble)
        if one is not None:
            p_value = equivalence(*pairs(swamp, ensemble), MARGIN)
            rows.append([f"SWAMP - {LABELS['imp_ensemble']}", str(one.num), f"{one.mean:+.2f}",
                         f"{one.low:+.2f} to {one.high:+.2f}", f"{p_value:.3g} (equivalence within {MARGIN:g})",
                         f"{one.detectable:.2f}"])
    return _markdown(["difference in points", "n", "mean", "95 % interval", "p (Holm)", "detectable"], rows)


def averaging_table(frame: Frame) -> str:
    """The average minus the mean of its particles, by sparsity, paired by seed: C1."""
    rows = [[LABELS[arm], f"{100 * sparsities(frame, arm)[index]:.1f} %", str(one.num), f"{one.mean:+.2f}",
             f"{one.low:+.2f} to {one.high:+.2f}"]
            for arm in ("swamp", "swamp_without_swa") if arm in set(frame["arm"])
            for index, one in by_round(frame, arm, minus=(arm, "particles")).items()]
    return _markdown(["arm", "sparsity", "n", "average - particles, points", "95 % interval"], rows)


def barrier_table(frame: Frame) -> str:
    """Error barriers of both definitions on the test split, and the deepest dip, with intervals over seeds: C1, C5."""
    ends = over_mean(frame)
    columns = [lines(frame, what) for what in ("barrier between particles", "barrier between rounds",
                                               "dip between rounds")]
    rows = [[f"{100 * sparsity:.1f} %", str(columns[0][index].num),
             *(interval(column[index]) if index in column else "" for column in columns),
             _over_mean_cell(ends.get(index))]
            for index, sparsity in sparsities(frame, "swamp").items() if index in columns[0]]
    return _markdown(["sparsity", "n", "barrier between two particles", "to the next round", "dip to the next round",
                      "over the mean of the ends, to the next round"], rows)


def _over_mean_cell(found: tuple[Paired, bool] | None) -> str:
    if found is None:
        return ""
    one, measured = found
    return interval(one) if measured else f"at least {interval(one)}"


def curvature_table(frame: Frame) -> str:
    """Trace, scale-invariant trace and largest eigenvalue, with standard errors over seeds: C4."""
    rows = []
    for arm, network in NETWORKS:
        cells = []
        for metric in ("trace", "scaled trace", "largest"):
            found = values(frame, arm, f"curvature of {network}", metric, "train")
            cells.append("" if found.empty else _mean(found[found.columns[-1]].dropna().tolist(), 1))
            num = len(found)
        if any(cells):
            label = LABELS[arm] + (", one particle" if network == "particle" else "")
            rows.append([label, str(num), *cells])
    return _markdown(["network", "n", "trace", "sum w² H", "largest eigenvalue"], rows)


def swap_table(frame: Frame) -> str:
    """Every mask under every training, test accuracy at the sparsest round: C7."""
    rows = []
    for arm in ("imp", "swamp"):
        cells = [masked(frame, arm, what) for what in MASKS]
        if not cells[0].empty:
            rows.append([f"training of {LABELS[arm]}", str(len(cells[0])), *(_mean(one.tolist()) for one in cells)])
    return _markdown(["", "n", *(what.replace("swamp", "SWAMP").replace("imp", "IMP") for what in MASKS)], rows)


def as_trained_table(frame: Frame) -> str:
    """Whether re-estimating the normalisation statistics is to IMP's disadvantage."""
    rows = [[f"{100 * sparsities(frame, 'imp')[index]:.1f} %", str(one.num), interval(one)]
            for index, one in by_round(frame, "imp", "as trained", minus=("imp", "average")).items()]
    rows += [[f"SWAMP - IMP as trained, {100 * sparsities(frame, 'imp')[index]:.1f} %", str(one.num), interval(one)]
             for index, one in by_round(frame, "swamp", minus=("imp", "as trained")).items()]
    return _markdown(["sparsity", "n", "points (95 % interval)"], rows)


def augmented_table(frame: Frame) -> str:
    """What statistics of augmented images add to each arm, and SWAMP against the others with them."""
    arms = [arm for arm in arms_of(frame) if not values(frame, arm, WITH_AUGMENTATION).empty]
    against = comparisons(frame, WITH_AUGMENTATION)
    rows = []
    for arm in arms:
        own = endpoint(frame, arm, WITH_AUGMENTATION)
        gain = compared(own, endpoint(frame, arm))
        less, p_value = ("", "")
        if arm in against:
            one, adjusted = against[arm]
            less = interval(one)
            p_value = f"{adjusted:.3g}"
        rows.append([LABELS[arm], str(len(own)), _mean(own.tolist()), "" if gain is None else interval(gain), less,
                     p_value])
    return _markdown(["arm", "n", "accuracy", "gain over unaugmented", "SWAMP minus it", "p (Holm)"], rows)


def length_table(frame: Frame) -> str:
    """The dense network after 2 T epochs minus that after T."""
    if not {"dense_2t", "imp"} <= set(frame["arm"]):
        return ""
    longer, shorter = accuracy(frame, "dense_2t"), accuracy(frame, "imp")
    one = compared(longer[0], shorter[0])
    if one is None:
        return ""
    verdict = "T is admissible" if one.mean < 1 else "T is too short by the rule of less than 1 point"
    return _markdown(["dense network", "n", "points (95 % interval)", ""],
                     [["2 T - T", str(one.num), interval(one), verdict]])


def _mean(found: Sequence[float], digits: int = 2) -> str:
    mean = sum(found) / len(found)
    if len(found) < 2:
        return f"{mean:.{digits}f}"
    error = math.sqrt(sum((value - mean) ** 2 for value in found) / (len(found) - 1) / len(found))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def _markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines_ = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    return "\n".join([*lines_, *("| " + " | ".join(row) + " |" for row in rows)])
