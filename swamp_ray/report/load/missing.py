"""What a run should have written and has not: its files against each other."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from swamp_ray.report.load.runs import ReportRun
from swamp_ray.storage.kept_sources import changes_in_words
from swamp_ray.storage.liveness import life_of
from swamp_ray.text.tables import counted, ranges

DENSE_ROUND = -1
TRAINED = ("dense", "trunk", "particle")
NO_PARTICLE = -1


def missing(run: ReportRun) -> tuple[str, ...]:
    """What of a run cannot be read, or is not there although the run has done it: a sentence each."""
    return (*run.losses.sentences(), *_rounds(run), *_scalars(run), *_jobs(run), *_results(run),
            *filter(None, [changes_in_words(run.rundir, run.config)]))


def missing_rounds(run: ReportRun) -> list[int]:
    """Rounds that the run has finished, by what its other files say, and of which no record can be read."""
    have = {record["round"] for record in run.records}
    return sorted(_finished_rounds(run) - have)


def unknown_trainings(run: ReportRun) -> list[tuple[int, int]]:
    """Round and particle of finished trainings whose epochs are not all recorded.

    -1 and -1 stand for the dense phase, a round and -1 for its trunk.
    """
    trainings = [(record["round"], particle) for record in run.records for particle in _trainings_of(record)]
    if any(line["kind"] == "dense" for line in run.results):
        trainings.insert(0, (DENSE_ROUND, DENSE_ROUND))
    epochs, ended = _recorded_epochs(run)
    # Particles of a round are equally long, unless they vary; a trunk has a length of its own.
    most: dict[tuple[int, bool], int] = defaultdict(int)
    for (index, particle), found in epochs.items():
        alike = (index, particle == NO_PARTICLE)
        most[alike] = max(most[alike], *found)
    varied = bool(run.config.particles.vary.length)
    unknown = []
    for index, particle in trainings:
        least = 0 if varied else most[index, particle == NO_PARTICLE]
        if (index, particle) not in ended or not _is_whole(epochs.get((index, particle), set()), least):
            unknown.append((index, particle))
    return unknown


def has_no_jobs(run: ReportRun) -> bool:
    """Whether who trained what was never written down, or its file is gone as a whole."""
    return not run.jobs and not run.rundir.jobs.read_appended()


def particles_of(record: Mapping[str, Any]) -> list[int]:
    """The particles of a round that were trained to their end, as far as its record says."""
    dropped = {one["particle"] for one in record.get("dropped", [])}
    return [particle for particle in range(record["num_particles"]) if particle not in dropped]


def _trainings_of(record: Mapping[str, Any]) -> list[int]:
    """The particles of a round, and before them, as -1, its trunk."""
    trunk = [NO_PARTICLE] if "trunk" in record.get("artifacts", {}) else []
    return [*trunk, *particles_of(record)]


def _finished_rounds(run: ReportRun) -> set[int]:
    logged = set(_whole(run.metrics[run.metrics["kind"] == "round"]["round"])) \
        if {"kind", "round"} <= set(run.metrics) else set()
    if run.about.get("status") == "complete":
        return logged | {plan["index"] for plan in run.about.get("rounds", [])}
    if life_of(run.rundir, dict(run.about)).running:
        return logged
    return logged | set(range(max(record["round"] for record in run.records)))


def _rounds(run: ReportRun) -> Iterator[str]:
    absent = missing_rounds(run)
    if absent:
        total = len(run.records) + len(absent)
        says = "run.json says that the run is complete" if run.about.get("status") == "complete" else \
            "the run has finished more"
        yield (f"rounds.jsonl has {len(run.records)} of {counted(total, 'round')}, and {says}: round"
               f"{'s' * (len(absent) > 1)} {ranges(absent)} {'are' if len(absent) > 1 else 'is'} missing from tables "
               "and figures. The run's own command writes the record anew from the stored results.")


def _scalars(run: ReportRun) -> Iterator[str]:
    lacking = unknown_trainings(run)
    if not lacking:
        return
    of = sum(len(_trainings_of(record)) for record in run.records) + (lacking[0][0] == DENSE_ROUND)
    where = [f"the {name}" for name in ["dense phase"] if lacking[0][0] == DENSE_ROUND]
    rounds = {index for index, _ in lacking if index != DENSE_ROUND}
    if rounds:
        where.append(f"round{'s' * (len(rounds) > 1)} {ranges(rounds)}")
    yield (f"metrics.jsonl lacks epochs of {len(lacking)} of {counted(of, 'training')} ({' and '.join(where)}): "
           "curves, the number of epochs and accuracy against epochs are not complete, or not there.")


def _jobs(run: ReportRun) -> Iterator[str]:
    """A killed attempt may have counted what its workers had just finished before it noted who did it."""
    if has_no_jobs(run):
        return
    done = Counter(line.attempt for line in run.jobs if line.kind in TRAINED and line.epochs > 0)
    attempts: Sequence[Mapping[str, Any]] = run.about.get("attempts", [])
    lacking = of = 0
    for number, attempt in enumerate(attempts, start=1):
        of += attempt["trained"]
        slack = 0 if "ended" in attempt else int(attempt.get("workers") or 1)
        lacking += max(0, attempt["trained"] - done[number]) if attempt["trained"] - done[number] > slack else 0
    if lacking:
        yield (f"jobs.jsonl has {of - lacking} of {counted(of, 'training')} that run.json counts: the figure of the "
               "workers lacks the others.")


def _results(run: ReportRun) -> Iterator[str]:
    noted = {line["name"] for line in run.results}
    named = {entry["name"] for record in run.records for entry in record["artifacts"]["particles"]} \
        if all("artifacts" in record for record in run.records) else set()
    lacking = len(named - noted)
    if lacking:
        dense = "" if any(line["kind"] == "dense" for line in run.results) else \
            "; a dense phase, if there was one, is not in the costs"
        yield f"results.jsonl lacks {lacking} of {counted(len(named), 'result')} of the finished rounds{dense}."


def _recorded_epochs(run: ReportRun) -> tuple[dict[tuple[int, int], set[int]], set[tuple[int, int]]]:
    """By round and particle the epochs that are recorded, and of which the end is."""
    epochs: dict[tuple[int, int], set[int]] = defaultdict(set)
    ended: set[tuple[int, int]] = set()
    if "kind" not in run.metrics:
        return epochs, ended
    columns = run.metrics.reindex(columns=["kind", "round", "particle", "epoch"])
    kinds = columns["kind"].tolist()
    numbers = columns[["round", "particle", "epoch"]].fillna(DENSE_ROUND).astype(int).to_numpy().tolist()
    for kind, (index, particle, epoch) in zip(kinds, numbers, strict=True):
        what, _, part = kind.partition("_")
        if what in TRAINED and part == "epoch":
            epochs[index, particle].add(epoch)
        elif what in TRAINED and part == "end":
            ended.add((index, particle))
    return epochs, ended


def _is_whole(epochs: set[int], least: int) -> bool:
    return bool(epochs) and len(epochs) == max(epochs) >= least


def _whole(values: Any) -> list[int]:
    return [int(value) for value in values.dropna()]
