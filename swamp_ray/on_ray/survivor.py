"""A process that says why a command ended which Ray has ended before it could speak; it needs nothing but this file.

Its standard input is a pipe from the command. The first line is JSON: `texts`, what to say if the process of a number
has died, and `otherwise`. If the pipe ends without the word that all is over, the command is gone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys

OVER = b"over\n"
# Ray may end the command a moment before the process that has died is gone.
PATIENCE_S = 1.0


def main() -> None:
    """Wait for the command's end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    pipe = sys.stdin.buffer
    given = json.loads(pipe.readline())
    handles = {}
    for pid, text in given["texts"].items():
        try:
            handles[os.pidfd_open(int(pid))] = text
        except (AttributeError, OSError):
            continue
    first = _first_to_end([*handles], pipe.fileno())
    if pipe.read().endswith(OVER):
        return
    if first is None and handles:
        ended, _, _ = select.select([*handles], [], [], PATIENCE_S)
        first = next(iter(ended), None)
    sys.stderr.write(f"\nswamp: {given['otherwise'] if first is None else handles[first]}\n")


def _first_to_end(handles: list[int], pipe: int) -> int | None:
    """Which process ends first: others may follow, because they do not go on without it. None: the pipe did."""
    if not handles:
        return None
    ready, _, _ = select.select([*handles, pipe], [], [])
    return next((handle for handle in handles if handle in ready), None)


if __name__ == "__main__":
    main()
