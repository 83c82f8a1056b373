"""cluster/: files for Ray's autoscaler, Slurm and Docker, checked without a cloud (KubeRay: test_cluster_kuberay)."""

from __future__ import annotations

import copy
import fnmatch
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from swamp_ray.config.reading import load_config
from tests.cluster_schemas import check_aws_node, check_google_node, launched, paths, ray_start_options, renamed

pytestmark = pytest.mark.nightly

REPOSITORY = Path(__file__).resolve().parents[2]
CLUSTER = REPOSITORY / "cluster"
AUTOSCALED = ("aws.yaml", "gcp.yaml", "onprem.yaml")
CLOUDS = ("aws.yaml", "gcp.yaml")
CONFIG = REPOSITORY / "configs" / "cluster" / "digits.yaml"
TOKEN = "~/.ray/auth_token"
PROVIDERS = {
    "aws": {"type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips"},
    "gcp": {"type", "region", "availability_zone", "project_id", "cache_stopped_nodes", "use_internal_ips"},
    "local": {"type", "head_ip", "worker_ips"},
}
NODES = {"aws": check_aws_node, "gcp": check_google_node}


def document(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def check_autoscaler_file(config: Any) -> Any:
    """Ray's own check, and one of what Ray leaves to the clouds; the config with Ray's defaults.

    Raises:
        ValueError: A name is not known.
    """
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        full = prepare_config(copy.deepcopy(config))
        validate_config(full)
    except (jsonschema.ValidationError, click.ClickException, KeyError, AssertionError) as error:
        raise ValueError(str(error)) from error
    kind = config["provider"]["type"]
    for unknown in (set(config["provider"]) - PROVIDERS[kind], set(config["file_mounts"]) - {TOKEN}):
        if unknown:
            raise ValueError(f"unknown: {unknown}")
    for node_type in config.get("available_node_types", {}).values():
        _check_open_keys(node_type)
        NODES[kind](node_type["node_config"])
    return full


def _check_open_keys(node_type: Any) -> None:
    from ray import _raylet
    from ray.util import accelerators

    labels = {getattr(_raylet, name) for name in dir(_raylet) if re.fullmatch(r"RAY_NODE_\w+_KEY", name)}
    kinds = {f"accelerator_type:{value}" for name, value in vars(accelerators).items() if name.isupper()}
    for unknown in (set(node_type.get("labels", {})) - labels, set(node_type["resources"]) - {"CPU", "GPU"} - kinds):
        if unknown:
            raise ValueError(f"unknown: {unknown}")


@pytest.mark.parametrize("name", AUTOSCALED)
def test_rays_autoscaler_takes_the_file(name: str) -> None:
    check_autoscaler_file(document(name))


def misspellings() -> Iterator[Any]:
    free = {("available_node_types", "spot_gpu")}  # a name of one's own, that nothing points to
    for name in AUTOSCALED:
        for path in paths(document(name)):
            if path not in free:
                yield pytest.param(name, path, id=f"{name}:{'.'.join(map(str, path))}")


@pytest.mark.parametrize(("name", "path"), [*misspellings()])
def test_a_misspelled_name_fails(name: str, path: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 -- each name has its own words
        check_autoscaler_file(renamed(document(name), path))


def test_the_checks_need_no_cloud_client() -> None:
    asked = ("import sys, yaml; sys.modules['boto3'] = sys.modules['googleapiclient'] = None\n"
             "from ray.autoscaler._private.util import prepare_config, validate_config\n"
             "for name in sys.argv[1:]: validate_config(prepare_config(yaml.safe_load(open(name))))")
    subprocess.run([sys.executable, "-c", asked, *(str(CLUSTER / name) for name in AUTOSCALED)], check=True)


@pytest.mark.parametrize("name", AUTOSCALED)
class TestAnAutoscalerFile:
    def test_asks_for_a_token_that_it_does_not_hold(self, name: str) -> None:
        config = document(name)
        assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
        assert config["file_mounts"] == {TOKEN: TOKEN}
        # Where Ray puts it on the host, before the container starts.
        from ray.autoscaler.sdk import get_docker_host_mount_location

        on_the_host = f"{get_docker_host_mount_location(config['cluster_name'])}/{TOKEN}"
        for kind in config.get("available_node_types", {"": {}}).values():
            commands = kind.get("initialization_commands", config["initialization_commands"])
            assert f'chmod 600 "{on_the_host}"' in commands

    def test_shows_the_dashboard_to_the_head_alone(self, name: str) -> None:
        full = check_autoscaler_file(document(name))
        start = [command for command in full["head_start_ray_commands"] if "--head" in command]
        assert len(start) == 1
        assert " --dashboard-host=127.0.0.1 " in start[0]

    def test_starts_ray_with_options_that_it_has(self, name: str) -> None:
        full = check_autoscaler_file(document(name))
        for command in [*full["head_start_ray_commands"], *full["worker_start_ray_commands"]]:
            assert set(re.findall(r"--([\w-]+)", command)) <= ray_start_options()

    def test_installs_nothing_beside_the_image(self, name: str) -> None:
        full = check_autoscaler_file(document(name))
        assert not [*full["setup_commands"], *full["head_setup_commands"], *full["worker_setup_commands"]]


@pytest.mark.parametrize("name", CLOUDS)
class TestACloud:
    def test_workers_start_from_none_and_the_head_holds_the_rest(self, name: str) -> None:
        assert launched(document(name), load_config(CONFIG).execution) == {"spot_gpu": 3}

    def test_rents_a_stable_head_without_a_gpu_and_workers_that_may_be_taken_away(self, name: str) -> None:
        head, worker = (document(name)["available_node_types"][kind] for kind in ("head", "spot_gpu"))
        is_spot = {"aws.yaml": lambda node: node.get("InstanceMarketOptions", {}).get("MarketType") == "spot",
                   "gcp.yaml": lambda node: node.get("scheduling", {}).get("provisioningModel") == "SPOT"}[name]
        assert [is_spot(node["node_config"]) for node in (head, worker)] == [False, True]
        assert head["resources"] == {"CPU": 0}
        assert worker["min_workers"] == 0

    def test_workers_lie_behind_firewalls_of_ones_own(self, name: str) -> None:
        closed = {"aws.yaml": "SecurityGroupIds", "gcp.yaml": "tags"}[name]
        types = document(name)["available_node_types"].values()
        assert all(closed in node["node_config"] for node in types), "else Ray opens ssh to the world, or no rule holds"


class TestScripts:
    @staticmethod
    def scripts() -> list[Path]:
        found = [path for path in REPOSITORY.rglob("*.sh") if not path.relative_to(REPOSITORY).parts[0].startswith(".")]
        return [*found, REPOSITORY / ".ci" / "run"]

    def test_shellcheck_and_bash_find_nothing(self) -> None:
        scripts = [str(path) for path in self.scripts()]
        assert str(CLUSTER / "slurm.sh") in scripts
        for command in ([tool("shellcheck"), *scripts], *(["bash", "-n", script] for script in scripts)):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr

    @pytest.mark.parametrize("name", AUTOSCALED)
    def test_commands_of_the_yaml_files_too(self, name: str) -> None:
        config = document(name)
        commands = [line for key, lines in config.items() if key.endswith("_commands") for line in lines]
        # SC2088: Ray puts a real ~ into the path; SC2154: the autoscaler sets RAY_HEAD_IP.
        done = subprocess.run([tool("shellcheck"), "--shell=bash", "--exclude=SC2088,SC2154,SC2086", "-"],
                              input="\n".join(commands), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout

    @pytest.mark.parametrize(("arguments", "environment", "says"), [
        (["run.yaml"], {"SLURM_JOB_ID": ""}, "sbatch"),
        ([], {}, "name the config"),
        (["run.yaml"], {"SWAMP_VENV": "/nowhere", "PATH": "/usr/bin:/bin"}, "SWAMP_VENV"),
    ])
    def test_slurm_says_what_is_missing(self, arguments: list[str], environment: dict[str, str], says: str) -> None:
        done = self.slurm(arguments, {"SLURM_JOB_ID": "1", **environment})
        assert done.returncode == 2
        assert says in done.stderr

    @pytest.mark.parametrize(("step", "code", "says"), [
        ("exit 0", 1, "Ray did not start"),      # what symmetric-run makes of a Ray that fails
        ("exit 7", 7, "Ray did not start"),
        ('while [ "$1" != -- ]; do shift; done; shift; "$@"; exit 0', 4, ""),    # swamp's own code counts
    ])
    def test_slurm_ends_with_the_right_code(self, tmp_path: Path, step: str, code: int, says: str) -> None:
        for name, text in {"srun": step, "scontrol": "echo node1", "swamp": "exit 4", "ray": ""}.items():
            file = tmp_path / "bin" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"#!/bin/bash\n{text}\n")
            file.chmod(0o755)
        slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node1", "SLURM_JOB_NUM_NODES": "1",
                 "SLURM_CPUS_PER_TASK": "1", "SWAMP_HEAD_IP": "127.0.0.1", "SWAMP_VENV": str(tmp_path)}
        done = self.slurm(["run.yaml"], slurm)
        assert done.returncode == code, done.stderr
        assert says in done.stderr

    @staticmethod
    def slurm(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(CLUSTER / "slurm.sh"), *arguments], env={**os.environ, **environment},
                              capture_output=True, text=True, check=False, timeout=30)


def tool(name: str) -> str:
    """A tool that a package brings beside this interpreter."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found is not None, f"{name} is missing: pip install -r requirements-dev.txt"
    return found


class TestTheImage:
    FILE = CLUSTER / "Dockerfile"

    def instructions(self) -> list[tuple[str, str]]:
        joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", self.FILE.read_text(), flags=re.M))
        return [(word.upper(), rest.strip()) for word, _, rest in
                (line.partition(" ") for line in joined.splitlines() if line)]

    def test_hadolint_finds_nothing(self) -> None:
        done = subprocess.run([tool("hadolint"), str(self.FILE)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout

    def test_copies_files_that_reach_the_builder(self) -> None:
        ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
        let_in = [line.removeprefix("!") for line in ignored if line.startswith("!")]
        assert "*" in ignored
        sources = [source for word, rest in self.instructions() if word == "COPY" for source in rest.split()[:-1]]
        assert "swamp_ray" in sources
        for source in sources:
            assert (REPOSITORY / source).exists(), source
            assert any(fnmatch.fnmatch(source, pattern) for pattern in let_in), f"{source} is in .dockerignore"
        assert set(let_in) == set(sources), "files go to the builder that it does not use"

    def test_runs_as_a_user_whose_home_ray_up_can_read(self) -> None:
        users = [rest for word, rest in self.instructions() if word == "USER"]
        assert users == ["$UID"]
        assert any(word == "ENV" and "HOME=/home/swamp" in rest for word, rest in self.instructions())

    def test_holds_what_the_autoscaler_calls(self) -> None:
        text = self.FILE.read_text()
        assert all(re.search(rf"install [^&]*\b{name}\b", text) for name in ("rsync", "openssh-client", "wget"))


SECRETS = {
    "a token or key": re.compile(r"(?<![\w/.-])[0-9a-fA-F]{32,}(?![\w-])|\bA(?:KIA|SIA)[0-9A-Z]{16}\b|AIza[\w-]{35}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a value for a secret": re.compile(
        r"(?i)(?:auth_token|secret_?(?:access_)?key|password|passwd)\b[\"']?\s*[:=]\s*[\"']?(?![\s$~<{(\"']|FILL_IN|$)"),
}


def written() -> list[Path]:
    return [path for path in [*CLUSTER.rglob("*"), CONFIG] if path.is_file()]


@pytest.mark.parametrize("path", written(), ids=lambda path: path.name)
def test_no_file_holds_a_secret(path: Path) -> None:
    text = path.read_text()
    assert {kind: found[0] for kind, pattern in SECRETS.items() if (found := pattern.search(text))} == {}


@pytest.mark.parametrize("line", [
    "RAY_AUTH_TOKEN=0f9a" + "e" * 60, "key: AKIA" + "A" * 16, "-----BEGIN RSA PRIVATE KEY-----",
    "auth_token: hunter2", 'AWS_SECRET_ACCESS_KEY="abc"', "password=x",
])
def test_the_search_for_secrets_finds_them(line: str) -> None:
    assert any(pattern.search(line) for pattern in SECRETS.values())


class TestTheGuide:
    TEXT = (CLUSTER / "README.md").read_text() if (CLUSTER / "README.md").exists() else ""

    def test_explains_what_has_to_be_filled_in(self) -> None:
        blanks = {blank for path in written() if path.suffix != ".md"
                  for blank in re.findall(r"FILL_IN_[A-Z0-9_]+", path.read_text())}
        assert {blank for blank in blanks if blank not in self.TEXT} == set()

    def test_settings_can_be_read(self, tmp_path: Path) -> None:
        shown = re.findall(r"^```yaml\n(.*?)^```$", self.TEXT, re.M | re.S)
        assert shown
        for text in shown:
            (tmp_path / "run.yaml").write_text(CONFIG.read_text().partition("execution:")[0] + text)
            load_config(tmp_path / "run.yaml")

    def test_names_files_that_exist(self) -> None:
        named = set(re.findall(r"\b(?:cluster|configs)/[\w./-]+\.(?:yaml|sh|txt)\b", self.TEXT))
        assert {name for name in named if not (REPOSITORY / name).is_file()} == set()
        assert {f"cluster/{path.relative_to(CLUSTER).as_posix()}" for path in CLUSTER.rglob("*.yaml")} <= named
