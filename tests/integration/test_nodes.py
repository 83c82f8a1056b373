"""Nodes with a disk of their own, on one machine: one of them runs in a mount namespace."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from swamp_ray.errors import UserError
from swamp_ray.launch import run
from tests.helpers import tiny

# The node's processes see an empty file system where the others see the storage root, until standard input ends.
OWN_DISK = """
mount -t tmpfs tmpfs "$1" || exit 3
"$2" -m ray.scripts.scripts start --address "$3" --num-cpus 1 --disable-usage-stats >&2 || exit 4
echo started
read line
kill $(ps -o pid= -C raylet | while read pid; do
    [ "$(readlink /proc/$pid/ns/mnt)" = "$(readlink /proc/$$/ns/mnt)" ] && echo $pid; done)
"""


@pytest.fixture
def cluster() -> Iterator[Any]:
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    ray.init(address=found.address, log_to_driver=False, configure_logging=False)
    yield found
    ray.shutdown()
    found.shutdown()


def _nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


@pytest.mark.slow
def test_a_cluster_that_shares_the_folder_runs_and_one_that_does_not_is_refused(
    cluster: Any, tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()
    config = tiny(storage, execution__executor="ray", execution__address=cluster.address)
    cluster.add_node(num_cpus=1)
    assert len(run(config).records) == 3
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"], check=False).returncode:
        pytest.skip("a mount namespace of one's own is not permitted here")
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", OWN_DISK, "sh", str(storage), sys.executable,
               cluster.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as blind:
        assert blind.stdout is not None
        assert blind.stdout.readline() == "started\n"
        while _nodes() < 3:
            time.sleep(0.2)
        with pytest.raises(UserError, match="it does not see a file that was just written there"):
            run(tiny(storage, name="other", execution__executor="ray", execution__address=cluster.address))
        blind.communicate("end\n")
    assert not (storage / "runs" / "other").exists(), "refused before any work"
