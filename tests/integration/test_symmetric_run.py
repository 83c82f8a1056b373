"""cluster/slurm.sh as Slurm runs it, with real Ray on one node: only srun and scontrol are stand-ins."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
import yaml

from swamp_ray.launch import run
from tests.helpers import TINY, descendants, ticket_digests, tiny, wait_for

pytestmark = pytest.mark.nightly

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "cluster" / "slurm.sh"
LENGTH = 30

# Runs the step on this node, and keeps what it was told.
SRUN = """#!/usr/bin/env bash
echo "$@" >>"$STANDINS/srun"
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then hostname; else echo "$@" >>"$STANDINS/scontrol"; fi
"""
# The step may open every port of its own network, which has one interface.
INSIDE = """
import fcntl, os, socket, struct, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
    fcntl.ioctl(link, 0x8914, struct.pack("16sh22x", b"lo", 0x1))
os.execvp(sys.argv[1], sys.argv[1:])
"""


def isolation() -> list[str]:
    """A command that hides all other processes and ports: `ray stop`, at the end of the step, ends whatever it sees."""
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare (util-linux): the script's `ray stop` would end every Ray on this machine")
    command = ["unshare", "--pid", "--net", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        command[1:1] = ["--user", "--map-root-user"]
    if subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs namespaces (unshare): the script's `ray stop` would end every Ray on this machine")
    return [*command, sys.executable, "-c", INSIDE]


def commands(folder: Path) -> None:
    """srun and scontrol, and swamp and ray of this interpreter."""
    ours = {"swamp": "swamp_ray", "ray": "ray.scripts.scripts"}
    texts = {"srun": SRUN, "scontrol": SCONTROL,
             **{name: f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n' for name, module in ours.items()}}
    (folder / "bin").mkdir(parents=True)
    for name, text in texts.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)


@contextlib.contextmanager
def job(folder: Path, environment: Mapping[str, str] = MappingProxyType({})) -> Iterator[subprocess.Popen[str]]:
    """A job of one node with two CPUs; with it end all processes that it started."""
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1]", "SLURM_JOB_NUM_NODES": "1",
             "SLURM_CPUS_PER_TASK": "2", "SLURM_SUBMIT_DIR": str(REPOSITORY)}
    sockets = tempfile.mkdtemp(prefix="s")
    process = subprocess.Popen(
        [*isolation(), str(SCRIPT), str(folder / "tiny.yaml"), "--storage", str(folder / "results")],
        env={**os.environ, **slurm, "SWAMP_VENV": str(folder), "STANDINS": str(folder), "PYTHONPATH": str(REPOSITORY),
             "SWAMP_HEAD_IP": "127.0.0.1", "SWAMP_TMPDIR": sockets, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    with process:
        try:
            yield process
        finally:
            process.kill()
            shutil.rmtree(sockets, ignore_errors=True)


def test_a_job_whose_time_is_up_is_queued_again_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    commands(tmp_path)
    tiny_yaml = {**TINY, "round": {"length": LENGTH}, "execution": {"device": "cpu", "num_workers": 1}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_yaml))

    with job(tmp_path) as process:
        logs = tmp_path / "results/runs/tiny/logs/attempt-1"
        wait_for(lambda: any("epoch" in path.read_text() for path in logs.glob("round-1-*.log")), process, 240)
        os.kill(descendants(process.pid)[0], signal.SIGUSR1)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "swamp: stopped" in output, "swamp was not stopped in order"
    assert (tmp_path / "scontrol").read_text().split() == ["requeue", "7"]

    with job(tmp_path, {"SLURM_RESTART_COUNT": "1"}) as process:
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    assert (tmp_path / "scontrol").read_text().split() == ["requeue", "7"], "queued again after its end"
    undisturbed = tmp_path / "undisturbed"
    run(tiny(undisturbed, round__length=LENGTH, execution__checkpoint_interval_s=60.0))
    assert ticket_digests(tmp_path / "results") == ticket_digests(undisturbed)
