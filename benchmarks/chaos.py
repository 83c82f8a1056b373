"""What do faults cost?

A small experiment on a Ray cluster of three nodes, in which particle workers, the averaging actor, the driver and whole
nodes are killed at random moments and writes fail, until it is complete (tests/chaos/harness.py). Counted are epochs
that had to be trained twice, finished particles that were (none), and the time from a fault to the next epoch.

    python benchmarks/chaos.py --faults 200
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from _measuring import spread, write

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402

from tests.chaos.harness import CONFIG, WEIGHTS, Tally, disturb, fault_kinds  # noqa: E402


def by_kind(tally: Tally) -> dict[str, Any]:
    """Number and recovery times of each kind of fault."""
    times = {kind: [fault.recovered_s for fault in tally.faults if fault.kind == kind] for kind in WEIGHTS}
    return {kind: spread(values) for kind, values in times.items() if values}


def main() -> None:
    """Disturb, check, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tally = disturb(Path(folder), fault_kinds(arguments.faults, arguments.seed), arguments.seed,
                        say=lambda text: print(text, flush=True))
    kinds = by_kind(tally)
    print(f"{'fault':<10} {'n':>4}  seconds to the next epoch (median, longest)")
    for kind, found in kinds.items():
        print(f"{kind:<10} {found['n']:>4}  {found['median']:6.1f} {found['max']:6.1f}")
    print(f"{tally.num_runs} runs, {tally.num_starts} starts; {tally.epochs_again} of {tally.epochs} epochs were "
          f"trained twice; finished particles trained again: {len(tally.trained_again)}; runs with other tickets than "
          f"the undisturbed one: {len(tally.different)}")
    write("chaos", {"config": CONFIG, "faults": len(tally.faults), "recovered_s": kinds, "runs": tally.num_runs,
                    "starts": tally.num_starts, "epochs": tally.epochs, "epochs_twice": tally.epochs_again,
                    "finished_particles_trained_again": tally.trained_again, "different_runs": tally.different})
    if tally.trained_again or tally.different:
        sys.exit(1)


if __name__ == "__main__":
    main()
