"""cluster/kuberay: known fields only, closed ports, and workers that start from nothing."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from swamp_ray.config.reading import load_config
from tests.cluster_schemas import check_kubernetes, launched, paths, renamed

pytestmark = pytest.mark.nightly

REPOSITORY = Path(__file__).resolve().parents[2]
FOLDER = REPOSITORY / "cluster" / "kuberay"
FILES = sorted(path.name for path in FOLDER.glob("*.yaml"))


def document(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def clusters() -> list[Any]:
    return [document("raycluster.yaml")["spec"], document("rayjob.yaml")["spec"]["rayClusterSpec"]]


def groups(cluster: Any) -> list[Any]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def pods(cluster: Any) -> list[Any]:
    return [group["template"] for group in groups(cluster)]


@pytest.mark.parametrize("name", FILES)
def test_every_name_is_known(name: str) -> None:
    check_kubernetes(document(name))


def misspellings() -> Iterator[Any]:
    for name in FILES:
        for path in paths(document(name)):
            yield pytest.param(name, path, id=f"{name}:{'.'.join(map(str, path))}")


@pytest.mark.parametrize(("name", "path"), [*misspellings()])
def test_a_misspelled_name_fails(name: str, path: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- each name has its own words
        check_kubernetes(renamed(document(name), path))


def test_rays_version_is_the_one_in_the_image() -> None:
    pinned = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    assert [cluster["rayVersion"] for cluster in clusters()] == [pinned[1]] * 2


def test_the_job_runs_on_the_same_cluster_and_reads_its_config() -> None:
    cluster, job = clusters()
    mounted = copy.deepcopy(job)
    pod = mounted["headGroupSpec"]["template"]["spec"]
    assert pod["volumes"].pop(0) == {"name": "config", "configMap": {"name": "swamp-config"}}
    mount = pod["containers"][0]["volumeMounts"].pop(0)
    assert f" {mount['mountPath']}/run.yaml " in document("rayjob.yaml")["spec"]["entrypoint"]
    assert mounted == cluster


@pytest.mark.parametrize("cluster", clusters(), ids=["raycluster", "rayjob"])
class TestTheCluster:
    def test_asks_for_a_token(self, cluster: Any) -> None:
        assert cluster["authOptions"] == {"mode": "token"}

    def test_is_in_the_network_policy(self, cluster: Any) -> None:
        policy = document("networkpolicy.yaml")["spec"]
        assert all(policy["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
                   for pod in pods(cluster))
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"

    def test_pods_get_what_they_ask_for_and_no_rights(self, cluster: Any) -> None:
        for pod in pods(cluster):
            container = pod["spec"]["containers"][0]
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert pod["spec"]["securityContext"]["runAsNonRoot"] is True

    def test_the_object_store_has_its_memory(self, cluster: Any) -> None:
        for pod in pods(cluster):
            volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
            mounts = {mount["mountPath"]: mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
            memory = pod["spec"]["containers"][0]["resources"]["limits"]["memory"]
            shm = volumes[mounts["/dev/shm"]]["emptyDir"]
            # Ray takes 30 % of the memory for it, and warns where /dev/shm is smaller.
            assert shm["medium"] == "Memory"
            assert 0.3 <= float(shm["sizeLimit"].removesuffix("Gi")) / float(memory.removesuffix("Gi")) <= 0.5

    def test_the_storage_root_is_one_volume_that_all_write(self, cluster: Any) -> None:
        claim = document("storage.yaml")
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        for pod in pods(cluster):
            named = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["spec"]["volumes"]
                     if "persistentVolumeClaim" in volume]
            assert named == [claim["metadata"]["name"]]

    def test_workers_start_from_none_and_the_head_holds_the_rest(self, cluster: Any) -> None:
        from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

        seen_by_autoscaler = _derive_autoscaling_config_from_ray_cr(
            {"metadata": {"name": "swamp", "namespace": "default"}, "spec": copy.deepcopy(cluster)})
        assert seen_by_autoscaler["available_node_types"]["headgroup"]["resources"]["CPU"] == 0
        execution = load_config(REPOSITORY / "configs" / "cluster" / "digits.yaml").execution
        assert launched(seen_by_autoscaler, execution) == {"spot-gpu": 3}


def test_the_policy_closes_rays_ports_to_the_namespace() -> None:
    policy = document("networkpolicy.yaml")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    inside, dashboard = policy["ingress"]
    assert inside == {"from": [{"podSelector": policy["podSelector"]}]}, "the pods among themselves"
    assert [port["port"] for port in dashboard["ports"]] == [8265], "the operator and submitters see nothing else"
    assert all(peer["podSelector"]["matchLabels"] for peer in dashboard["from"])
    submitter = dashboard["from"][1]["podSelector"]["matchLabels"]
    assert submitter == {"batch.kubernetes.io/job-name": document("rayjob.yaml")["metadata"]["name"]}
