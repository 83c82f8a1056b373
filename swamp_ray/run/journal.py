"""What a run writes about itself: config, run.json, rounds, metrics, tickets, logs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from swamp_ray.config.reading import dump_config, parse_stored_config
from swamp_ray.credentials import Concealer, credentials_in
from swamp_ray.errors import CorruptArtifactError, RunError
from swamp_ray.method.events import DENSE, Decision, Job
from swamp_ray.run.messages import Outcome, RoundRecord
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.provenance import now
from swamp_ray.run.run_record import attempt_record, run_record, was_measured_with
from swamp_ray.run.timesheet import JobStart, JobTimes
from swamp_ray.run.worker import BUFFERS_FILE
from swamp_ray.sparsity.compact import full_state
from swamp_ray.sparsity.masks import split
from swamp_ray.storage.arrays import arrays_from_bytes
from swamp_ray.storage.artifacts import ArtifactStore, Manifest
from swamp_ray.storage.json_lines import Lines, sealed
from swamp_ray.storage.kept_sources import code_changes, keep_sources
from swamp_ray.storage.leases import Lease, LeaseLostError
from swamp_ray.storage.metrics import MetricsLog, mend_jsonl, salvage_jsonl, since_afresh, write_parquet
from swamp_ray.storage.names import digest_bytes
from swamp_ray.storage.place import FLUSH_S
from swamp_ray.storage.places import Spot
from swamp_ray.storage.records import JobEnded, JobEpoch, JobLine, JobStarted
from swamp_ray.storage.retrying import impatient
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.states import read_state
from swamp_ray.storage.tickets import ticket_bytes
from swamp_ray.training.results import Progress

_ABOUT = ("kind", "round", "particle", "epoch")
"""What tells lines of metrics apart."""

EPOCHS_WAIT_S = 30.0
EPOCHS_WAIT_SHARE = 0.01
"""How long the lines of finished epochs wait for others before an object store gets them: seconds at least, and this
share of the time since the attempt began."""


class Journal:
    """The records of one attempt at a run. Nothing is written before :meth:`open`.

    Args:
        rundir: The run's folder.
        store: Artifacts of the storage root.
    """

    def __init__(self, rundir: RunDir, store: ArtifactStore) -> None:
        self._unheld = rundir
        self._rundir = rundir
        self._store = store
        self._metrics: MetricsLog | None = None
        self._jobs: Lines | None = None
        self._logged: set[tuple[Any, ...]] = set()
        self._written: dict[int, dict[str, Any]] = {}
        self._run: dict[str, Any] = {}
        self._attempt: dict[str, Any] = {}
        self._saved: bytes | None = None
        self._began = 0.0
        self._lease: Lease | None = None
        self._named: set[tuple[Any, ...]] = set()
        self._conceal = Concealer()

    @property
    def rundir(self) -> RunDir:
        """The run's folder; while the journal is open it is written to only while the run is held."""
        return self._rundir

    def _records_of_lines(self) -> list[Spot]:
        found = self._unheld
        return [found.rounds, found.results, found.decisions, found.metrics, found.jobs]

    @property
    def session(self) -> str:
        """What tells this attempt from all others; empty while it is not open."""
        return "" if self._lease is None else self._lease.token

    def open(self, prepared: Prepared, say: Callable[[str], None] = lambda _: None) -> None:
        """Write config and run.json, and begin an attempt.

        Args:
            prepared: The run.
            say: Told when a process that worked on the run has to be watched before.

        Raises:
            UserError: Another process is working on the run.
        """
        self._lease = self._unheld.hold(prepared.config.execution.lease_expiry_s, say)
        self._rundir = self._unheld.held_by(self._lease)
        self._rundir.place.pin()
        self._began = time.monotonic()
        earlier = self._rundir.read_run() or {}
        text = self._rundir.read_config()
        then = None if text is None else parse_stored_config(text, source=str(self._rundir.config))
        was_measured = None if then is None else was_measured_with(prepared, earlier, then)
        has_other_code = bool(code_changes(self._unheld, prepared.config))
        if has_other_code:
            self._rundir.put_rounds_aside()
        plain = prepared.config.model_dump(mode="json")
        self._conceal = Concealer(plain)
        config_text = dump_config(prepared.config)
        self._rundir.write_config(config_text, private=bool(credentials_in(plain)))
        unverified = self._unheld.unverified(*self._records_of_lines())
        if unverified:
            say(f"not verified, since an older version wrote them without checksums: {', '.join(unverified)}")
        attempt = attempt_record(prepared)
        run = run_record(earlier, self._rundir.name, prepared, config_text, attempt)
        self._run, self._attempt, self._saved = run, attempt, self._rundir.run_json.read()
        self._save()
        mended = mend_jsonl(self._rundir.metrics)
        if mended:
            say(mended)
        known = since_afresh(salvage_jsonl(self._rundir.metrics).records)
        anew = bool(known) and (has_other_code or was_measured != prepared.recipes.measured)
        self._logged = {tuple(line.get(key) for key in _ABOUT) for line in known}
        self._metrics = MetricsLog(self._rundir.metrics, self._rundir.tensorboard, afresh=anew)
        if anew:
            self._logged.clear()
            self._metrics.flush()
        self._written = {line["round"]: line for line in self._rundir.read_rounds()}
        self._named = _distinct([tuple(line.values()) for line in self._rundir.read_results()],
                                self._rundir.results)
        # Last: until everything of the other code is aside, the next attempt has to see that the code has changed.
        keep_sources(self._rundir, prepared.config)

    def close(self, status: str, reason: str = "") -> None:
        """End the attempt: ``complete``, ``failed``, ``interrupted`` or ``stopped``.

        One that was never opened leaves no trace.
        """
        try:
            if not self._attempt:
                return
            with contextlib.suppress(RunError, OSError):
                if self._jobs is not None:
                    self._jobs.close()
            try:
                self._close_metrics()
            except (RunError, OSError):
                if status == "complete":
                    raise
                # A full disk: what the run failed of is more than a table.
            self._attempt |= {"ended": now(), "seconds": time.monotonic() - self._began, "status": status}
            if reason:
                self._attempt["reason"] = self._conceal(reason)
            self._run["status"] = status
            self._save()
        finally:
            if self._lease is not None:
                self._lease.release()
                self._lease = None
            self._rundir = self._unheld
            self._rundir.place.unpin()

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
            write_parquet(self._rundir.metrics, self._rundir.metrics_parquet)

    def _save(self) -> None:
        self._saved = self._rundir.write_run(self._run, self._saved)

    def check_claim(self) -> None:
        """Make sure that the run is still this process's.

        Raises:
            RunError: Another process has taken the run over, or its storage root was moved. Its records are not
                touched any more.
        """
        if self._lease is not None and self._lease.lost:
            raise LeaseLostError(self._lease.loss)
        self._rundir.place.check_pinned()

    @property
    def num_attempts(self) -> int:
        """How many attempts at the run there were, this one included."""
        return len(self._run.get("attempts", [1]))

    def log_path(self, job: Job) -> str:
        """A job's log file in this attempt, relative to the storage root."""
        name = str(job).replace(", ", "-").replace(" ", "-")
        return self._rundir.log(self.num_attempts, name).key

    def started_workers(self, num_workers: int) -> None:
        """Note how many workers the attempt has."""
        self._attempt["workers"] = num_workers
        self._save()

    def trained(self, job: Job, epochs: int) -> None:
        """Note what this attempt really computed."""
        self._attempt["trained_epochs"] += epochs
        self._attempt["trained"] += job.kind != "evaluation" and epochs > 0
        with contextlib.suppress(RunError, OSError):
            self._save()  # so that the count of an attempt that is killed is true

    def started(self, start: JobStart) -> None:
        """Note that a worker was given a job."""
        self._note_job(JobStarted(
            **_who(start.job), **_on_what(start), attempt=self.num_attempts, retry=start.attempt,
            reseed=start.reseed, began=start.began))

    def advanced(self, job: Job, progress: Progress) -> None:
        """Note an epoch that a job has trained."""
        self._note_job(JobEpoch(
            **_who(job), attempt=self.num_attempts, time=time.time(), epoch=progress.epoch,
            num_epochs=progress.num_epochs, loss=float(progress.loss),
            metrics={name: float(value) for name, value in progress.metrics.items()}, lr=float(progress.lr),
            samples_per_s=float(progress.samples_per_s)))

    def worked(self, worked: JobTimes) -> None:
        """Note what a worker did."""
        self._note_job(JobEnded(
            **_who(worked.job), **_on_what(worked), attempt=self.num_attempts, retry=worked.attempt,
            reseed=worked.reseed, began=worked.began, ended=worked.ended, how=worked.how, epochs=worked.epochs))

    def _note_job(self, record: JobLine) -> None:
        """Write a line of ``jobs.jsonl``. One that cannot be written is left out: no result depends on it."""
        # In an object store each write is another object, all of which a reader has to fetch: epochs, of which there
        # are many, wait for each other, and the longer the attempt lasts the longer they do.
        epochs_wait_s = max(EPOCHS_WAIT_S, EPOCHS_WAIT_SHARE * (time.monotonic() - self._began))
        with contextlib.suppress(RunError, OSError):
            if self._jobs is None:
                self._jobs = Lines(Spot(impatient(self._rundir.place), self._rundir.jobs.key))
            self._jobs.append(sealed(record.line()))
            self._jobs.flush_if_due(epochs_wait_s if isinstance(record, JobEpoch) else FLUSH_S)

    def incident(self, who: Job | str, reason: str, kind: str, attempt: int | None = None, reseed: int = 0) -> None:
        """Note a failure, whether or not it is overcome.

        Args:
            who: A job, or what else failed.
            reason: In words.
            kind: ``machine``, ``diverged``, ``error``, or what was decided (``reseed``, ``drop``, ``quorum``).
            attempt: How often the job had failed before with this seed, because of the machine.
            reseed: Which of the job's seeds it was.
        """
        entry: dict[str, Any] = {"time": now(), "who": str(who), "kind": kind,
                                 "reason": self._conceal(reason)}
        if isinstance(who, Job):
            entry |= {"round": who.round, "particle": who.particle, "attempt": attempt, "reseed": reseed}
        self._attempt["incidents"].append(entry)
        # If the disk is full, the first reason must not be hidden by a second one; run.json is written again later.
        with contextlib.suppress(RunError, OSError):
            self._save()

    def decisions(self) -> list[Decision]:
        """What earlier attempts at the run decided.

        Raises:
            CorruptArtifactError: The record of it is damaged.
        """
        try:
            found = [Decision(**line) for line in self._rundir.read_decisions()]
        except TypeError as error:
            raise self._wrong_decisions(f"a line is not a decision ({error})") from error
        plans = {plan["index"]: plan for plan in self._run.get("rounds", [])}
        for decision in found:
            plan = plans.get(decision.round, {})
            first = -1 if plan.get("has_trunk") and decision.what == "reseed" else 0
            if decision.job != DENSE and not first <= decision.particle < plan.get("num_particles", 0):
                raise self._wrong_decisions(f"it decides on {decision.job}, which the run does not have")
        # A line that is missing leaves no trace in the file, but one in the rounds that were recorded.
        for index, record in self._written.items():
            recorded = {entry["particle"] for entry in record.get("dropped", [])}
            decided = {decision.particle for decision in found if decision.drops and decision.round == index}
            if recorded != decided:
                raise self._wrong_decisions(f"round {index} was recorded without particles {sorted(recorded)}, but it "
                                            f"leaves out {sorted(decided)}")
        return found

    def _wrong_decisions(self, what: str) -> CorruptArtifactError:
        return CorruptArtifactError(f"{self._rundir.decisions}: {what}. Restore the file: the run's results depend on "
                                    "what is in it. Or run under another name.")

    def decided(self, decision: Decision) -> None:
        """Record a decision for good, before anything that follows from it is done.

        Raises:
            RunError: The storage could not be written.
        """
        self._rundir.append_decision(asdict(decision) | {"reason": self._conceal(decision.reason)})
        self.incident(decision.job, decision.reason, decision.what, reseed=decision.attempt)

    def finished(self, job: Job, outcome: Outcome) -> None:
        """Write a job's metrics, as far as no earlier attempt has."""
        if job.kind in ("evaluation", "mask", "soup"):
            return
        self._attempt["found"] += outcome.trained_epochs == 0
        particle = job.particle if job.kind == "particle" else None
        where = {"round": None if job == DENSE else job.round, "particle": particle}
        if self._metrics is None:
            return
        for line in outcome.info["history"]:
            self._log_once(kind=f"{job.kind}_epoch", **where, **line)
        metrics_at_end = {} if job.kind == "trunk" else outcome.info["metrics"]
        for name, metrics in (("as_trained", outcome.info.get("as_trained")), ("end", metrics_at_end)):
            if metrics is not None:
                self._log_once(kind=f"{job.kind}_{name}", **where, **flat(metrics))
        self._metrics.flush_if_due()

    def _log_once(self, **fields: Any) -> None:
        """Write a line of metrics, unless there is one about the same."""
        about = tuple(fields.get(key) for key in _ABOUT)
        if self._metrics is not None and about not in self._logged:
            self._metrics.log(**fields)
            self._logged.add(about)

    def uses(self, job: Job, name: str) -> None:
        """Note an artifact that the run needs, once; before it is looked for or made, so that nobody prunes it."""
        record = {"kind": job.kind, "round": job.round, "particle": job.particle, "name": name}
        if tuple(record.values()) not in self._named:
            self._rundir.append_result(record)
            self._named.add(tuple(record.values()))

    def write_round(self, record: RoundRecord) -> None:
        """Write a round's record and metrics, unless an earlier attempt has written the same, measurements aside."""
        plain = asdict(record)
        if self._written.get(record.round, {}) | {"peak_bytes": []} != plain | {"peak_bytes": []}:
            self._rundir.append_round(plain)
            self._written[record.round] = plain
        if self._metrics is not None:
            self._log_once(kind="round", round=record.round, sparsity=record.sparsity, spread=record.spread,
                              num_particles=record.num_particles, **flat(record.average),
                              **{f"particles_mean/{k}": v for k, v in flat(record.mean).items()},
                              **{f"particles_std/{k}": v for k, v in flat(record.std).items()},
                              **flat({"cost": record.cost, "cost_so_far": record.cost_so_far}))
            self._metrics.flush()

    def write_ticket(self, prepared: Prepared, record: RoundRecord, average: Manifest, evaluation: str,
                     mask: np.ndarray) -> str:
        """Write a round's averaged network, with its normalisation statistics and its mask, unless it is there.

        Returns:
            The SHA-256 of the file.
        """
        layout = prepared.layout
        found = self._store.find(evaluation)
        if found is None:
            raise RunError(f"the evaluation of round {record.round} has vanished from the storage")
        state = full_state(read_state(self._store, average), layout, mask)
        state |= arrays_from_bytes(self._store.read(found, BUFFERS_FILE))
        meta = {"round": record.round, "sparsity": record.sparsity, "survivors": record.survivors,
                "average": average.name, **prepared.use}
        data = ticket_bytes(prepared.tensors(state),
                            {name: torch.tensor(part) for name, part in split(layout, mask).items()}, meta)
        ticket = Spot(self._rundir.place, record.ticket)
        if ticket.read() != data:
            ticket.write(data)
        return digest_bytes(data)


def _who(job: Job) -> dict[str, Any]:
    """Which job a line is about."""
    return {"kind": job.kind, "round": None if job.round < 0 else job.round,
            "particle": None if job.particle < 0 else job.particle}


def _on_what(times: JobStart | JobTimes) -> dict[str, Any]:
    """Which worker does a job, and where."""
    where = times.where
    return {"worker": times.worker, "host": where and where.host, "device": where and where.device}


def flat(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``{"validation": {"accuracy": x}}`` as ``{"validation/accuracy": x}``."""
    return {f"{part}/{name}": value for part, values in metrics.items() for name, value in values.items()}


def _distinct(lines: list[tuple[Any, ...]], path: Spot) -> set[tuple[Any, ...]]:
    try:
        return set(lines)
    except TypeError as error:
        raise CorruptArtifactError(f"{path}: a line is not what was written ({error}). Restore the file, or delete "
                                   "that line.") from error
