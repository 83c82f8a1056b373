"""The card of a run: what was run, with what, when, and what it cost. What is not known is left out."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swamp_ray.credentials import concealed_tree
from swamp_ray.report.load.broken_off import broken_off
from swamp_ray.report.load.costs import DeviceTime, account_text, broken_off_time, device_time, epochs_by_round
from swamp_ray.report.load.missing import missing_rounds, unknown_trainings
from swamp_ray.report.load.runs import ReportRun
from swamp_ray.report.page.method import method_words
from swamp_ray.sparsity.thin_layers import thin_of_record, thin_text
from swamp_ray.storage.liveness import life_of
from swamp_ray.text.tables import counted, duration, percent

INCIDENTS = {
    "machine": ("failure of a machine", "failures of machines"),
    "diverged": ("particle diverged", "particles diverged"),
    "error": ("error", "errors"),
    "damaged": ("damaged result", "damaged results"),
    "reseed": ("training began anew with another seed", "trainings began anew with other seeds"),
    "drop": ("particle was left out because it diverged", "particles were left out because they diverged"),
    "quorum": ("particle was left out because it was late", "particles were left out because they were late"),
}
SHOWN_INCIDENTS = 100


@dataclass(frozen=True)
class Card:
    """One run.

    Attributes:
        name: Of the run.
        arm: That it belongs to.
        status: A sentence where it is not complete, else empty.
        badges: What that is in a word or two, and whether something of it is missing.
        facts: Label and text, in order.
        incidents: When, who, what and why.
    """

    name: str
    arm: str
    status: str
    facts: tuple[tuple[str, str], ...]
    incidents: tuple[tuple[str, str, str, str], ...]
    badges: tuple[str, ...] = ()


def card(run: ReportRun, lacks_something: bool = False) -> Card:
    """The card of a run.

    Args:
        run: The run.
        lacks_something: Whether the page says of it that something is missing.
    """
    about = run.about
    attempts: Sequence[Mapping[str, Any]] = about.get("attempts", [])
    facts = [("Method", method_words(run.config)), *_subject(run), *_machine(about, attempts), *_when(attempts),
             *_cost(run, attempts), ("Failures", failures(attempts))]
    incidents = [(one["time"], one["who"], str(one.get("kind", "")), one["reason"])
                 for attempt in attempts for one in attempt["incidents"]]
    badges = [*["unfinished"] * bool(status(run)), *["something is missing"] * lacks_something]
    return Card(run.name, run.arm, status(run), tuple((label, text) for label, text in facts if text),
                tuple(incidents[:SHOWN_INCIDENTS]), tuple(badges))


def shared_facts(cards: Sequence[Card]) -> tuple[tuple[str, str], ...]:
    """What several cards all say; nothing of a single one."""
    if len(cards) < 2:
        return ()
    return tuple(fact for fact in cards[0].facts if all(fact in one.facts for one in cards))


def status(run: ReportRun) -> str:
    """How far a run is, as a sentence; empty for one that is complete, whatever can still be read of it."""
    done = len(run.records) + len(missing_rounds(run))
    planned = len(run.about.get("rounds", []))
    recorded = str(run.about.get("status", ""))
    if recorded == "complete":
        return ""
    far = f"{done} of {planned} rounds are finished" if planned else f"{done} rounds are finished"
    if recorded == "running":
        how = "it was still at work" if life_of(run.rundir, dict(run.about)).running else "it was ended from outside"
        return f"Unfinished: {far}; {how} when this page was made."
    reason = next((str(attempt["reason"]) for attempt in reversed(run.about.get("attempts", []))
                   if attempt.get("reason")), "")
    return f"Unfinished: {far}; its last attempt: {recorded or 'not known'}." + (f" {reason}" if reason else "")


def _subject(run: ReportRun) -> Iterator[tuple[str, str]]:
    config = run.config
    data = run.about.get("data", {})
    prunable = run.about.get("num_prunable")
    yield "Model", _named(config.model.name, config.model.options) + (
        f", {prunable:,} prunable weights" if prunable else "") + _of_all(run)
    sizes = ", ".join(f"{data[part]:,} {part}" for part in ("train", "validation", "test")
                      if isinstance(data.get(part), int))
    sample = f"samples {data['sample']}" if data.get("sample") else ""
    yield "Data", "; ".join(filter(None, [_named(config.data.name, config.data.options), sample, sizes]))
    yield "Training", _training(run)
    yield "Seed", str(run.seed)


def _of_all(run: ReportRun) -> str:
    """The last sparsity as a share of all parameters; runs of before did not record their number."""
    prunable = run.about.get("num_prunable")
    parameters = run.about.get("num_parameters")
    if not prunable or not parameters or not run.records:
        return ""
    last = run.records[-1]
    text = (f" of {parameters:,} parameters; at {percent(last['sparsity'])} sparsity "
            f"{percent((prunable - last['survivors']) / parameters)} of all parameters are pruned")
    notes = [*run.about.get("notes", [])]
    thin = thin_of_record(last, run.about.get("layers", []))
    if thin:
        notes.append(f"round {last['round']} keeps only {thin_text(thin)}")
    return text + "".join(f". Warning: {note}" for note in notes)


def _named(name: str, options: Mapping[str, Any]) -> str:
    shown = concealed_tree(options)
    return name + (f" ({', '.join(f'{key}: {value}' for key, value in shown.items())})" if options else "")


def _training(run: ReportRun) -> str:
    training = run.config.training
    momentum = f", momentum {training.momentum:g}" if training.optimizer == "sgd" else ""
    sam = "" if training.sam_rho is None else f", SAM of radius {training.sam_rho:g} (two gradients a step)"
    return (f"{training.optimizer.upper() if training.optimizer == 'sgd' else 'AdamW'}, batches of "
            f"{training.batch_size}, learning rate {training.lr:g} ({training.schedule.name}){momentum}, weight decay "
            f"{training.weight_decay:g}{sam}")


def _machine(about: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    arithmetic = about.get("arithmetic", {})
    yield "Arithmetic", ", ".join(_arithmetic(arithmetic))
    if not attempts:
        return
    last = attempts[-1]
    facts = last.get("facts", {})
    yield "Hardware", "; ".join(dict.fromkeys(_hardware(attempt) for attempt in attempts))
    versions = {"Python": last.get("python"), **last.get("versions", {}), "cuDNN": facts.get("cudnn")}
    yield "Versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    yield "Command", shlex.join(map(str, last.get("argv", [])))
    yield "Commit", str(last.get("commit") or "")


def _arithmetic(arithmetic: Mapping[str, Any]) -> Iterator[str]:
    if arithmetic.get("device"):
        yield {"cpu": "CPU", "cuda": "CUDA"}.get(arithmetic["device"], str(arithmetic["device"]))
    if arithmetic.get("precision"):
        yield str(arithmetic["precision"])
    threads, ranks, packing = (arithmetic.get(name) for name in ("threads", "ranks", "packing"))
    if threads:
        yield f"{threads} thread{'s' if threads != 1 else ''} a particle"
    if ranks and ranks != 1:
        yield f"{ranks} ranks a particle"
    if packing and packing != "single:1":
        yield f"packed ({packing})"
    for name in ("channels_last", "compile", "deterministic"):
        if arithmetic.get(name):
            yield name


def _hardware(attempt: Mapping[str, Any]) -> str:
    facts = attempt.get("facts", {})
    processor = " ".join(filter(None, [facts.get("machine"), f"with {facts['cpu']}" if facts.get("cpu") else ""]))
    workers = attempt.get("workers")
    what = ", ".join(filter(None, [facts.get("gpu"), processor, f"{workers} worker{'s' if workers != 1 else ''}"
                                   if workers else "", f"executor {attempt['executor']}"]))
    return f"{attempt['host']}: {what}"


def _when(attempts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    if not attempts:
        return
    ended = attempts[-1].get("ended")
    yield "When", attempts[0]["started"] + (f" to {ended}" if ended else "")
    spent = [attempt["seconds"] for attempt in attempts if isinstance(attempt.get("seconds"), int | float)]
    if spent:
        least = "at least " if len(spent) < len(attempts) else ""
        several = f", in {len(attempts)} attempts" if len(attempts) > 1 else ""
        yield "Wall time", f"{least}{duration(sum(spent))}{several}"


def _cost(run: ReportRun, attempts: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    named = sum(epochs_by_round(run).values())
    broken = broken_off(run)
    trained = sum(int(attempt.get("trained_epochs", 0)) for attempt in attempts) + broken.epochs
    found = sum(attempt["found"] for attempt in attempts)
    least = "at least " if unknown_trainings(run) else ""
    text = f"{least}{named:,} particle-epochs, the dense phase included" if named else ""
    own = f"{'at least ' if broken.num_killed else ''}{trained:,}" + ("" if named else " particle-epochs")
    own += " were trained by this run"
    own += f", {broken.epochs:,} of them in trainings that were broken off" if broken.epochs else ""
    if found:
        own += f"; {found} result{'s were' if found != 1 else ' was'} found in the storage"
    yield "Epochs", "; ".join(filter(None, [text, own]))
    yield "Cost", account_text(run)
    time = device_time(run)
    if time is not None:
        text = _hours(time, broken_off_time(run, broken), broken.num_killed)
        yield "GPU-hours" if time.unit == "GPU" else "Core-hours", text


def _hours(time: DeviceTime, broken_off_s: float, num_killed: int) -> str:
    text = f"{_number(time.seconds / 3600)} for training"
    if time.own_seconds < time.seconds:
        text += f", {_number(time.own_seconds / 3600)} of them by this run"
    text += f"; not known of {counted(time.num_unknown, 'result')}" if time.num_unknown else ""
    if num_killed:
        text += (f"; at least {_number(broken_off_s / 3600)} more in trainings that were broken off: of "
                 f"{counted(num_killed, 'attempt')} that {'were' if num_killed > 1 else 'was'} killed, up to the last "
                 "sign of life")
    elif broken_off_s:
        text += f"; {_number(broken_off_s / 3600)} more in trainings that were broken off"
    return text


def _number(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 1000 else f"{hours:.3g}"


def failures(attempts: Sequence[Mapping[str, Any]]) -> str:
    """What went wrong and how often, in a sentence."""
    counts = Counter(str(one.get("kind", "error")) for attempt in attempts for one in attempt["incidents"])
    if not counts and len(attempts) < 2:
        return "None." if attempts else ""
    parts = [f"{count} {INCIDENTS.get(kind, (kind, kind))[count != 1]}" for kind, count in counts.items()]
    killed = sum("ended" not in attempt for attempt in attempts[:-1])
    if killed:
        parts.append(f"{killed} attempt{'s were' if killed > 1 else ' was'} ended from outside")
    again = f"it was started {len(attempts)} times" if len(attempts) > 1 else ""
    return "; ".join(filter(None, [*parts, again])).capitalize() + "."
