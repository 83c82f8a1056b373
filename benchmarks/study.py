"""Do the claims of SWAMP hold? Runs blocks of the study in slices, and makes its tables and figures from results.

Each finished part (an arm with a seed) is written to benchmarks/results/study/BLOCK.parquet at once; a later call, on
this machine or another, goes on with what is missing. docs/study.md says what is run and why.

    python benchmarks/study.py cpu --budget-min 60 --jobs 2      all blocks for processors, in their order
    python benchmarks/study.py a10k --budget-min 60              one of them
    python benchmarks/study.py first --report
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from _measuring import RESULTS, hardware, versions
from _study_blocks import BLOCKS, ORDER
from _study_first import FIRST
from _study_parts import Context, Frame, Part, Row
from _study_tiers import Tier, chosen

from swamp_ray import load_config
from swamp_ray.config.reading import with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import SwampError

ROOT = Path(__file__).resolve().parents[1]
TIERS: dict[str, Tier] = {**BLOCKS, "first": FIRST}


def main() -> None:
    """Run a slice, or print what is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tier", choices=[*ORDER, *TIERS], help="A block, or all blocks of a kind of machine.")
    parser.add_argument("--budget-min", type=float, default=60.0, help="Begin nothing after so many minutes.")
    parser.add_argument("--jobs", type=int, default=1, help="Processes that share the work, one part each at a time.")
    parser.add_argument("--storage", default=str(ROOT / "results" / "study"), help="Storage root of the runs.")
    parser.add_argument("--report", action="store_true", help="Run nothing; make the page's tables, figures.")
    parser.add_argument("--page", type=Path, help="The page that they go into; default: the tier's own.")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="Only to try the script out.")
    parser.add_argument("--results", type=Path, default=RESULTS / "study", help="Folder of the results.")
    arguments = parser.parse_args()
    names = ORDER.get(arguments.tier, (arguments.tier,))
    if arguments.report:
        for name in names:
            page = arguments.page or ROOT / TIERS[name].page
            tell(name, read(arguments.results / f"{name}.parquet"), page)
        return
    if arguments.jobs > 1:
        sys.exit(side_by_side(arguments.jobs))
    # Blocks name their data and networks as benchmarks._study_data:NAME.
    sys.path.insert(0, str(ROOT))
    end = time.monotonic() + 60 * arguments.budget_min
    for name in names:
        base = load_config(ROOT / TIERS[name].config, tuple(arguments.overrides))
        base = with_values(base, {"storage": f"{arguments.storage}/{name}"})
        if not slice_of(TIERS[name], base, arguments.results / f"{name}.parquet", end - time.monotonic()):
            return


def tell(name: str, frame: Frame, page: Path) -> None:
    """Put tables into the page of the study, and figures beside it."""
    from _study_figures import draw
    from _study_report import report, write

    drawn = draw(name, frame, page.parent / "figures") if not frame.empty else []
    text = report(name, TIERS[name], frame, drawn)
    write(name, text, page)
    print(text)


def side_by_side(jobs: int) -> int:
    """This command in several processes, which divide the parts among them; an interrupt reaches all of them.

    Returns:
        The first exit status that is not 0, else 0.
    """
    # The last of two --jobs counts.
    started = [subprocess.Popen([sys.executable, *sys.argv, "--jobs", "1"]) for _ in range(jobs)]

    def pass_on(number: int, _frame: object) -> None:
        for process in started:
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, pass_on)
    return next((status for status in [process.wait() for process in started] if status), 0)


def slice_of(tier: Tier, base: SwampConfig, path: Path, budget_s: float) -> bool:
    """Do the parts that are missing and that no other process does, until the time is up.

    Returns:
        Whether there was time for all that could be begun.
    """
    end = time.monotonic() + budget_s
    elsewhere = 0
    for part, seed in tier.order():
        if not may_begin(tier, part, path):
            elsewhere += 1
            continue
        with held(lock(path, part.name, seed)) as mine:
            if (part.name, seed) in finished(path):
                continue
            if not mine:
                elsewhere += 1
                continue
            if time.monotonic() > end:
                print(f"the time is up before {part.name}, seed {seed}; the same command goes on", flush=True)
                return False
            do(tier, base, path, part, seed)
    print(f"other processes have to finish theirs before the last {elsewhere}" if elsewhere else "every part is done",
          flush=True)
    return True


def settings_for(tier: Tier, path: Path, stage: int) -> dict[str, dict[str, Any]]:
    """What was chosen for the arms of a stage, in this tier or in the one whose settings it takes over.

    Raises:
        LookupError: Something has not been chosen yet.
    """
    if not tier.settings_of:
        return chosen(tier, read(path), stage)
    source = TIERS[tier.settings_of]
    return chosen(source, read(path.with_name(f"{tier.settings_of}.parquet")), stage)


def may_begin(tier: Tier, part: Part, path: Path) -> bool:
    """Whether everything that is chosen for a part has been chosen."""
    try:
        settings_for(tier, path, part.stage)
    except LookupError:
        return False
    return True


def do(tier: Tier, base: SwampConfig, path: Path, part: Part, seed: int) -> None:
    """A part with a seed, and its rows in the results."""
    began = time.monotonic()
    context = Context(base, tier.arms, settings_for(tier, path, part.stage))
    rows = [{"part": part.name, "seed": seed, **row} for row in part.rows(context, seed)]
    append(path, rows, {"seconds": time.monotonic() - began})
    print(f"{part.name:<20} seed {seed}: {time.monotonic() - began:6.0f} s{headline(rows)}", flush=True)


def lock(path: Path, name: str, seed: int) -> Path:
    """The lock of a part."""
    return path.parent / f".{path.stem}-{name.replace(' ', '-')}-{seed}.lock"


@contextlib.contextmanager
def held(path: Path, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone holds a lock; the system frees it when its process ends, however that happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


COLUMNS = ("part", "arm", "seed", "round", "sparsity", "what", "split", "metric", "value")


def read(path: Path) -> Frame:
    """The results so far."""
    return pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=list(COLUMNS))


def finished(path: Path) -> set[tuple[str, int]]:
    """Parts and seeds whose results are there."""
    frame = read(path)[["part", "seed"]].drop_duplicates()
    return {(str(part), int(seed)) for part, seed in zip(frame["part"], frame["seed"], strict=True)}


def append(path: Path, rows: list[Row], facts: Mapping[str, Any]) -> None:
    """Add rows with where and when they were made; the file is replaced as a whole."""
    where = {"date": time.strftime("%Y-%m-%d"), "cpu": hardware()["cpu"], "gpu": hardware().get("gpu", ""),
             "torch": versions()["torch"], "commit": commit(), **facts}
    frame = pd.DataFrame([{**row, **where} for row in rows])
    with held(path.parent / f".{path.stem}.lock", wait=True):
        if path.exists():
            frame = pd.concat([read(path), frame], ignore_index=True)
        waiting = path.with_suffix(".new")
        frame.to_parquet(waiting, index=False)
        waiting.replace(path)


def commit() -> str:
    """The commit of the program that runs, with a mark where files differ from it; "unknown" outside of git."""
    try:
        named = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--", "swamp_ray", "benchmarks/*.py", "configs/study")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return named + ("+changes" if changed else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def headline(rows: list[Row]) -> str:
    """Test accuracies of the average at the last rounds, where a part has them."""
    wanted = ("average", "test", "accuracy")
    last = [row for row in rows if (row["what"], row["split"], row["metric"]) == wanted][-3:]
    found = ", ".join(f"{100 * row['value']:.2f} % at {100 * row['sparsity']:.1f} %" for row in last)
    return f", {found}" if found else ""


if __name__ == "__main__":
    try:
        main()
    except SwampError as error:
        print(f"study: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
