"""The member runs of one setting, side by side: one for each seed, on one pool of workers.

A member is what ``swamp run`` would do with its config. The team goes from milestone to milestone: one is reached
once every member has recorded its round, and members may pause there until the team is told to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.samples import Data
from swamp_ray.errors import Interrupted, RunError, SwampError
from swamp_ray.method.events import Job, RoundPlan
from swamp_ray.on_ray.actors import Spares
from swamp_ray.on_ray.choose_packing import (
    measure_here,
    measure_on_ray,
    recorded_packing,
    with_chosen_packing,
    workers_for,
)
from swamp_ray.on_ray.executor import RayExecutor
from swamp_ray.on_ray.pool import Pool
from swamp_ray.on_ray.sending import sendable
from swamp_ray.run.driver import WAIT_S, Driver
from swamp_ray.run.inline_executor import InlineExecutor
from swamp_ray.run.journal import Journal
from swamp_ray.run.messages import Executor, RoundRecord
from swamp_ray.run.name_check import CodeChanged, check_name
from swamp_ray.run.older_runs import knowing_older_runs
from swamp_ray.run.prepare import Prepared, prepare
from swamp_ray.run.reporter import Reporter
from swamp_ray.run.signals import Stopping
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.job_log import JobLog
from swamp_ray.storage.place import Place
from swamp_ray.storage.places import open_place
from swamp_ray.storage.run_folder import RunDir


@dataclass(frozen=True)
class Milestone:
    """What all members have reached.

    Attributes:
        number: Counted from 1.
        round: r of every member.
        sparsity: Of that round.
        records: The round's record of each member.
    """

    number: int
    round: int
    sparsity: float
    records: list[RoundRecord]


class _RunLog(Reporter):
    """What a run's console would have shown, as lines of a log in the run's folder."""

    def __init__(self, log: JobLog) -> None:
        self._log = log

    def job_failed(self, job: Job, reason: str, retry: bool) -> None:
        """A line."""
        self._log(f"{job} failed: {reason}" + (" - trying again" if retry else ""))

    def particle_dropped(self, job: Job, reason: str) -> None:
        """A line."""
        self._log(f"round {job.round} goes on without particle {job.particle}: {reason}")

    def job_blocked(self, job: Job, who: str) -> None:
        """A line."""
        self._log(f"{job} is being trained by {who}")

    def round_finished(self, record: RoundRecord) -> None:
        """A line."""
        self._log(f"round {record.round} recorded, sparsity {record.sparsity:.4f}")

    def warning(self, text: str) -> None:
        """A line."""
        self._log(f"warning: {text}")

    def notice(self, text: str) -> None:
        """A line."""
        self._log(text)


class Team:
    """The members of a setting.

    Args:
        configs: One run a seed; they differ in seed and name alone.
        device: Kind of device that particles train on.
        data: The decoded data, if somebody has it; else it is read.
        at_sparsity: Milestones; empty: every round is one.
        pause: Nothing trains beyond a milestone before the team goes on.
        num_workers: Workers side by side; None: as the config says and the cluster can hold.
        worker_deadline_s: Seconds without any worker after which the team fails.
        stopping: Asked whether to end.
        spares: Actors of teams before in this process; None: all are started, and ended.
        code_changed: ``retrain``: go on although the user's code is another than the members were begun with.

    Raises:
        UserError: Whatever is wrong with the setting; nothing has been written.
    """

    def __init__(
        self,
        configs: Sequence[SwampConfig],
        device: str,
        *,
        data: Data | None = None,
        at_sparsity: Sequence[float] = (),
        pause: bool = False,
        num_workers: int | None = None,
        worker_deadline_s: float | None = None,
        stopping: Stopping | None = None,
        spares: Spares | None = None,
        code_changed: CodeChanged = "refuse",
    ) -> None:
        self._spares = spares
        self._code_changed: CodeChanged = code_changed
        self._configs = configs
        self._num_workers = num_workers
        self._deadline_s = worker_deadline_s
        self._stopping = stopping or Stopping()
        self._members = _prepare_all(configs, device, data)
        self._milestones = milestone_rounds(self._members[0].plan, at_sparsity)
        self._pauses = self._milestones if pause else []
        self._pool: Pool | None = None
        self._logs: list[JobLog] = []
        self._journals: list[Journal] = []
        self._drivers: list[Driver] = []

    @property
    def num_milestones(self) -> int:
        """M."""
        return len(self._milestones)

    @property
    def last_round(self) -> int:
        """R."""
        return self._members[0].plan[-1].index

    def milestones(self) -> Generator[Milestone]:
        """Carry the members to their ends, from wherever they stand, and stop at each milestone on the way.

        Whoever does not go on from a milestone closes the iterator: what was finished stays, and running particles are
        ended.

        Raises:
            UserError: Another process works on one of the runs, or its name stands for another recipe.
            RunError: A member has failed for good.
            Interrupted: Somebody asked to stop.
        """
        try:
            self._open()
            reached = 0
            while True:
                while reached < len(self._milestones) and self._num_recorded > self._milestones[reached]:
                    index = self._milestones[reached]
                    reached += 1
                    records = [driver.record(index) for driver in self._drivers]
                    yield Milestone(reached, index, records[0].sparsity, records)
                    self._resume_after(index)
                for driver in self._drivers:
                    driver.check()  # one can fail as soon as it begins, of what an earlier attempt has recorded
                if all(driver.over for driver in self._drivers):
                    break
                self._stopping.check()
                self._step()
            self._close("complete")
        except GeneratorExit:
            self._close("stopped")
            raise
        except KeyboardInterrupt:
            self._stop_work()
            self._close("interrupted")
            raise Interrupted("stopped; the same command goes on") from None
        except BaseException as error:
            if isinstance(error, RunError):  # of one member: the others can be resumed
                self._stop_work()
            self._close("failed", str(error) if isinstance(error, SwampError) else f"{type(error).__name__}: {error}")
            raise

    @property
    def _num_recorded(self) -> int:
        return min(driver.num_recorded for driver in self._drivers)

    def _open(self) -> None:
        place = open_place(self._configs[0].storage, self._configs[0].execution.storage_patience_s)
        store = ArtifactStore(place)
        rundirs = [RunDir(place, str(prepared.config.name)) for prepared in self._members]
        chosen = self._with_chosen_packing(place, rundirs[0])
        self._members = [knowing_older_runs(prepared, place) for prepared in chosen]
        journals = [Journal(rundir, store) for rundir in rundirs]
        for rundir, prepared in zip(rundirs, self._members, strict=True):
            check_name(rundir, prepared, self._code_changed)
        for member, (rundir, journal) in enumerate(zip(rundirs, journals, strict=True)):
            prepared = self._members[member]
            journal.open(prepared)
            self._journals.append(journal)
            log = JobLog(place, rundir.log(journal.num_attempts, "driver").key)
            self._logs.append(log)
            self._drivers.append(Driver(prepared, store, journal, _RunLog(log), self._maker(member), self._stopping,
                                        self._pauses))
        for driver in self._drivers:
            driver.begin()

    def _with_chosen_packing(self, place: Place, rundir: RunDir) -> list[Prepared]:
        """The members with their packing decided; it is the same for all of them."""
        first = self._members[0]
        inline = first.config.execution.executor == "inline"
        chosen = with_chosen_packing(
            first, place, recorded_packing(rundir), lambda: self._num_workers or workers_for(first, first.most_jobs),
            measure_here if inline else measure_on_ray)
        return [prepared.packed(chosen.arithmetic.packing) for prepared in self._members]

    def _maker(self, member: int) -> Callable[[Prepared, str], Executor]:
        def make(prepared: Prepared, storage: str) -> Executor:
            if prepared.config.execution.executor == "inline":
                return InlineExecutor(prepared, storage, self._stopping)
            if self._pool is None:
                self._pool = Pool(self._members, storage, self._num_workers, self._deadline_s, self._spares)
            return RayExecutor(prepared, storage, self._pool, member)

        return make

    def _step(self) -> None:
        """Let every member that is not over see what has happened; together they wait no longer than one would."""
        active = [driver for driver in self._drivers if not driver.over]
        for driver in active:
            driver.step(WAIT_S / len(active))

    def _resume_after(self, index: int) -> None:
        if index in self._pauses:
            for driver in self._drivers:
                driver.resume_after(index)

    def _stop_work(self) -> None:
        grace_s = self._configs[0].execution.grace_s
        if self._pool is not None and grace_s:
            self._pool.stop(grace_s, lambda: self._stopping.impatient)

    def _close(self, status: str, reason: str = "") -> None:
        """End all that is at work, and the records. The member that failed gives the reason for all of them."""
        for driver in self._drivers:
            driver.close()
        if self._pool is not None:
            self._pool.close()
        error: BaseException | None = None
        for journal in self._journals:
            try:
                journal.close(status, reason)
            except (SwampError, OSError) as failure:
                error = failure
        for log in self._logs:
            log.close()
        self._drivers = []
        self._journals = []
        self._logs = []
        if error is not None and status == "complete":
            raise error


def milestone_rounds(plan: Sequence[RoundPlan], at_sparsity: Sequence[float]) -> list[int]:
    """The round that stands for each milestone: the first one that is at least as sparse, to within half a weight.

    A sparsity beyond the last round has none. Without sparsities every round is a milestone.
    """
    if not at_sparsity:
        return [round_plan.index for round_plan in plan]
    half_a_weight = 0.5 * (1 - plan[0].sparsity) / plan[0].survivors + 1e-12
    found = [next((one.index for one in plan if one.sparsity >= sparsity - half_a_weight), None)
             for sparsity in at_sparsity]
    return [index for index in found if index is not None]


def _prepare_all(configs: Sequence[SwampConfig], device: str, data: Data | None) -> list[Prepared]:
    """The first member reads the data and is tried out; the others only have another initialisation."""
    members: list[Prepared] = []
    # Without Ray, every member has its own executor.
    num_members = 1 if configs[0].execution.executor == "inline" else len(configs)
    for config in configs:
        known = members[0].data if members else data
        prepared = sendable(prepare(config, device, known, num_members))
        members.append(replace(prepared, member=len(members) % num_members))
    return members
