"""``swamp status``: what is done of a run, from the storage alone."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from swamp_ray.errors import CorruptArtifactError, UserError
from swamp_ray.method.events import DENSE, MASK, Job, trunk_of
from swamp_ray.sparsity.thin_layers import thin_of_record, thin_text
from swamp_ray.storage.artifacts import CHECKPOINT, ArtifactStore
from swamp_ray.storage.find import edit_in_words, find_run
from swamp_ray.storage.json_lines import salvage_bytes
from swamp_ray.storage.leases import Watch, artifact_lease
from swamp_ray.storage.liveness import life_of
from swamp_ray.storage.older_job_logs import last_epoch
from swamp_ray.storage.records import JobEpoch, JobStarted, is_job_line, parse_job_lines
from swamp_ray.storage.run_folder import RunDir, check_run_record
from swamp_ray.text.costs import cost_text
from swamp_ray.text.metric_names import Metric
from swamp_ray.text.output import Output, is_live
from swamp_ray.text.tables import display_path, duration, percent, results_table

REFRESH_S = 2.0
SHOWN_ROUNDS = 8


def show_status(run: str, storage: str | None = None, watch: bool = False) -> None:
    """Print the state of a run; with ``watch`` until it is over, or nobody works on it any more.

    Raises:
        UserError: There is no such run.
    """
    rundir = find_run(run, storage)
    console = Output(highlight=False)
    if not (watch and is_live(console)):
        for part in describe(rundir):
            console.print(part, soft_wrap=isinstance(part, Text))
        return
    watcher = Watch()
    epochs = EpochsSoFar(rundir)
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(Group(*describe(rundir, watcher, epochs)), refresh=True)
            if not life_of(rundir, _record(rundir), watcher).running:
                return
            time.sleep(REFRESH_S)


def describe(rundir: RunDir, watch: Watch | None = None, epochs: EpochsSoFar | None = None) -> list[Text | Table]:
    """Status, what is missing, failures that were met, and the table of finished rounds.

    Args:
        rundir: The run.
        watch: Kept from call to call it sees whether a process on another machine still works.
        epochs: Kept from call to call it reads only what is new.
    """
    record = _record(rundir)
    life = life_of(rundir, record, watch)
    rounds = rundir.read_rounds()
    planned = record.get("rounds", [])
    lines: list[Text | Table] = [Text(f"{rundir.name}: {life.text}, {len(rounds)} of {len(planned)} rounds",
                             style="bold")]
    lines += [Text(line) for line in [*_coverage(record), *_attempts(record, life.running)]]
    edited = edit_in_words(rundir, record)
    if edited:
        lines.append(Text(f"warning: {edited}", style="yellow"))
    unverified = rundir.unverified(rundir.rounds, rundir.results)
    if unverified:
        lines.append(Text("not verified, since an older version wrote them without checksums: "
                          + ", ".join(unverified)))
    done = {entry["round"] for entry in rounds}
    missing = [plan for plan in planned if plan["index"] not in done]
    if missing:
        shown = ", ".join(f"{plan['index']} ({percent(plan['sparsity'])})" for plan in missing[:SHOWN_ROUNDS])
        lines.append(Text(f"missing: rounds {shown}{' ...' if len(missing) > SHOWN_ROUNDS else ''}"))
        open_work = _OpenWork(rundir, record, life.running, epochs or EpochsSoFar(rundir))
        lines += [Text(line) for line in open_work.lines(missing)]
        lines += [Text(line) for line in _logs(rundir)]
    if rounds:
        if rounds[-1].get("cost_so_far"):
            lines.append(Text(f"cost up to round {rounds[-1]['round']}: {cost_text(rounds[-1]['cost_so_far'])}"))
        thin = thin_of_record(rounds[-1], record.get("layers", []))
        if thin:
            lines.append(Text(f"warning: round {rounds[-1]['round']} keeps only {thin_text(thin)}", style="yellow"))
        lines.append(_results(rundir, rounds, Metric(record.get("primary", "accuracy"), record.get("shown_as"))))
    return lines


def _coverage(record: dict[str, Any]) -> list[str]:
    """How much of the network is pruned at the end, and what is odd about it; runs of before did not record it."""
    prunable = record.get("num_prunable")
    parameters = record.get("num_parameters")
    planned = record.get("rounds")
    if not prunable or not parameters or not planned:
        return []
    of_all = (prunable - planned[-1]["survivors"]) / parameters
    return [f"{prunable:,} prunable weights of {parameters:,} parameters: at {percent(planned[-1]['sparsity'])} "
            f"sparsity {percent(of_all)} of all parameters are pruned",
            *(f"warning: {text}" for text in record.get("notes", []))]


def _record(rundir: RunDir) -> dict[str, Any]:
    record = rundir.read_run()
    if record is None:
        raise UserError("the run has not started yet", where=str(rundir.spot()))
    check_run_record(record, rundir.run_json)
    return record


class _OpenWork:
    """What has become of the jobs of the rounds that are not finished."""

    def __init__(self, rundir: RunDir, record: dict[str, Any], running: bool, epochs: EpochsSoFar) -> None:
        self._rundir = rundir
        self._running = running
        self._store = ArtifactStore(rundir.place)
        self._leases = rundir.leases()
        # A job that had to be named anew, as after a loss of its start, was noted later.
        self._names = {Job(line["kind"], line["round"], line["particle"]): str(line["name"])
                       for line in rundir.read_results()}
        self._epochs = epochs
        epochs.read_on(max(1, len(record.get("attempts", []))))

    def lines(self, missing: list[dict[str, Any]]) -> list[str]:
        """One for the dense phase if it is not done, one for each round that was begun."""
        found = []
        if DENSE in self._names and (state := self._state(DENSE)) != "done":
            found.append(f"dense phase: {state}")
        if MASK in self._names and (state := self._state(MASK)) != "done":
            found.append(f"mask before training: {state}")
        for plan in missing:
            works = [Job("particle", plan["index"], particle) for particle in range(plan["num_particles"])]
            trunk = trunk_of(plan["index"])
            if trunk in self._names and (state := self._state(trunk)) != "done":
                found.append(f"round {plan['index']}: trunk {state}; {plan['num_particles']} particles part from it")
            elif any(work in self._names for work in works):
                states = {work.particle: self._state(work) for work in works}
                found.append(f"round {plan['index']}: {_by_state(states)}{self._after(plan['index'], states)}")
        return found

    def _after(self, index: int, states: dict[int, str]) -> str:
        """What a round lacks whose particles are all done: it is not finished before it is evaluated and recorded."""
        if set(states.values()) != {"done"}:
            return ""
        average = self._state(Job("average", index))
        evaluation = self._state(Job("evaluation", index))
        if average != "done":
            return "; their average is still to be made"
        if evaluation != "done":
            return f"; averaged; the evaluation of the average: {evaluation}"
        return "; averaged and evaluated; only the round's record is missing"

    def _state(self, work: Job) -> str:
        name = self._names.get(work)
        if name is None:
            return "missing"
        with contextlib.suppress(CorruptArtifactError):
            if self._store.find(name) is not None:
                return "done"
        held = self._leases.look(artifact_lease(name))
        own = held is not None and held.holder is not None and held.holder.run == self._rundir.name
        if held is not None and held.life != "gone" and (self._running or not own):
            epoch = self._epochs.of(work) or self._checkpointed(name)
            return f"training{epoch}" + ("" if own else f" by {held.who}")
        return ("queued" if self._running else "missing") + self._checkpointed(name)

    def _checkpointed(self, name: str) -> str:
        """The epoch from which an unfinished training goes on."""
        with contextlib.suppress(CorruptArtifactError):
            checkpoint = self._store.find(name, CHECKPOINT)
            if checkpoint is not None:
                return f", epoch {checkpoint.info.get('epoch')}"
        return ""


class EpochsSoFar:
    """How far trainings have come in one attempt at a run. What was read of ``jobs.jsonl`` is not read again.

    Args:
        rundir: The run.
    """

    def __init__(self, rundir: RunDir) -> None:
        self._rundir = rundir
        self._attempt = 1
        self._num_read = 0
        self._last: dict[tuple[int, Job], JobEpoch] = {}
        self._recorded: set[int] = set()

    def read_on(self, attempt: int) -> None:
        """Take in what was written since the last call; from now on `of` is about this attempt."""
        self._attempt = attempt
        data = self._rundir.jobs.read_appended(self._num_read)
        whole_lines = data[:data.rfind(b"\n") + 1]
        self._num_read += len(whole_lines)
        for line in parse_job_lines(salvage_bytes(whole_lines, is_job_line).records):
            if isinstance(line, JobStarted):
                self._recorded.add(line.attempt)
                self._last.pop((line.attempt, line.job()), None)  # tried again
            elif isinstance(line, JobEpoch):
                self._last[line.attempt, line.job()] = line

    def of(self, work: Job) -> str:
        """The last epoch, or nothing where none is finished."""
        if self._attempt in self._recorded:
            line = self._last.get((self._attempt, work))
            return "" if line is None else f", epoch {line.epoch}/{line.num_epochs}"
        log = self._rundir.log(self._attempt, str(work).replace(", ", "-").replace(" ", "-"))
        epoch = last_epoch(log.read_appended().decode(errors="replace"))
        return "" if epoch is None else f", epoch {epoch[0]}/{epoch[1]}"


def _by_state(states: dict[int, str]) -> str:
    """``"2 of 4 particles done; 2: training, epoch 3/10; missing: 3"``; equal states are put together."""
    groups: dict[str, list[int]] = {}
    for particle, state in states.items():
        groups.setdefault(state, []).append(particle)
    done = len(groups.pop("done", []))
    parts = [f"{state}: particle{'s' if len(particles) > 1 else ''} {', '.join(map(str, particles))}"
             for state, particles in groups.items()]
    return "; ".join([f"{done} of {len(states)} particles done", *parts])


def _results(rundir: RunDir, rounds: list[dict[str, Any]], primary: str) -> Table:
    try:
        return results_table(rounds, primary)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptArtifactError(f"{rundir.rounds}: its rounds are not what was written "
                                   f"({type(error).__name__}: {error}). Run the run again, which writes them anew, or "
                                   "restore the file.") from error


def _attempts(record: dict[str, Any], running: bool) -> list[str]:
    lines = []
    attempts = record.get("attempts", [])
    for number, attempt in enumerate(attempts, start=1):
        unended = "running" if running and number == len(attempts) else "killed"
        spent = f", {duration(attempt['seconds'])}" if "seconds" in attempt else ""
        lines.append(f"attempt {number}: {attempt.get('status', unended)}{spent}; {attempt['trained']} trained, "
                     f"{attempt['found']} found; started {attempt['started']} on {attempt['host']} with "
                     f"{attempt['executor']}")
        lines += [_incident(one) for one in attempt["incidents"]]
    return lines


def _incident(one: dict[str, Any]) -> str:
    kind = f" ({one['kind']})" if "kind" in one else ""
    return f"  {one['time']} {one['who']}{kind}: {one['reason'].splitlines()[0]}"


def _logs(rundir: RunDir) -> list[str]:
    """The last line of the logs that were written last."""
    return [f"  {display_path(spot.location)}: {line}" for spot, line in rundir.last_log_lines(3)]
