"""A small experiment on a Ray cluster of several nodes, disturbed at random moments until it is complete.

The faults: SIGKILL of a particle worker, of the averaging actor, of the driver; a node that is lost and replaced; a
write that fails as on a full disk. After each the same command is started again if it has ended. What has to hold in
the end: the tickets are those of an undisturbed run, byte for byte, and no finished particle was trained again.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from swamp_ray.config.reading import build_config, with_values
from swamp_ray.launch import run
from tests.chaos.faulty import FLAG_VARIABLE
from tests.helpers import command_line, descendants, ticket_digests

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "chaos"
CONFIG: dict[str, Any] = {
    "name": NAME,
    "data": {"name": "synthetic", "options": {"num_train": 640, "num_test": 64, "num_classes": 4, "shape": [1, 8, 8]}},
    "model": {"name": "tests.chaos.faulty:network", "version": "1"},
    "training": {"batch_size": 32, "lr": 0.05},
    "dense": {"length": 2},
    "round": {"length": 16},
    "averaging": {"within": "swa", "start": 0.5},
    "particles": {"count": 3},
    "pruning": {"target": 0.875, "rate": 0.5, "score": "tests.chaos.faulty:magnitude", "version": "1"},
    "execution": {"device": "cpu", "max_retries": 100, "checkpoint_interval_s": 0.0},
}
WEIGHTS = {"worker": 7, "averager": 4, "driver": 4, "write": 3, "node": 2}
"""How often each fault comes among twenty."""
PATIENCE_S = 300.0
LONGEST_PAUSE_S = 1.5


@dataclass
class Fault:
    """One fault, and how long it took until an epoch was finished after it (or the run was complete)."""

    kind: str
    recovered_s: float = 0.0


@dataclass
class Tally:
    """What came out of a sequence of disturbed runs.

    Attributes:
        faults: In order.
        num_runs: Complete runs.
        num_starts: How often the command was started.
        epochs: Epochs that were trained, and how many of them had been trained before.
        trained_again: Finished particles that were trained once more: none, if all is well.
        different: Runs whose tickets are not those of the undisturbed one: none, if all is well.
    """

    faults: list[Fault] = field(default_factory=list)
    num_runs: int = 0
    num_starts: int = 0
    epochs: int = 0
    epochs_again: int = 0
    trained_again: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)


def fault_kinds(num: int, seed: int) -> list[str]:
    """Kinds of faults in random order, in the proportions of `WEIGHTS`."""
    total = sum(WEIGHTS.values())
    kinds = [kind for kind, weight in WEIGHTS.items() for _ in range(round(weight * num / total))]
    kinds += ["worker"] * (num - len(kinds))
    random.Random(seed).shuffle(kinds)
    return kinds[:num]


def undisturbed(folder: Path) -> dict[str, str]:
    """Digests of the tickets that the run has to end with, from one process without Ray."""
    run(with_values(build_config(CONFIG), {"storage": str(folder), "execution.executor": "inline"}))
    return ticket_digests(folder, NAME)


def disturb(folder: Path, kinds: Sequence[str], seed: int, say: Callable[[str], None] = lambda _: None) -> Tally:
    """Run the experiment, in a new storage each time it is complete, until all faults have happened.

    Args:
        folder: For storage roots, logs of the drivers, and the flag of the failing write.
        kinds: The faults, in order.
        seed: Of the moments and the victims.
        say: Told of each fault and each complete run.
    """
    expected = undisturbed(folder / "undisturbed")
    tally, waiting = Tally(), list(kinds)
    chance = random.Random(seed)
    with _cluster(folder / "fail-a-write") as cluster:
        while waiting:
            storage = folder / f"run-{tally.num_runs}"
            experiment = Experiment(storage, cluster, chance, tally)
            experiment.finish(waiting, say)
            if ticket_digests(storage / "results", NAME) != expected:
                tally.different.append(storage.name)
            experiment.count()
            tally.num_runs += 1
            say(f"run {tally.num_runs} is complete after {len(tally.faults)} of {len(kinds)} faults")
    return tally


class Nodes:
    """A cluster whose head has no workers, and two nodes with one each."""

    def __init__(self, cluster: Any, flag: Path) -> None:
        self.cluster, self.flag = cluster, flag
        self.nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    def replace(self, chance: random.Random) -> None:
        """Lose a node as in a power cut, and bring another."""
        lost = self.nodes.pop(chance.randrange(len(self.nodes)))
        self.cluster.remove_node(lost, allow_graceful=False)
        self.nodes.append(self.cluster.add_node(num_cpus=1))


@contextlib.contextmanager
def _cluster(flag: Path) -> Iterator[Nodes]:
    from ray.cluster_utils import Cluster

    from swamp_ray.on_ray.own_token import OwnToken

    token = OwnToken()
    before = {name: os.environ.get(name) for name in (FLAG_VARIABLE, "PYTHONPATH")}
    os.environ[FLAG_VARIABLE] = str(flag)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), before["PYTHONPATH"]]))
    # A node that is gone refuses connections at once; one that is merely slow has long to answer.
    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 200, "health_check_timeout_ms": 20_000,
             "health_check_failure_threshold": 5}
    cluster = Cluster(initialize_head=True, head_node_args={
        "num_cpus": 0, "include_dashboard": False, "_system_config": quick})
    try:
        yield Nodes(cluster, flag)
    finally:
        cluster.shutdown()
        token.put_back()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Experiment:
    """One run of the command, from its first start to its completion.

    Args:
        folder: For its storage and the output of the command.
        nodes: The cluster.
        chance: Of moments and victims.
        tally: What is counted.
    """

    def __init__(self, folder: Path, nodes: Nodes, chance: random.Random, tally: Tally) -> None:
        self.folder, self.nodes, self.chance, self.tally = folder, nodes, chance, tally
        folder.mkdir(parents=True)
        (folder / f"{NAME}.yaml").write_text(yaml.safe_dump(CONFIG))
        self._driver: subprocess.Popen[bytes] | None = None
        self._logs = folder / "results/runs" / NAME / "logs"
        self._old: set[str] = set()
        self._seen = 0

    def finish(self, waiting: list[str], say: Callable[[str], None]) -> None:
        """Start the command, disturb it, start it again, until it is complete; faults are taken from ``waiting``."""
        while True:
            if self._driver is None or self._driver.poll() is not None:
                if self._driver is not None and self._driver.returncode == 0:
                    return
                self._start()
            self._until(self._works, "the run does not come to training an epoch")
            if self._driver is None or self._driver.poll() is not None:
                continue
            if not waiting:
                self._until(lambda: False, "the run does not end")
                continue
            time.sleep(self.chance.uniform(0, LONGEST_PAUSE_S))
            if self._driver.poll() is not None:
                continue
            fault = Fault(waiting[0])
            self._forget()
            began = time.monotonic()
            if not self._inject(fault.kind):
                continue
            waiting.pop(0)
            self.tally.faults.append(fault)
            if self._driver.poll() is not None and self._driver.returncode != 0:
                self._start()
            self._until(self._works, f"nothing goes on after: {fault.kind}")
            fault.recovered_s = time.monotonic() - began
            say(f"{len(self.tally.faults)}: {fault.kind}, went on after {fault.recovered_s:.1f} s")

    def count(self) -> None:
        """Read from the logs what was trained, and what of it twice."""
        epochs: Counter[tuple[str, int]] = Counter()
        finished: Counter[str] = Counter()
        for path in self._logs.glob("attempt-*/*.log"):
            if "evaluation" in path.name:
                continue
            text = path.read_text()
            epochs.update((path.stem, int(number)) for number in re.findall(r" epoch (\d+)/\d+: ", text))
            finished[path.stem] += len(re.findall(r": finished, ", text))
        self.tally.epochs += sum(epochs.values())
        self.tally.epochs_again += sum(epochs.values()) - len(epochs)
        self.tally.trained_again += [f"{self.folder.name}: {work}" for work, times in finished.items() if times > 1]

    def _start(self) -> None:
        self.tally.num_starts += 1
        # What the workers of a killed driver still write does not count.
        self._old = {path.name for path in self._logs.glob("attempt-*")}
        self._forget()
        with (self.folder / "output.log").open("ab") as output:
            self._driver = subprocess.Popen(
                [sys.executable, "-m", "swamp_ray", "run", str(self.folder / f"{NAME}.yaml"), "--address",
                 self.nodes.cluster.address, "--storage", str(self.folder / "results")],
                cwd=REPOSITORY, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    def _forget(self) -> None:
        self._seen = self._progress()

    def _works(self) -> bool:
        """Whether an epoch was trained since the last call of `_forget`."""
        return self._progress() != self._seen

    def _progress(self) -> int:
        """Epochs in the logs of the present attempt."""
        return sum(path.read_bytes().count(b": loss ") for path in self._logs.glob("attempt-*/*.log")
                   if path.parent.name not in self._old)

    def _until(self, condition: Callable[[], bool], otherwise: str) -> None:
        """Wait for something, or for the end of the command."""
        end = time.monotonic() + PATIENCE_S
        while not condition() and self._driver is not None and self._driver.poll() is None:
            if time.monotonic() > end:
                self._driver.kill()
                raise AssertionError(f"{otherwise}:\n{(self.folder / 'output.log').read_text()[-4000:]}")
            time.sleep(0.05)

    def _inject(self, kind: str) -> bool:
        """Let a fault happen; False if there was no victim at this moment."""
        assert self._driver is not None
        if kind == "driver":
            self._driver.send_signal(signal.SIGKILL)
            self._driver.wait()
            return True
        if kind == "node":
            self.nodes.replace(self.chance)
            return True
        if kind == "write":
            self.nodes.flag.touch()
            self._until(lambda: not self.nodes.flag.exists(), "nobody wrote anything")
            if self.nodes.flag.exists():  # the run was over before
                self.nodes.flag.unlink()
                return False
            # It may end the run, or only cost a lease.
            end = time.monotonic() + 5
            while self._driver.poll() is None and time.monotonic() < end:
                time.sleep(0.05)
            return True
        actor = {"worker": "ray::ParticleActor", "averager": "ray::AveragingActor"}[kind]
        victims = [pid for pid in descendants(os.getpid()) if command_line(pid).startswith(actor)]
        if not victims:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.chance.choice(victims), signal.SIGKILL)
        return True
