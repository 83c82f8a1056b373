"""A submitted job as it is known from outside: its id, how it stands, how it ended, what it prints."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from swamp_ray.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_WRONG_USE, UserError, nearest

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_OWN_WORDS = re.compile(r".*(Runtime env is setting up\.|Running entrypoint for job \S+: .*)")
_ID = re.compile(r"(?P<base>.+-[0-9a-f]{8})(?:-(?P<attempt>\d+))?")


@dataclass(frozen=True)
class Job:
    """A submitted run or sweep.

    Attributes:
        id: Its submission id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        facts: What was noted when it was submitted, by the names of ``KEYS``.
        started_s: Unix time.
        ended_s: Unix time, None while it runs.
        exit_code: Of the process that drove it, where it ended by itself.
        message: Ray's words on how it ended.
    """

    id: str
    status: str
    facts: Mapping[str, str] = field(default_factory=dict)
    started_s: float | None = None
    ended_s: float | None = None
    exit_code: int | None = None
    message: str = ""

    @property
    def name(self) -> str:
        """Name of the run or sweep."""
        return self.facts.get("name", "")

    @property
    def has_ended(self) -> bool:
        """Whether nothing runs any more."""
        return self.status in ENDED

    @property
    def base(self) -> str:
        """The id without the number of the attempt."""
        match = _ID.fullmatch(self.id)
        return match["base"] if match else self.id

    @property
    def attempt(self) -> int:
        """Which submission of the same run this is, counted from 1."""
        match = _ID.fullmatch(self.id)
        return int(match["attempt"] or 1) if match else 1

    def outcome(self) -> int:
        """The exit code that ``swamp run`` would have had."""
        if self.status == "SUCCEEDED":
            return EXIT_DONE
        if self.status == "STOPPED":
            return EXIT_INTERRUPTED
        return self.exit_code if self.exit_code in (EXIT_WRONG_USE, EXIT_INTERRUPTED) else EXIT_FAILED


def choose(jobs: Sequence[Job], name: str) -> Job:
    """The job of an id; or of a run's or sweep's name the last one.

    Raises:
        UserError: There is none, or the name means several.
    """
    exact = next((job for job in jobs if job.id == name), None)
    if exact is not None:
        return exact
    found = [job for job in jobs if job.name == name or job.base == name]
    if not found:
        known = dict.fromkeys([job.name for job in jobs] + [job.id for job in jobs])
        raise UserError("there is no such job", got=name, where="JOB",
                        do=nearest(name, known) or "swamp jobs lists those there are.")
    bases = list(dict.fromkeys(job.base for job in found))
    if len(bases) > 1:
        raise UserError(f"{name!r} is the name of several jobs: {', '.join(bases)}", where="JOB", do="Give the id.")
    return max(found, key=lambda job: job.attempt)


def is_own_words(line: str) -> bool:
    """Whether the server wrote a line of the log, and not the job."""
    return _OWN_WORDS.fullmatch(line) is not None


class Lines:
    """Whole lines of a log that may be sent again from its beginning: what was written before is not repeated."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._done = 0
        self._seen = 0
        self._partial = ""

    def begin(self) -> None:
        """The log is about to be sent from its beginning."""
        self._seen = 0
        self._partial = ""

    def add(self, text: str) -> None:
        """The next part of the log."""
        *whole, self._partial = (self._partial + text).split("\n")
        for line in whole:
            self._seen += 1
            if self._seen > self._done:
                self._done = self._seen
                self._pass(line)

    def end(self) -> None:
        """There is no more: a last line without an end is passed on, too."""
        if self._partial:
            self._pass(self._partial)
            self._partial = ""

    def _pass(self, line: str) -> None:
        if not is_own_words(line):
            self._write(line)
