"""The driver: carries out what the state machine of the rounds asks for, and keeps the run's records.

Before any job is given out its name is looked up in the storage; what is there is used and not computed again.
Workers are started only when the first job is really needed.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from swamp_ray.errors import CorruptArtifactError, DivergedError, MissingPayloadError, RunError, SwampError
from swamp_ray.method.events import (
    DENSE,
    MASK,
    AddState,
    AveragerLostEvent,
    CancelJob,
    CloseAverage,
    DeadlinePassedEvent,
    Decision,
    Event,
    Instruction,
    Job,
    JobFailedEvent,
    JobFinishedEvent,
    Policy,
    RecordDecision,
    RecordRound,
    ReleaseState,
    RoundAveragedEvent,
    RoundResumedEvent,
    StateLostEvent,
    SubmitJob,
    trunk_of,
)
from swamp_ray.method.rounds import Rounds
from swamp_ray.run.averager import read_mask, refuse_emptied
from swamp_ray.run.costs import dense_cost, round_cost
from swamp_ray.run.failures import DIVERGED, FailureKind, divergence_advice, recall_divergence
from swamp_ray.run.journal import Journal
from swamp_ray.run.lease_watch import LeaseWatch
from swamp_ray.run.lookup import find_named, is_whole
from swamp_ray.run.messages import (
    AveragerLostReport,
    AverageSpec,
    Executor,
    JobAdvancedReport,
    JobBlockedReport,
    JobFailedReport,
    JobFinishedReport,
    JobSpec,
    JobStartedReport,
    NoticeReport,
    Outcome,
    Report,
    RoundAveragedReport,
    RoundRecord,
    StateLostReport,
    WorkersChangedReport,
)
from swamp_ray.run.object_store_memory import round_bytes
from swamp_ray.run.prepare import Prepared
from swamp_ray.run.reporter import Reporter
from swamp_ray.run.result_names import ResultNames
from swamp_ray.run.round_inputs import Inputs
from swamp_ray.run.round_records import round_record
from swamp_ray.run.signals import Stopping
from swamp_ray.run.stored_results import StoredResults
from swamp_ray.sparsity.thin_layers import thin_text
from swamp_ray.storage.artifacts import RESULT, ArtifactStore, Manifest, without_advice
from swamp_ray.storage.keeping import StateKeeper
from swamp_ray.storage.leases import Leases, artifact_lease
from swamp_ray.storage.states import lacks_state, state_digest
from swamp_ray.training.cost import Cost

WAIT_S = 0.2
ExecutorFactory = Callable[[Prepared, str], Executor]


class Driver:
    """One run.

    Args:
        prepared: The run, checked.
        store: Artifacts of the storage root.
        journal: The run's own records.
        reporter: Who is told.
        make_executor: Called when the first job is needed.
        stopping: What the user or the system has asked for.
        pause_after: Rounds after which the next one waits for :meth:`resume_after`: a scheduler may stop the run there.
    """

    def __init__(
        self,
        prepared: Prepared,
        store: ArtifactStore,
        journal: Journal,
        reporter: Reporter,
        make_executor: ExecutorFactory,
        stopping: Stopping | None = None,
        pause_after: Collection[int] = (),
    ) -> None:
        self._prepared = prepared
        self._store = store
        self._journal = journal
        self._reporter = reporter
        self._make_executor = make_executor
        self._stopping = stopping or Stopping()
        self._executor: Executor | None = None
        self._inputs = Inputs(prepared, store)
        self._names = ResultNames(prepared)
        self._outcomes: dict[Job, Outcome] = {}
        self._averages: dict[int, Manifest] = {}
        self._from_storage: list[Job] = []
        self._keeper = StateKeeper(prepared.config.keep.particles, store, journal.rundir)
        self._stored = StoredResults(store, journal, reporter)
        self._tickets = journal.rundir.tickets([plan.sparsity for plan in prepared.plan])
        self._ticket_digests: dict[int, str] = {}
        self._written: dict[int, RoundRecord] = {}
        self._num_reported = 0
        self._sized = -1
        self._error: BaseException | None = None
        self._error_spec: JobSpec | None = None
        self._given: dict[Job, JobSpec] = {}
        self._deadlines: dict[int, float] = {}
        self._pending: deque[Instruction] = deque()
        execution = prepared.config.execution
        particles = prepared.config.particles
        self._leases = Leases(store.place, execution.lease_expiry_s)
        self._lease_watch = LeaseWatch(execution.lease_expiry_s)
        self._machine = Rounds(
            prepared.plan,
            dense=prepared.dense is not None,
            mask=prepared.mask is not None,
            combine=particles.combine,
            max_retries=execution.max_retries,
            max_waiting_states=execution.max_waiting_states,
            pause_after=pause_after,
            policy=Policy(particles.on_failure, particles.max_reseeds, particles.min_count, particles.quorum),
            decisions=journal.decisions(),
        )

    def run(self) -> list[RoundRecord]:
        """Carry the run to its end.

        Returns:
            The record of every round.

        Raises:
            RunError: Something failed for good; what was finished is kept.
        """
        try:
            self.begin()
            while not self.over:
                self._stopping.check()
                self.step(WAIT_S)
        except KeyboardInterrupt:
            self._stop_work()
            raise
        finally:
            self.close()
        return self.records()

    def begin(self) -> None:
        """Give out the first jobs."""
        for plan in self._prepared.plan:
            self._tell_dropped(self._machine.dropped(plan.index))
        self._pending.extend(self._machine.start())
        self._carry_out_pending()

    @property
    def over(self) -> bool:
        """Whether nothing is left to do: the run is complete, or has failed."""
        return self._machine.finished

    @property
    def num_recorded(self) -> int:
        """How many rounds are recorded, counted from the first without a gap."""
        return self._num_reported

    def step(self, wait_s: float) -> None:
        """Process events; block up to ``wait_s`` for a report; submit the jobs that follow."""
        self._reporter.tick()
        for event in [*self._look_at_leases(), *self._passed_deadlines()]:
            self._pending.extend(self._machine.handle(event))
        self._carry_out_pending()
        if self.over:
            return
        reports = self._wait(wait_s)
        self._note_work()
        for report in reports:
            for event in self._translate(report):
                self._pending.extend(self._machine.handle(event))
        self._carry_out_pending()

    def resume_after(self, index: int) -> None:
        """Let the rounds after ``index`` begin, after which the run was told to pause."""
        self._pending.extend(self._machine.handle(RoundResumedEvent(index)))
        self._carry_out_pending()

    def check(self) -> None:
        """Raise what the run has failed of, if it has.

        Raises:
            RunError: The reason, with advice.
        """
        if self._machine.failed is not None:
            raise self._end(self._machine.failed)

    def close(self) -> None:
        """Stop all jobs and release the leases; idempotent."""
        if self._executor is not None:
            self._executor.close()
            self._note_work()
        self._release_leases()

    def records(self) -> list[RoundRecord]:
        """The record of every round, once the run is over.

        Raises:
            RunError: It has failed.
        """
        self.check()
        return [self.record(plan.index) for plan in self._prepared.plan]

    def _carry_out_pending(self) -> None:
        """Carry out all pending instructions and those that follow from them; check that the run is still ours."""
        self._carry_out_all(self._pending)
        self._journal.check_claim()

    def _stop_work(self) -> None:
        """Give running particles the time for a checkpoint."""
        grace_s = self._prepared.config.execution.grace_s
        if self._executor is not None and grace_s:
            self._reporter.stopping(grace_s)
            self._executor.stop(grace_s, lambda: self._stopping.impatient)

    def _wait(self, wait_s: float) -> Sequence[Report]:
        """The executor's reports; without an executor, none after ``wait_s``."""
        if self._executor is None:
            time.sleep(wait_s)
            return ()
        return self._executor.wait(wait_s)

    def _note_work(self) -> None:
        for worked in self._executor.worked() if self._executor is not None else ():
            self._journal.worked(worked)

    def _end(self, reason: str) -> SwampError:
        """The error that ended the run, with advice."""
        if isinstance(self._error, SwampError) and self._error.exit_code != 1:
            return self._error
        spec = self._error_spec
        if isinstance(self._error, DivergedError) and spec is not None:
            noted = find_named(self._store, spec.named, DIVERGED)
            where = self._store.where(noted.name, DIVERGED) if noted is not None else None
            reason = f"{reason}. {divergence_advice(self._prepared.config.particles, where)}"
        elif spec is not None and spec.log_path is not None and not isinstance(self._error, SwampError | None):
            reason = f"{reason}. The traceback is in {self._store.place.locate(spec.log_path)}"
        error = RunError(reason)
        error.__cause__ = self._error
        return error

    # Instructions

    def _carry_out_all(self, pending: deque[Instruction]) -> None:
        while pending:
            instruction = pending.popleft()
            # When the run has failed, what was finished before is still written down, and nothing new is begun.
            if self._machine.failed is not None and not isinstance(instruction, RecordRound | RecordDecision):
                continue
            for event in self._carry_out(instruction):
                pending.extend(self._machine.handle(event))

    def _carry_out(self, instruction: Instruction) -> list[Event]:
        match instruction:
            case SubmitJob():
                return self._submit(instruction)
            case AddState(round=index, particle=particle, from_storage=True):
                self._from_storage.append(Job("particle", index, particle))
            case AddState(round=index, particle=particle):
                job = Job("particle", index, particle)
                lost = self._flush_from_storage()
                if lost:
                    self._executor_now().release(job)
                    return lost
                self._executor_now().add(job, self._outcomes[job], self._size(index), from_storage=False)
            case ReleaseState(round=index, particle=particle):
                self._executor_now().release(Job("particle", index, particle))
            case RecordDecision(decision=decision):
                self._journal.decided(decision)
                self._tell(decision)
            case CancelJob(job=job):
                self._executor_now().cancel(job)
            case CloseAverage():
                return self._average(instruction)
            case RecordRound(round=index):
                self._write_round(index)
            case _:
                pass
        return []

    def _submit(self, instruction: SubmitJob, stale: bytes = b"") -> list[Event]:
        if self._inputs.lacks_trunk(instruction.job):
            return []  # its trunk was lost meanwhile; it is submitted again once that is trained
        spec = replace(self._spec(instruction), session=self._journal.session, stale=stale)
        self._given[spec.job] = spec
        self._journal.uses(spec.job, spec.named.name)
        outcome = self._stored.outcome(spec, verify=spec.job.kind not in ("particle", "trunk"))
        if outcome is not None:
            self._reporter.job_submitted(spec)
            return self._finished(spec.job, outcome, in_memory=False, found=True)
        lost = self._gone_members(spec)
        if lost:
            return lost
        if spec.program is not None and (error := recall_divergence(self._store, spec)) is not None:
            self._reporter.job_submitted(spec)
            return [self._failed(spec.job, error, "diverged")]
        executor = self._executor_now()
        self._look_at_memory(executor, spec.job)
        inputs = self._inputs.of(spec.job)
        start = self._inputs.start_handle(executor, spec.job)
        try:
            values = self._inputs.values_handle(executor, spec.job)
        except CorruptArtifactError as error:
            return self._lose_trunk(spec.job.round, error)
        self._reporter.job_submitted(spec)
        executor.submit(spec, start, inputs.mask_handle(executor), values, instruction.urgent)
        return []

    def _lose_trunk(self, index: int, error: CorruptArtifactError) -> list[Event]:
        """Train a round's trunk again, whose state was damaged, or deleted under `keep.particles`."""
        trunk = trunk_of(index)
        damaged = not isinstance(error, MissingPayloadError)
        outcome = self._outcomes.pop(trunk)
        if damaged:
            self._reporter.warning(f"{trunk} is trained again, because its stored state is damaged: "
                                   f"{without_advice(error)}")
            self._journal.incident(trunk, str(error), "damaged")
            self._store.discard(outcome.name, RESULT)
        else:
            self._reporter.warning(f"{trunk} is trained again, because its state was not kept (keep.particles) and "
                                   "particles that part from it are not stored")
            self._stored.deleted.add(trunk)
        self._inputs.of(trunk).forget_trunk()
        return [StateLostEvent(trunk, str(error), damaged)]

    def _gone_members(self, spec: JobSpec) -> list[Event]:
        """The losses of those particles of a soup that were let go: it is measured once they are trained again."""
        if not spec.members:
            return []
        gone: list[Job] = []
        for job, outcome in self._outcomes.items():
            if outcome.name in spec.members and job.round == spec.job.round and lacks_state(self._store, outcome.name):
                gone.append(job)
        return self._train_again(gone) if gone else []

    def _spec(self, instruction: SubmitJob) -> JobSpec:
        """All that a worker needs to know of a job."""
        job = instruction.job
        origin = self._inputs.origin(job)
        log_path = self._journal.log_path(job)
        if job.kind == "evaluation":
            average = self._averages[job.round]
            result = self._names.evaluation(job.round, state_digest(average.files), origin)
            return JobSpec(job, instruction.attempt, result.named, average=average.name, log_path=log_path)
        if job == MASK:
            return JobSpec(job, instruction.attempt, self._names.mask(origin).named, mask=self._prepared.mask,
                           log_path=log_path)
        if job.kind == "soup":
            members = [self._outcomes[Job("particle", job.round, one)] for one in instruction.particles]
            result = self._names.soup(job, [member.digest for member in members], origin)
            names = tuple(member.name for member in members)
            return JobSpec(job, instruction.attempt, result.named, members=names, log_path=log_path)
        result = self._names.training(job, origin, instruction.reseed)
        spec = JobSpec(job, instruction.attempt, result.named, result.seed, result.program, log_path=log_path,
                       reseed=instruction.reseed,
                       measurement=self._prepared.recipes.measurement(origin.mask, origin.start))
        if job == DENSE:
            return spec
        if job.kind == "trunk":
            return replace(spec, measurement=None)  # it is no result of the method
        return replace(spec, packing=self._prepared.packing(job.round),
                       seat=self._prepared.seat(job.round, job.particle))

    def _average(self, instruction: CloseAverage) -> list[Event]:
        index = instruction.round
        average = Job("average", index)
        plan = self._prepared.plan[index]
        inputs = self._inputs.of(average)
        jobs = [Job("particle", index, particle) for particle in instruction.particles]
        if any(job not in self._outcomes for job in jobs):
            return []  # one of them was lost meanwhile: the average is asked for again
        outcomes = [self._outcomes[job] for job in jobs]
        result = self._names.average(index, [outcome.digest for outcome in outcomes], self._inputs.origin(average))
        named = result.named
        self._journal.uses(average, named.name)
        found = self._stored.find(average, named, verify=True)
        if found is not None:
            self._from_storage.clear()
            return self._averaged(index, found.name)
        lost = self._flush_from_storage()
        if lost:
            return lost
        executor = self._executor_now()
        spec = AverageSpec(index, named, instruction.particles, plan.survivors, plan.next_survivors, result.seed)
        executor.average(spec, self._inputs.start_handle(executor), inputs.mask_handle(executor))
        return []

    def _flush_from_storage(self) -> list[Event]:
        """Additions from storage wait until it is clear that the average itself is not stored.

        Returns:
            The losses of those whose states were deleted; nothing is added then, and the round's average begins anew.
        """
        additions = self._from_storage
        self._from_storage = []
        gone = [job for job in additions if lacks_state(self._store, self._outcomes[job].name)]
        if gone:
            return self._train_again(gone)
        for job in additions:
            self._executor_now().add(job, self._outcomes[job], self._size(job.round), from_storage=True)
        return []

    def _train_again(self, gone: list[Job]) -> list[Event]:
        """Retrain particles whose states `keep.particles` had deleted."""
        if not self._stored.deleted.issuperset(gone):
            which = ", ".join(str(job.particle) for job in gone)
            self._reporter.warning(f"round {gone[0].round}: the states of particles {which} were not kept "
                                   "(keep.particles) and are trained again, because their average is not stored")
        self._stored.deleted.update(gone)
        self._deadlines.pop(gone[0].round, None)
        for job in gone:
            del self._outcomes[job]
        return [StateLostEvent(job, "its state was not kept", damaged=False) for job in gone]

    # Reports

    def _translate(self, report: Report) -> list[Event]:
        about_a_job = isinstance(report, JobStartedReport | JobAdvancedReport | JobFinishedReport | JobFailedReport)
        if about_a_job and report.job not in self._machine.open_jobs:
            self._executor_now().release(report.job)
            return []
        match report:
            case JobStartedReport(start=start):
                self._journal.started(start)
                return []
            case JobAdvancedReport(job=job, progress=progress):
                self._journal.advanced(job, progress)
                self._reporter.job_advanced(job, progress)
                return []
            case JobFinishedReport(job=job, outcome=outcome, in_memory=in_memory):
                self._journal.trained(job, outcome.trained_epochs)
                if in_memory and job.kind != "particle":
                    self._executor_now().release(job)
                return self._finished(job, outcome, in_memory, found=False)
            case JobFailedReport(job=job, error=error, kind=kind):
                damaged = self._damaged_members(job) if isinstance(error, CorruptArtifactError) else []
                return self._lose_damaged(damaged, str(error)) if damaged else [self._failed(job, error, kind)]
            case JobBlockedReport(spec=spec, held=held):
                if self._lease_watch.add(spec, held):
                    self._reporter.job_blocked(spec.job, held.who)
                return []
            case RoundAveragedReport(round=index, name=name):
                return self._averaged(index, name)
            case AveragerLostReport(reason=reason, died=died):
                what = "the averaging actor died and is started again" if died else "a state was lost on its way"
                self._reporter.warning(f"{what}; the round's states are read from storage: {reason}")
                self._journal.incident("averaging actor", reason, "machine")
                self._error = None
                return [AveragerLostEvent(reason)]
            case NoticeReport(who=who, text=text):
                self._reporter.warning(f"{who}: {text}")
                self._journal.incident(who, text, "machine")
                return []
            case WorkersChangedReport(num_workers=num_workers):
                self._reporter.workers_changed(num_workers)
                self._journal.started_workers(num_workers)
                return []
            case StateLostReport(job=job) if lacks_state(self._store, self._outcomes[job].name):
                return self._train_again([job])
            case StateLostReport(job=job, reason=reason):
                return self._lose_damaged([job], reason)

    def _damaged_members(self, soup: Job) -> list[Job]:
        """The particles of a soup whose stored states are not what was written."""
        members = self._given[soup].members
        damaged: list[Job] = []
        for job, outcome in self._outcomes.items():
            is_member = job.round == soup.round and outcome.name in members
            if is_member and not is_whole(self._store, outcome.name):
                damaged.append(job)
        return damaged

    def _lose_damaged(self, jobs: Sequence[Job], reason: str) -> list[Event]:
        """Retrain particles whose stored states are damaged."""
        for job in jobs:
            self._reporter.warning(f"{job} is trained again, because its stored state is damaged: {reason}")
            self._journal.incident(job, reason, "damaged")
            self._deadlines.pop(job.round, None)
            self._store.discard(self._outcomes.pop(job).name, RESULT)
        self._error = None
        return [StateLostEvent(job, reason) for job in jobs]

    def _finished(self, job: Job, outcome: Outcome, in_memory: bool, found: bool) -> list[Event]:
        self._outcomes[job] = outcome
        self._given.pop(job, None)
        if job == DENSE:
            self._inputs.rewind_to(outcome)
        elif job.kind == "trunk":
            self._inputs.of(job).trunk = outcome
        elif job == MASK:
            self._begin_with(outcome)
        elif job.kind == "particle":
            self._inputs.end_with(job, outcome)
        if "evaluation" in outcome.info:
            self._journal.uses(replace(job, kind="evaluation"), outcome.info["evaluation"])
        self._journal.finished(job, outcome)
        self._reporter.job_finished(job, found)
        if job.kind == "particle" and (deadline_s := self._prepared.config.particles.deadline_s) is not None:
            self._deadlines.setdefault(job.round, time.monotonic() + deadline_s)
        return [JobFinishedEvent(job, self._score(job, outcome), in_memory and job.kind == "particle")]

    def _failed(self, job: Job, error: BaseException, kind: FailureKind) -> JobFailedEvent:
        reason = str(error).strip() or type(error).__name__
        if isinstance(error, DivergedError):
            reason = error.what
        elif not isinstance(error, SwampError):
            reason = f"{type(error).__name__}: {reason}"
        spec = self._given[job]
        self._error = error
        self._error_spec = spec
        self._journal.incident(job, reason, kind, spec.attempt, spec.reseed)
        if kind == "machine":
            self._reporter.job_failed(job, reason.splitlines()[0], retry=True)
        return JobFailedEvent(job, reason, kind)

    def _tell(self, decision: Decision) -> None:
        if decision.drops:
            self._reporter.particle_dropped(decision.job, decision.reason)
        else:
            self._reporter.job_failed(decision.job, f"it diverged: {decision.reason}; seed {decision.attempt} "
                                       f"of at most {self._prepared.config.particles.max_reseeds} is next", retry=True)

    def _tell_dropped(self, decisions: list[Decision]) -> None:
        """What an earlier attempt decided holds, and is said again."""
        for decision in decisions:
            self._reporter.particle_dropped(decision.job, decision.reason)

    def _passed_deadlines(self) -> list[Event]:
        passed = [index for index, deadline in self._deadlines.items() if time.monotonic() >= deadline]
        for index in passed:
            self._deadlines[index] = math.inf
        return [DeadlinePassedEvent(index) for index in passed]

    def _averaged(self, index: int, name: str) -> list[Event]:
        manifest = self._store.find(name)
        if manifest is None:
            raise CorruptArtifactError(f"the average of round {index} has vanished from the storage")
        self._averages[index] = manifest
        self._look_at_layers(index + 1, manifest.info)
        if self._prepared.config.changes_mask:  # the training itself has chosen the mask
            densities = manifest.info["layer_densities"]
            self._look_at_layers(index, {"emptied_layers": [name for name in densities if densities[name] == 0]})
        self._inputs.follow(index, manifest)
        return [RoundAveragedEvent(index)]

    def _begin_with(self, outcome: Outcome) -> None:
        """The mask before training is there: the round trains with it."""
        manifest = self._store.find(outcome.name)
        bits = None if manifest is None else read_mask(self._store, manifest)
        if bits is None:
            raise CorruptArtifactError("the mask before training has vanished from the storage")
        self._inputs.train_with(bits)
        pruning = self._prepared.config.pruning
        kept = self._prepared.plan[0].survivors
        of = self._prepared.layout.num_prunable
        self._reporter.notice(f"the mask before training keeps {kept:,} of {of:,} weights, by {pruning.score}")
        self._look_at_layers(0, outcome.info)

    def _look_at_layers(self, index: int, info: Mapping[str, Any]) -> None:
        """Tell of layers that a round's mask empties, or nearly.

        Raises:
            RunError: It empties some, and the config refuses that. Whoever chose the mask may have allowed it.
        """
        refuse_emptied(self._prepared.config.pruning.empty_layers, info.get("emptied_layers", []))
        for emptied in info.get("emptied_layers", []):
            self._reporter.warning(f"round {index} leaves no weight in {emptied}")
        thin = info.get("thin_layers")
        if thin:
            self._reporter.warning(f"round {index} keeps only {thin_text(thin)}; pruning.exclude keeps a layer "
                                   "whole, and pruning.scope: erk or uniform divides the weights by layer")

    def _score(self, job: Job, outcome: Outcome) -> float:
        if job.kind not in ("particle", "soup"):
            return 0.0
        task = self._prepared.task
        value = float(outcome.info["metrics"]["validation"][task.primary])
        return value if task.higher_is_better else -value

    # What others are training

    def _look_at_leases(self) -> list[Event]:
        """Take up the jobs whose holders have finished, gone or fallen silent."""
        events: list[Event] = []
        for spec in self._lease_watch.due():
            if spec.job not in self._machine.open_jobs:
                self._lease_watch.remove(spec.job)
                continue
            stale = self._lease_watch.look(spec.job, self._leases.look(self._lease_watch.key(spec.job)))
            if stale is not None:
                self._lease_watch.remove(spec.job)
                if stale:
                    self._reporter.warning(f"{spec.job}: whoever trained it gives no sign of life; taking over")
                events += self._submit(SubmitJob(spec.job, spec.attempt, urgent=True, reseed=spec.reseed), stale)
        return events

    def _release_leases(self) -> None:
        """Give back what killed workers held; those who wait elsewhere cannot see that they are dead."""
        for spec in self._given.values():
            if spec.program is not None:
                self._leases.remove(artifact_lease(spec.named.name), session=self._journal.session)

    # Workers

    def _executor_now(self) -> Executor:
        if self._executor is None:
            self._reporter.executor_starting(self._prepared.config.execution.executor)
            self._executor = self._make_executor(self._prepared, self._store.place.uri)
            self._reporter.executor_started(self._executor.num_workers)
            self._journal.started_workers(self._executor.num_workers)
        return self._executor

    def _look_at_memory(self, executor: Executor, job: Job) -> None:
        """Before a round's first job: how many of its states may wait in memory."""
        if job.kind == "particle" and job.round != self._sized:
            self._sized = job.round
            needs = round_bytes(self._prepared, self._prepared.plan[job.round])
            asked = self._prepared.config.execution.max_waiting_states
            self._machine.limit_waiting_states(executor.room_for_states(needs, asked))

    def _size(self, index: int) -> int:
        """Elements of each state of a round."""
        return self._prepared.plan[index].survivors + self._prepared.layout.num_rest

    # Records

    def _write_round(self, index: int) -> None:
        record = self.record(index)
        average = self._averages[index]
        evaluation = self._outcomes[Job("evaluation", index)]
        record.ticket_sha256 = self._ticket_digests[index] = self._journal.write_ticket(
            self._prepared, record, average, evaluation.name, self._inputs.of(Job("average", index)).mask)
        self._journal.write_round(record)
        states = [entry["name"] for entry in record.artifacts["particles"]]
        if "trunk" in record.artifacts:
            states.append(record.artifacts["trunk"]["name"])
        self._keeper.recorded(index, states)
        self._inputs.release(index)
        self._written[index] = record
        # The last round is evaluated before the one before it, but people read rounds in order.
        while (following := self._written.pop(self._num_reported, None)) is not None:
            self._num_reported += 1
            self._reporter.round_finished(following)

    def record(self, index: int) -> RoundRecord:
        """The record of a round that is averaged and evaluated."""
        plan = self._prepared.plan[index]
        dropped = self._machine.dropped(index)
        jobs = [Job("particle", index, particle) for particle in self._entered(index)]
        so_far = dense_cost(self._prepared)
        for earlier in range(index):
            so_far += self._cost(earlier)
        cost = self._cost(index)
        return round_record(
            plan, [self._outcomes[job] for job in jobs], dropped, self._averages[index],
            self._outcomes[Job("evaluation", index)], self._tickets[index].key, self._ticket_digests.get(index, ""),
            self._outcomes.get(trunk_of(index)),
            costs=(cost, so_far + cost))

    def _entered(self, index: int) -> list[int]:
        """The particles of a round that were not dropped."""
        gone = {decision.particle for decision in self._machine.dropped(index)}
        return [particle for particle in range(self._prepared.plan[index].num_particles) if particle not in gone]

    def _cost(self, index: int) -> Cost:
        """What the trainings of an averaged round cost."""
        densities = self._averages[index].info["layer_densities"]
        return round_cost(self._prepared, self._prepared.plan[index], self._entered(index), densities)
