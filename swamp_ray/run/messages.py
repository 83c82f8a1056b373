"""What passes between the driver, its executor and the workers. Plain values and numpy arrays only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from swamp_ray.method.events import Job
from swamp_ray.run.object_store_memory import RoundBytes
from swamp_ray.run.timesheet import JobStart, JobTimes
from swamp_ray.storage.leases import HeldLease
from swamp_ray.storage.recipes import Measurement, Named
from swamp_ray.training.arithmetic import SINGLE, form_and_width
from swamp_ray.training.mask_before import MaskProgram
from swamp_ray.training.program import Program
from swamp_ray.training.results import Progress

Handle = Any
"""A value that an executor keeps where its workers can read it: the value itself, or a Ray reference."""


@dataclass(frozen=True)
class JobSpec:
    """One job for a worker.

    Attributes:
        job: Which job of the run.
        attempt: 0, or how often it was tried before.
        named: Name and recipe of its result.
        seed: Seed of a training run.
        program: What a training run does; None for an evaluation, and for the mask before training.
        mask: How that mask is chosen.
        average: Evaluation: name of the average's artifact.
        members: Evaluation of a soup: names of the artifacts that are averaged, in order.
        log_path: Log file of the job, relative to the storage root, or None.
        session: The attempt at the run that gives the job out.
        stale: The lease of a holder that was watched and shows no sign of life: it may be taken over.
        reseed: How many seeds were tried before this one.
        packing: In which form, and with how many others, it is trained.
        seat: Where in its pack.
        measurement: Training: how its network is measured; what was stored with other metrics is measured anew.
    """

    job: Job
    attempt: int
    named: Named
    seed: int = 0
    program: Program | None = None
    mask: MaskProgram | None = None
    average: str | None = None
    members: tuple[str, ...] = ()
    log_path: str | None = None
    session: str = ""
    stale: bytes = b""
    reseed: int = 0
    packing: str = SINGLE
    seat: int = 0
    measurement: Measurement | None = None

    @property
    def is_packed(self) -> bool:
        """Whether a worker trains it together with others, or in a form made for that."""
        return self.packing != SINGLE

    @property
    def width(self) -> int:
        """How many seats there are in its pack."""
        return form_and_width(self.packing)[1]


@dataclass(frozen=True)
class Outcome:
    """A job's stored result.

    Attributes:
        name: Its artifact.
        digest: SHA-256 of its state's payload; empty for an evaluation.
        info: Metrics, history and timings.
        trained_epochs: Epochs that this attempt really trained; 0 where the result was found.
        num_pieces: In how many pieces its state follows, one for each averaging shard; 0 if it does not.
    """

    name: str
    digest: str
    info: dict[str, Any]
    trained_epochs: int = 0
    num_pieces: int = 0


@dataclass(frozen=True)
class AverageSpec:
    """What the averaging actor has to do once all states of a round have been added.

    Attributes:
        round: r.
        named: Name and recipe of the average.
        particles: Indices of the states that must have entered, in order.
        survivors: k_r.
        next_survivors: k_(r+1), or None.
        seed: Seed of random scores.
    """

    round: int
    named: Named
    particles: tuple[int, ...]
    survivors: int
    next_survivors: int | None
    seed: int


@dataclass(frozen=True)
class BlockedByLease:
    """A worker does not train the job, because another process holds its lease."""

    held: HeldLease


# What an executor reports


@dataclass(frozen=True)
class JobStartedReport:
    """A worker was given a job, and since when."""

    job: Job
    start: JobStart


@dataclass(frozen=True)
class JobAdvancedReport:
    """A job has trained another epoch."""

    job: Job
    progress: Progress


@dataclass(frozen=True)
class JobFinishedReport:
    """A job is finished; ``in_memory``: the executor keeps its state for the average."""

    job: Job
    outcome: Outcome
    in_memory: bool


@dataclass(frozen=True)
class JobFailedReport:
    """An attempt at a job failed; ``kind`` as in :class:`swamp_ray.method.events.JobFailedEvent`."""

    job: Job
    error: BaseException
    kind: Literal["machine", "diverged", "error"]


@dataclass(frozen=True)
class JobBlockedReport:
    """A job was returned by its worker, because another run trains the same at the moment."""

    spec: JobSpec
    held: HeldLease


@dataclass(frozen=True)
class RoundAveragedReport:
    """A round's average and next mask are stored in this artifact."""

    round: int
    name: str


@dataclass(frozen=True)
class AveragerLostReport:
    """The sum so far is lost: the averaging actor died, or (``died`` False) a state was lost on its way to it."""

    reason: str
    died: bool = True


@dataclass(frozen=True)
class StateLostReport:
    """A particle's stored state cannot be read when its turn in the average comes."""

    job: Job
    reason: str


@dataclass(frozen=True)
class NoticeReport:
    """A sentence for the user about the machines; ``who``: workers, or the object store."""

    who: str
    text: str


@dataclass(frozen=True)
class WorkersChangedReport:
    """Nodes came or went: ``num_workers`` jobs can run side by side from now on."""

    num_workers: int


Report = (JobStartedReport | JobAdvancedReport | JobFinishedReport | JobFailedReport | JobBlockedReport
          | RoundAveragedReport | AveragerLostReport | StateLostReport | NoticeReport | WorkersChangedReport)


class Executor(Protocol):
    """Carries out jobs and averages. `run.inline_executor` does it in this process, `on_ray.executor` on Ray."""

    @property
    def num_workers(self) -> int:
        """How many jobs run side by side."""
        ...

    def put(self, value: Any) -> Handle:
        """Keep a value where every worker can read it."""
        ...

    def submit(self, spec: JobSpec, start: Handle, mask_bits: Handle, values: Handle | None, urgent: bool) -> None:
        """Queue a job."""
        ...

    def add(self, job: Job, outcome: Outcome, size: int, from_storage: bool) -> None:
        """Let a particle's state, of so many elements, enter the average of its round."""
        ...

    def release(self, job: Job) -> None:
        """Release a state that waits for the average."""
        ...

    def room_for_states(self, needs: RoundBytes, asked: int) -> int:
        """How many finished states of a round fit into memory while they wait for the average; at most ``asked``."""
        ...

    def average(self, spec: AverageSpec, start: Handle, mask_bits: Handle) -> None:
        """Close a round's average."""
        ...

    def cancel(self, job: Job) -> None:
        """Remove a job from the queue, or stop it; no report of it follows."""
        ...

    def wait(self, timeout_s: float) -> Sequence[Report]:
        """Reports since the last call; blocks up to ``timeout_s`` for the next one, and may return an empty list."""
        ...

    def worked(self) -> list[JobTimes]:
        """Timings of jobs that ended since the last call; after `close` also of those that were running."""
        ...

    def stop(self, grace_s: float, hurry: Callable[[], bool]) -> None:
        """Let running jobs write a checkpoint and end; after ``grace_s``, or when ``hurry`` says so, leave them."""
        ...

    def close(self) -> None:
        """Stop all jobs at once and free all resources."""
        ...


@dataclass
class RoundRecord:
    """One line of ``rounds.jsonl``: a finished round.

    Metrics are by split and name. ``num_particles`` were planned; ``dropped`` lists those that the round went on
    without (``particle``, ``what``, ``reason``, ``attempt``); ``particles`` lists the metrics of all others in index
    order, as ``artifacts`` does; ``mean`` and ``std`` are over them (std with N - 1, 0 for a single one).
    ``ticket_sha256`` is the digest of the ticket's file, empty in records of older versions.
    ``combined`` are the indices of those that the round's network is made of. ``peak_bytes`` is the most memory that
    each of them took up on its device (None: not known), in the order of ``particles``; it decides nothing, and records
    that differ in it alone are equal. ``cost`` is what the round's trainings cost, and ``cost_so_far`` that of all up
    to its end, the dense phase included, as in :class:`swamp_ray.training.cost.Cost`; empty in records of old versions.
    """

    round: int
    sparsity: float
    survivors: int
    num_particles: int
    average: dict[str, dict[str, float]]
    particles: list[dict[str, dict[str, float]]]
    mean: dict[str, dict[str, float]]
    std: dict[str, dict[str, float]]
    layer_densities: dict[str, float]
    spread: float
    combined: list[int]
    artifacts: dict[str, Any]
    ticket: str
    ticket_sha256: str = ""
    emptied_layers: list[str] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    peak_bytes: list[int | None] = field(default_factory=list, compare=False)
    cost: dict[str, float | None] = field(default_factory=dict, compare=False)
    cost_so_far: dict[str, float | None] = field(default_factory=dict, compare=False)
