"""Links, pipes and the like in a storage root: nothing outside of it is touched, and nothing is waited for."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from swamp_ray.cli import main
from swamp_ray.errors import RunError, UserError
from swamp_ray.storage import cleanup as pruning
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.cleanup import remove, survey
from swamp_ray.storage.job_log import JobLog
from swamp_ray.storage.json_lines import Lines
from swamp_ray.storage.local_place import LocalPlace
from swamp_ray.storage.metrics import MetricsLog
from swamp_ray.storage.place import Place
from swamp_ray.storage.places import Spot, open_place
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.usage import run_dirs
from tests.helpers import folder_of

OLD, LINKED = "ab" + "0" * 62, "ab" + "1" * 62


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """A storage root with an artifact that no run names, older than a day."""
    ArtifactStore(tmp_path / "storage").put(OLD, {"state.bin": b"x"}, {})
    age(tmp_path / "storage")
    return tmp_path / "storage"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Somebody else's folder, laid out like a storage root so that its names could be taken for artifacts."""
    folder = tmp_path / "foreign"
    for name in ("thesis.tex", f"{OLD}.bin", "result.json", "x.tmp", f"{LINKED}/notes", f"ab/{LINKED}/notes"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    age(folder)
    return folder


def age(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        moment = time.time() - 200_000
        os.utime(path, (moment, moment))


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def prune(storage: Path) -> str:
    done = CliRunner().invoke(main, ["prune-storage", "--storage", str(storage), "--delete", "--older-than", "1s"])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    return done.output


LINKS: list[tuple[str, str]] = [
    (f"artifacts/ab/{LINKED}", "."), ("artifacts/cd", "."), ("artifacts/ab", "ab"), (f"artifacts/ab/{OLD}", LINKED),
    (f"artifacts/ab/{OLD}/x.tmp", "x.tmp"), ("artifacts", "."), ("runs/q", "."), ("runs", "."), ("tickets", "."),
]


@pytest.mark.parametrize(("link", "target"), LINKS)
def test_pruning_removes_nothing_behind_a_link(storage: Path, foreign: Path, link: str, target: str) -> None:
    before = contents(foreign)
    path = storage / link
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(foreign / target)
    printed = prune(storage)
    assert contents(foreign) == before
    assert "is a link" in printed or "whose name" in printed or "its name is none" in printed


def test_what_can_be_pruned_is_pruned_beside_a_link_and_through_the_root(storage: Path, foreign: Path) -> None:
    (storage / "artifacts" / "cd").symlink_to(foreign)
    other_name = storage.with_name("other-name")
    other_name.symlink_to(storage)
    printed = prune(other_name)
    assert not (storage / "artifacts" / "ab" / OLD / "result.json").exists()
    assert f"artifacts/cd is a link to {foreign}" in " ".join(printed.split())


def test_a_folder_that_becomes_a_link_between_the_look_and_the_removal_is_not_followed(
        storage: Path, foreign: Path) -> None:
    place = LocalPlace(storage)
    found = survey(place, 1)
    assert found.removals
    folder = storage / "artifacts" / "ab" / OLD
    inside = [path.name for path in folder.iterdir()]
    shutil.rmtree(folder)
    for name in inside:
        (foreign / name).write_text("mine")
    folder.symlink_to(foreign)
    with pytest.raises(RunError, match="is a link"):
        remove(place, found.removals)
    assert {path.name for path in foreign.iterdir()} >= set(inside)


@pytest.mark.parametrize("link", ["runs/q", "runs"])
def test_what_a_run_behind_a_link_needs_is_kept_and_a_link_to_nowhere_is_refused(
        storage: Path, tmp_path: Path, link: str) -> None:
    run = RunDir(tmp_path / "elsewhere", "q")
    run.append_result({"kind": "particle", "round": 0, "particle": 0, "name": OLD})
    (storage / link).parent.mkdir(exist_ok=True)
    (storage / link).symlink_to(tmp_path / "elsewhere" / link)
    assert [found.name for found in run_dirs(str(storage))] == ["q"]
    assert not survey(LocalPlace(storage), 1).removals
    shutil.rmtree(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"leads to no folder.*{link}"):
        survey(LocalPlace(storage), 1)


def test_links_that_lead_round_in_circles_end(storage: Path) -> None:
    RunDir(storage, "q").write_config("seed: 0")
    for name in ("one", "two"):
        (storage / "runs" / "q" / name).symlink_to(storage)
    (storage / "artifacts" / "ee").symlink_to("ee")
    found = survey(LocalPlace(storage), 1)
    assert found.strange.keys() == {"runs/q/one", "runs/q/two", "artifacts/ee"}


WRITES: dict[str, Callable[[Place, str], object]] = {
    "write": lambda place, key: place.write(key, b"new"),
    "first write": lambda place, key: place.write(key, b"new", keep_existing=True),
    "remove": lambda place, key: place.remove(key),
    "swap": lambda place, key: place.swap(key, b"new", expected=b"mine"),
    "append": lambda place, key: Lines(Spot(place, key)).append({"a": 1}),
    "events": lambda place, key: MetricsLog(Spot(place, "metrics.jsonl"), Spot(place, key)).close(),
}


@pytest.mark.parametrize("act", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("link", ["a", "a/b"])
def test_nothing_is_written_through_a_link(tmp_path: Path, foreign: Path, act: Callable[[Place, str], object],
                                           link: str) -> None:
    before = contents(foreign)
    (tmp_path / "s" / link).parent.mkdir(parents=True)
    (tmp_path / "s" / link).symlink_to(foreign)
    with pytest.raises(RunError, match=f"{link} is a link"):
        act(open_place(tmp_path / "s"), f"{link}/thesis.tex" if act is not WRITES["events"] else f"{link}/events")
    log = JobLog(LocalPlace(tmp_path / "s"), f"{link}/thesis.tex")
    log("a line")
    log.close()
    assert contents(foreign) == before
    assert set(os.listdir(foreign)) == {name.partition("/")[0] for name in before}


def test_a_link_in_place_of_a_file_is_replaced_or_refused_and_what_it_leads_to_stays(
        tmp_path: Path, foreign: Path) -> None:
    before = contents(foreign)
    place = LocalPlace(tmp_path / "s")
    place.write("ticket", b"")
    place.remove("ticket")
    for name in ("ticket", "rounds.jsonl"):
        (tmp_path / "s" / name).symlink_to(foreign / "thesis.tex")
    place.write("ticket", b"new")
    assert place.read("ticket") == b"new"
    with pytest.raises(RunError, match="is a link"):
        Lines(Spot(place, "rounds.jsonl"))
    assert contents(foreign) == before


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path has at most 107 characters
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "pipe": (pipe, "a named pipe"), "socket": (listening, "a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "a device"),
    "folder": (lambda path: path.mkdir(), "a folder"),
    "loop": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "dangling": (lambda path: path.symlink_to("nothing"), "leads nowhere"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["config.yaml", "run.json", "rounds.jsonl", "results.jsonl", ".lease.json"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path, kind: str, file: str) -> None:
    make, word = KINDS[kind]
    rundir = RunDir(tmp_path / "s", "q")
    rundir.write_config("seed: 0")
    rundir.write_run({"status": "running", "rounds": [], "attempts": []})
    (folder_of(rundir) / file).unlink(missing_ok=True)
    make(folder_of(rundir) / file)
    commands = {"rounds.jsonl": [["report", "q"], ["prune-storage"]], "results.jsonl": [["prune-storage"]]}
    for command in commands.get(file, [["status", "q"]]):
        done = CliRunner().invoke(main, [*command, "--storage", str(tmp_path / "s")])
        assert done.exit_code != 0
        assert file in done.output
        assert word in " ".join(done.output.split())


def test_pipes_among_artifacts_are_named(storage: Path) -> None:
    os.mkfifo(storage / "artifacts" / "ab" / OLD / "pipe")
    os.mkfifo(storage / "artifacts" / "pipe")
    printed = prune(storage)
    assert printed.count("is a named pipe") == 2
    assert not (storage / "artifacts" / "ab" / OLD / "result.json").exists()


def test_every_link_counts_where_there_are_many(storage: Path) -> None:
    for number in range(15):
        (storage / "artifacts" / f"link{number}").symlink_to(storage)
    printed = prune(storage)
    assert printed.count("is a link to") == 10
    assert "5 more" in printed
    assert pruning.UNUSED in printed
