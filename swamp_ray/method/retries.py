"""What is tried again, and how often: jobs whose worker was lost, jobs that diverged, averages, damaged states."""

from __future__ import annotations

from collections.abc import Sequence

from swamp_ray.method.events import Decision, Job, JobFailedEvent


class Retries:
    """Counts what went wrong, and says whether it is tried once more.

    Args:
        most: How often a job is tried again after its worker was lost, with each of its seeds; how often a round's
            average is begun anew after its averaging actor was lost, and a state made again that was damaged.
        decisions: What was decided before: a job goes on with the last seed that it was given.
    """

    def __init__(self, most: int, decisions: Sequence[Decision]) -> None:
        self._most = most
        self._attempts: dict[Job, int] = {}
        self._seeds: dict[Job, int] = {}
        self._damaged_states: dict[Job, int] = {}
        self._lost_averagers = 0
        for decision in decisions:
            if decision.what == "reseed":
                self._seeds[decision.job] = max(decision.attempt, self.seeds_before(decision.job))

    def attempt(self, job: Job) -> int:
        """How often the job has failed with its present seed."""
        return self._attempts.get(job, 0)

    def seeds_before(self, job: Job) -> int:
        """How many seeds of the job have diverged."""
        return self._seeds.get(job, 0)

    def after_failure(self, event: JobFailedEvent) -> bool:
        """Whether a job is tried again: the loss of a worker says nothing about the job, an error would come again."""
        failures = self.attempt(event.job) + 1
        self._attempts[event.job] = failures
        return event.kind == "machine" and failures <= self._most

    def take_next_seed(self, job: Job) -> None:
        """The job has diverged and gets another seed, with which nothing has gone wrong yet."""
        self._seeds[job] = self.seeds_before(job) + 1
        self._attempts[job] = 0

    def forget(self, job: Job) -> None:
        """The job has ended: should it be needed again, its attempts are counted anew."""
        self._attempts.pop(job, None)

    def after_lost_state(self, job: Job, damaged: bool) -> str | None:
        """Why a state is not made again, None if it is. One that was deleted on purpose is made again any time."""
        losses = self._damaged_states.get(job, 0) + damaged
        self._damaged_states[job] = losses
        return f"the state of {job} was lost {losses} times" if losses > self._most else None

    def after_lost_averager(self) -> str | None:
        """Why the present round's average is not begun anew, None if it is."""
        self._lost_averagers += 1
        return f"the averaging actor died {self._lost_averagers} times" if self._lost_averagers > self._most else None

    def begin_round(self) -> None:
        """Losses of averaging actors are counted by round."""
        self._lost_averagers = 0
