"""An embedded Ray lets nobody in: every port is tried from another network, and its token is nowhere to be read."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.helpers import TINY, command_line, descendants, wait_for

REPOSITORY = Path(__file__).resolve().parents[2]
INTRUDER = REPOSITORY / "tests" / "intruder.py"
LISTENING = "0A"
JOB_AGENT = 52365
NO_NAMESPACE = "network namespaces of one's own are not permitted here, or there is no ip command"
NO_AGENT = "Ray has no job agent here: the optional packages of ray[default] are missing"


@dataclass(frozen=True)
class Victim:
    """A run that trains on an embedded Ray.

    Attributes:
        process: The command.
        folder: Its storage lies in there, and its output.
        host: Its address as others see it.
        neighbour: What a command of another host begins with; None where no other host can be played.
        inside: What a command of its own host begins with.
    """

    process: subprocess.Popen[str]
    folder: Path
    host: str
    neighbour: list[str] | None
    inside: list[str]

    @property
    def pids(self) -> list[int]:
        return [self.process.pid, *descendants(self.process.pid)]

    def environment(self, pid: int) -> dict[str, str]:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        return dict(pair.split("=", 1) for pair in pairs if "=" in pair)

    def ports(self) -> list[int]:
        """All TCP ports that its processes listen on, in its network."""
        own = {target for pid in self.pids for target in _links(Path(f"/proc/{pid}/fd"))}
        found = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self.process.pid}/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[3] == LISTENING and f"socket:[{words[9]}]" in own:
                    found.add(int(words[1].rpartition(":")[2], 16))
        return sorted(found)


def _links(folder: Path) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            with contextlib.suppress(OSError):
                yield os.readlink(entry)


def _call(*words: str) -> bool:
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[list[str], list[str], str] | None]:
    """Two network namespaces with a wire between them: how commands begin there, and the first one's address."""
    unique = secrets.token_hex(3)
    own, other, wires = f"swamp-a-{unique}", f"swamp-b-{unique}", (f"swa{unique}", f"swb{unique}")
    hosts = ((own, wires[0], "198.18.7.1", "198.18.7.2"), (other, wires[1], "198.18.7.2", "198.18.7.1"))
    if shutil.which("ip") is None:
        yield None
        return
    try:
        made = _call("ip", "netns", "add", own) and _call("ip", "netns", "add", other)
        made = made and _call("ip", "-n", own, "link", "add", wires[0], "type", "veth", "peer", "name", wires[1],
                              "netns", other)
        for name, wire, address, gateway in hosts:
            for words in (("link", "set", "lo", "up"), ("addr", "add", f"{address}/24", "dev", wire),
                          ("link", "set", wire, "up"), ("route", "add", "default", "via", gateway)):
                made = made and _call("ip", "-n", name, *words)
        yield (["ip", "netns", "exec", own], ["ip", "netns", "exec", other], hosts[0][2]) if made else None
    finally:
        for name in (own, other):
            _call("ip", "netns", "del", name)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """Its user's environment switches authentication off, as one does for a cluster in a network of one's own."""
    folder = tmp_path_factory.mktemp("victim")
    config = {**TINY, "round": {"length": 100_000}, "execution": {"device": "cpu", "num_workers": 1}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "swamp_ray", "run", str(folder / "tiny.yaml"), "--storage",
               str(folder / "results")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment |= {"RAY_AUTH_MODE": "disabled", "HOME": str(folder)}
    with two_hosts() as hosts, (folder / "output.log").open("w") as output:
        inside, neighbour, host = hosts or ([], None, "127.0.0.1")
        process = subprocess.Popen([*inside, *command], env=environment, stdout=output, stderr=subprocess.STDOUT,
                                   text=True, cwd=REPOSITORY, start_new_session=True)
        try:
            logs = folder / "results/runs/tiny/logs"
            wait_for(lambda: any("epoch" in log.read_text() for log in logs.glob("attempt-1/round-0-*.log")), process)
            yield Victim(process, folder, host, neighbour, inside)
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            finally:
                process.kill()


@pytest.mark.parametrize("origin", ["another network", "the same machine"])
def test_no_port_of_an_embedded_run_answers_without_the_token(victim: Victim, origin: str, tmp_path: Path) -> None:
    if origin == "another network" and victim.neighbour is None:
        pytest.skip(NO_NAMESPACE)
    begin, host = (victim.neighbour, victim.host) if origin == "another network" else (victim.inside, "127.0.0.1")
    marker, ports = tmp_path / "taken-over", victim.ports()
    assert len(ports) >= 5, f"GCS, raylet, object manager, agent and a worker listen, but found {ports}"

    done = subprocess.run(
        [*(begin or []), sys.executable, str(INTRUDER), host, str(marker), *map(str, ports)],
        capture_output=True, text=True, check=False, timeout=300, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])

    assert found["answers"] == []
    refusing = {name.partition(" ")[0] for name in found["refusals"]}
    assert refusing == {"grpc", "http"}, "the questions have come to Ray's services, which refused them"
    assert sum(name.startswith("grpc") for name in found["refusals"]) >= 5
    if victim.neighbour is not None:
        assert f"http {JOB_AGENT}" in found["refusals"], NO_AGENT
    time.sleep(1.0)
    assert not marker.exists()
    assert victim.process.poll() is None, "the run goes on"


def test_the_token_is_in_no_command_line_and_in_no_file(victim: Victim) -> None:
    tokens = {victim.environment(pid).get("RAY_AUTH_TOKEN") for pid in victim.pids if "raylet" in command_line(pid)}
    (token,) = tokens
    assert token is not None
    assert len(token) == 64
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            assert token not in command_line(int(entry.name))
    (session,) = {_session(pid) for pid in victim.pids} - {None}
    assert session is not None
    for root in (session, victim.folder):
        assert _files_with(root, token.encode()) == []
    assert not (victim.folder / ".ray").exists(), "nothing in the home folder"


def test_other_users_of_the_machine_cannot_enter_the_folder_of_ray(victim: Victim) -> None:
    (session,) = {_session(pid) for pid in victim.pids} - {None}
    assert session is not None
    private = [folder for folder in session.parents if folder.stat().st_uid == os.getuid()
               and not folder.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO)]
    assert private, f"others can write into {session}"


def _session(pid: int) -> Path | None:
    """The folder of Ray's session that a raylet's command line names."""
    for word in command_line(pid).split():
        name, _, value = word.partition("=")
        if name == "--session_dir":
            return Path(value)
    return None


def _files_with(folder: Path, text: bytes) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):
                if text in path.read_bytes():
                    found.append(path)
    return found
