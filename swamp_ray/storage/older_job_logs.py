"""What logs of jobs say of epochs, for runs of earlier versions: their ``jobs.jsonl`` has lines of ended jobs alone.

Attempts of this version write what starts and each epoch into ``jobs.jsonl``, see :mod:`swamp_ray.storage.records`;
nobody reads sentences of their logs.
"""

from __future__ import annotations

import re
from datetime import datetime

from swamp_ray.method.events import DENSE, Job

_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (.*)")
_BEGINS = re.compile(r".*: attempt \d+,.* from (the start|step \d+), .*")
_EPOCH = re.compile(r"epoch (\d+)/(\d+):")
_FINISHED = ": finished, "
_NAME = re.compile(r"dense-phase|round-(\d+)-particle-(\d+)")


def training_of(name: str) -> Job | None:
    """The training that a log of this name is of; None for the log of something else."""
    named = _NAME.fullmatch(name)
    if named is None:
        return None
    return DENSE if named[1] is None else Job("particle", int(named[1]), int(named[2]))


def last_epoch(log: str) -> tuple[int, int] | None:
    """The epoch that a log names last, and of how many; None if it names none."""
    epochs = [_EPOCH.match(text) for _, text in _LINE.findall(log)]
    found = [(int(epoch[1]), int(epoch[2])) for epoch in epochs if epoch is not None]
    return found[-1] if found else None


def unfinished(log: str) -> tuple[float, int]:
    """Seconds and epochs of the trainings in a job's log that did not get to their end."""
    seconds = 0.0
    epochs = 0
    began: datetime | None = None
    last = datetime.min
    num_since = 0
    for stamp, text in _LINE.findall(log):
        is_start = _BEGINS.fullmatch(text) is not None
        if is_start and began is not None:
            seconds += max(0.0, (last - began).total_seconds())
            epochs += num_since
        last = datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S")
        if is_start:
            began = last
            num_since = 0
        elif _EPOCH.match(text):
            num_since += 1
        elif _FINISHED in text:
            began = None
            num_since = 0
    if began is not None:
        seconds += max(0.0, (last - began).total_seconds())
        epochs += num_since
    return seconds, epochs
