"""What a run tells whoever watches it; every method may be left as it is."""

from __future__ import annotations

from swamp_ray.method.events import Job
from swamp_ray.run.messages import JobSpec, RoundRecord
from swamp_ray.run.prepare import Prepared
from swamp_ray.training.results import Progress


class Reporter:
    """A silent watcher; the console derives from it."""

    def run_started(self, prepared: Prepared, path: str) -> None:
        """The plan stands; nothing has been trained yet. ``path``: the run's folder."""

    def executor_starting(self, executor: str) -> None:
        """The first job that is not in the storage needs workers."""

    def executor_started(self, num_workers: int) -> None:
        """Workers can be had."""

    def workers_changed(self, num_workers: int) -> None:
        """Nodes have come or gone: so many workers can be had now."""

    def job_submitted(self, spec: JobSpec) -> None:
        """A job waits for a worker."""

    def job_advanced(self, job: Job, progress: Progress) -> None:
        """A job has finished an epoch."""

    def job_finished(self, job: Job, found: bool) -> None:
        """A job is done; ``found``: its result was in the storage already."""

    def job_blocked(self, job: Job, who: str) -> None:
        """Somebody else is training the same; its result is awaited. Told once for each who."""

    def job_failed(self, job: Job, reason: str, retry: bool) -> None:
        """An attempt failed; ``retry``: another one follows."""

    def particle_dropped(self, job: Job, reason: str) -> None:
        """A round goes on without one of its particles."""

    def round_finished(self, record: RoundRecord) -> None:
        """A round is averaged, evaluated and written."""

    def warning(self, text: str) -> None:
        """Something the user should know."""

    def notice(self, text: str) -> None:
        """What was decided, or takes a while; no reason to worry."""

    def stopping(self, grace_s: float) -> None:
        """The run was asked to stop; running jobs have so many seconds for a checkpoint."""

    def tick(self) -> None:
        """Called often, for displays that move."""

    def run_finished(self, complete: bool) -> None:
        """Nothing more will come; called however the run ends."""
