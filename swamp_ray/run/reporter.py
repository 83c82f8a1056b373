"""What a run tells its watcher: methods that do nothing until a subclass overrides them."""

from __future__ import annotations

from swamp_ray.method.events import Job
from swamp_ray.run.messages import JobSpec, RoundRecord
from swamp_ray.run.prepare import Prepared
from swamp_ray.training.results import Progress


class Reporter:
    """A watcher that says nothing; progress displays derive from it."""

    def run_started(self, prepared: Prepared, path: str) -> None:
        """The run is prepared and nothing has been trained yet; ``path``: the run's folder."""

    def executor_starting(self, executor: str) -> None:
        """Workers are about to be started, for the first job whose result is not in the storage."""

    def executor_started(self, num_workers: int) -> None:
        """The executor is up; ``num_workers`` workers can run side by side."""

    def workers_changed(self, num_workers: int) -> None:
        """Nodes came or went: ``num_workers`` workers can run side by side from now on."""

    def job_submitted(self, spec: JobSpec) -> None:
        """A job is in the queue."""

    def job_advanced(self, job: Job, progress: Progress) -> None:
        """A job has finished an epoch."""

    def job_finished(self, job: Job, found: bool) -> None:
        """A job's result is there; ``found``: it was in the storage already."""

    def job_blocked(self, job: Job, who: str) -> None:
        """Another run (``who``) trains the same job, whose result is awaited; told once for each ``who``."""

    def job_failed(self, job: Job, reason: str, retry: bool) -> None:
        """An attempt failed; ``retry``: another one follows."""

    def particle_dropped(self, job: Job, reason: str) -> None:
        """A round goes on without this particle."""

    def round_finished(self, record: RoundRecord) -> None:
        """A round is averaged, evaluated and written."""

    def warning(self, text: str) -> None:
        """A sentence that the user should read."""

    def notice(self, text: str) -> None:
        """A sentence about a decision, or about something that takes a while."""

    def stopping(self, grace_s: float) -> None:
        """The run was asked to stop; running jobs have ``grace_s`` seconds to write a checkpoint."""

    def tick(self) -> None:
        """Called often, for displays that move."""

    def run_finished(self, complete: bool) -> None:
        """The last call, however the run ended; ``complete``: all rounds are recorded."""
