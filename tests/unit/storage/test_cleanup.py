"""Pruning a storage root: what goes, what must stay, and being stopped in between."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from swamp_ray.cli import main
from swamp_ray.commands.prune_storage import parse_age
from swamp_ray.errors import CorruptArtifactError, RunError, UserError
from swamp_ray.launch import run
from swamp_ray.method.events import Job
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.artifacts import CHECKPOINT, ArtifactStore
from swamp_ray.storage.cleanup import CHECKPOINTS, LEFTOVERS, UNUSED, remove, survey
from swamp_ray.storage.local_place import LocalPlace
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.usage import read_usage
from swamp_ray.training.results import Progress
from tests.helpers import ticket_digests, tiny

DAY_S = 86400.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs that share their dense phase and their first two particles."""
    folder = tmp_path_factory.mktemp("finished")
    for name, count in (("tiny", 2), ("more", 3)):
        run(tiny(folder, name=name, particles__count=count, pruning__target=0.5))
    return folder


@pytest.fixture
def storage(finished: Path, tmp_path: Path) -> Path:
    """A copy of the two runs, written two days ago."""
    shutil.copytree(finished, tmp_path / "s")
    age(tmp_path / "s")
    return tmp_path / "s"


def age(folder: Path, seconds: float = 2 * DAY_S) -> None:
    for path in folder.rglob("*"):
        moment = time.time() - seconds
        os.utime(path, (moment, moment))


def artifacts(storage: Path) -> set[str]:
    return {path.parent.name for path in storage.glob("artifacts/*/*/result.json")}


def prune(storage: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["prune-storage", "--storage", str(storage), *arguments])


def files(storage: Path) -> set[str]:
    return {str(path.relative_to(storage)) for path in storage.rglob("*") if path.is_file()}


def test_a_run_names_every_artifact_that_it_has_used(storage: Path) -> None:
    usages = [read_usage(RunDir(storage, name)) for name in ("tiny", "more")]
    assert usages[0].names | usages[1].names == artifacts(storage)
    for usage, count in zip(usages, (2, 3), strict=True):
        kinds = [use.kind for use in usage.uses]
        assert {kind: kinds.count(kind) for kind in kinds} == {
            "dense": 1, "particle": 2 * count, "average": 2, "evaluation": 2}
    assert len(usages[0].names & usages[1].names) == 3


def test_a_second_attempt_notes_nothing_twice(storage: Path) -> None:
    before = Path(RunDir(storage, "tiny").results.location).read_bytes()
    run(tiny(storage, particles__count=2, pruning__target=0.5))
    assert Path(RunDir(storage, "tiny").results.location).read_bytes() == before


def test_what_runs_name_is_never_removed(storage: Path) -> None:
    before = files(storage)
    done = prune(storage, "--delete", "--older-than", "0s")
    assert done.exit_code == 0, done.output
    assert "nothing to remove" in done.output
    assert files(storage) == before


def test_without_delete_nothing_is_changed(storage: Path) -> None:
    shutil.rmtree(storage / "runs" / "more")
    before = files(storage)
    done = prune(storage)
    assert done.exit_code == 0, done.output
    assert "--delete removes it" in done.output
    assert files(storage) == before


def test_a_run_that_was_given_up_leaves_only_what_others_share(storage: Path) -> None:
    kept = read_usage(RunDir(storage, "tiny")).names
    tickets = ticket_digests(storage, "tiny")
    shutil.rmtree(storage / "runs" / "more")
    done = prune(storage, "--delete")
    assert done.exit_code == 0, done.output
    assert artifacts(storage) == kept
    assert not [path for path in storage.glob("artifacts/*/*/*") if path.parent.name not in kept]
    again = run(tiny(storage, particles__count=2, pruning__target=0.5))
    attempt = (again.rundir.read_run() or {})["attempts"][-1]
    assert attempt["trained"] == 0
    assert ticket_digests(storage, "tiny") == tickets


def test_the_table_tells_own_bytes_from_shared_ones(storage: Path) -> None:
    found = survey(LocalPlace(storage), DAY_S)
    spaces = {space.name: space for space in found.runs}
    shared = read_usage(RunDir(storage, "tiny")).names & read_usage(RunDir(storage, "more")).names
    sizes = {name: sum(path.stat().st_size for path in storage.glob(f"artifacts/*/{name}/*")) for name in shared}
    assert spaces["tiny"].shared_bytes == spaces["more"].shared_bytes == sum(sizes.values())
    everything = sum(path.stat().st_size for path in storage.rglob("*") if path.is_file())
    assert spaces["tiny"].own_bytes + spaces["more"].own_bytes + sum(sizes.values()) == everything
    assert "complete" in prune(storage).output


def test_what_is_young_stays(storage: Path) -> None:
    shutil.rmtree(storage / "runs" / "more")
    unused = artifacts(storage) - read_usage(RunDir(storage, "tiny")).names
    young, leased, *_ = sorted(unused)
    os.utime(next(storage.glob(f"artifacts/*/{young}/result.json")))
    (storage / "artifacts" / leased[:2] / leased / "lease.json").write_text("{}")
    done = prune(storage, "--delete", "--older-than", "1h")
    assert done.exit_code == 0, done.output
    assert "2 artifacts that no run names but that are younger than 1h" in done.output
    assert artifacts(storage) & unused == {young, leased}


def test_the_checkpoint_of_a_finished_result_goes_and_that_of_an_unfinished_one_stays(storage: Path) -> None:
    store, named = ArtifactStore(storage), [use.name for use in read_usage(RunDir(storage, "tiny")).uses]
    for name in named[:2]:
        store.put(name, {"run.pt": b"checkpoint"}, {"epoch": 1}, CHECKPOINT)
    store.discard(named[1], "result")
    age(storage)
    found = survey(LocalPlace(storage), DAY_S)
    assert [(removal.kind, removal.name) for removal in found.removals] == [(CHECKPOINTS, named[0])]
    remove(LocalPlace(storage), found.removals)
    assert store.find(named[0], CHECKPOINT) is None
    checkpoint, result = store.find(named[1], CHECKPOINT), store.find(named[0])
    assert checkpoint is not None
    assert result is not None
    assert store.read(checkpoint, "run.pt") == b"checkpoint"
    assert all(store.read(result, file) for file in result.files)


def test_leftovers_of_writers_that_died_go(storage: Path) -> None:
    folder = next(storage.glob("artifacts/*/*"))
    (folder / ".result.json.0123456789ab.tmp").write_bytes(b"half")
    (folder / ("f" * 64 + ".safetensors")).write_bytes(b"never named")
    (folder / "notes.txt").write_bytes(b"somebody's own")
    assert not survey(LocalPlace(storage), DAY_S).removals
    age(storage)
    found = survey(LocalPlace(storage), DAY_S)
    assert [(removal.kind, len(removal.keys)) for removal in found.removals] == [(LEFTOVERS, 2)]
    before = files(storage)
    remove(LocalPlace(storage), found.removals)
    assert {Path(file).name for file in before - files(storage)} == {
        ".result.json.0123456789ab.tmp", "f" * 64 + ".safetensors"}


def test_nothing_goes_from_an_artifact_with_a_damaged_manifest_that_a_run_names(storage: Path) -> None:
    manifest = next(storage.glob("artifacts/*/*/result.json"))
    manifest.write_bytes(b"{}")
    age(storage)
    assert not survey(LocalPlace(storage), DAY_S).removals


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(b'"name": "') + 12
    data[place] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [
    lambda folder: _flip(folder / "results.jsonl"),
    lambda folder: (folder / "results.jsonl").unlink(),
    lambda folder: (folder / "rounds.jsonl").write_bytes(b"{}\n[]\n{}\n"),
    lambda folder: _flip(folder / "rounds.jsonl"),
    lambda folder: (folder / "run.json").write_bytes(b"{"),
    lambda folder: (folder / "rounds.jsonl").write_bytes(b'{"round": 0}\n'),
])
def test_a_run_whose_records_are_damaged_stops_all_pruning(storage: Path, damage) -> None:
    shutil.rmtree(storage / "runs" / "more")
    damage(storage / "runs" / "tiny")
    before = files(storage)
    done = prune(storage, "--delete")
    assert done.exit_code == 1, done.output
    assert "runs/tiny" in done.output.replace("\n", "")
    assert files(storage) == before


def test_a_folder_that_is_no_run_stops_all_pruning(storage: Path) -> None:
    (storage / "runs" / "copy of tiny").mkdir()
    done = prune(storage, "--delete")
    assert done.exit_code == 2
    assert "copy of tiny" in done.output


def test_a_run_that_starts_meanwhile_keeps_what_it_names(storage: Path) -> None:
    (storage / "runs" / "more").rename(storage / "aside")
    found = survey(LocalPlace(storage), DAY_S)
    assert {removal.kind for removal in found.removals} == {UNUSED}
    (storage / "aside").rename(storage / "runs" / "more")
    before = files(storage)
    remove(LocalPlace(storage), found.removals)
    assert files(storage) == before


class Prunes(Reporter):
    """Prunes, as boldly as it can be asked to, whenever something has happened."""

    def __init__(self, storage: Path) -> None:
        self.storage, self.trained, self.pruned = storage, list[Job](), 0

    def job_advanced(self, job: Job, progress: Progress) -> None:
        self._prune()

    def job_finished(self, job: Job, found: bool) -> None:
        self.trained += [] if found else [job]
        self._prune()

    def _prune(self) -> None:
        self.pruned += 1
        assert prune(self.storage, "--delete", "--older-than", "0s").exit_code == 0


def test_pruning_beside_a_run_that_works_takes_nothing_from_it(tmp_path: Path, finished: Path) -> None:
    shutil.copytree(finished, tmp_path / "s")
    shutil.rmtree(tmp_path / "s" / "runs" / "more")
    watcher = Prunes(tmp_path / "s")
    values = {"pruning__target": 0.75, "particles__count": 2}
    run(tiny(tmp_path / "s", name="deeper", **values), watcher)
    assert watcher.pruned > 10
    assert len(watcher.trained) == len(set(watcher.trained)) == 3, "only the further round is trained, and once"
    names = read_usage(RunDir(tmp_path / "s", "tiny")).names | read_usage(RunDir(tmp_path / "s", "deeper")).names
    assert artifacts(tmp_path / "s") == names


class Dying(LocalPlace):
    """A place whose process is killed after so many removals."""

    left = 0

    def remove(self, key: str, *, durable: bool = True) -> None:
        if ".probe-" not in key:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        super().remove(key)


def test_being_killed_at_any_removal_leaves_a_sound_storage(storage: Path) -> None:
    kept = read_usage(RunDir(storage, "tiny")).names
    shutil.rmtree(storage / "runs" / "more")
    dying = Dying(storage)
    steps = 0
    while True:
        found = survey(dying, DAY_S)
        if not found.removals:
            break
        dying.left = steps % 3
        steps += 1
        with contextlib.suppress(KeyboardInterrupt):
            remove(dying, found.removals)
        store = ArtifactStore(storage)
        for name in artifacts(storage):
            manifest = store.find(name)
            assert manifest is not None
            assert all(store.read(manifest, file) for file in manifest.files)
    assert steps > 3
    assert artifacts(storage) == kept


def test_what_cannot_be_removed_is_an_error_that_says_what(storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(storage / "runs" / "more")

    def refuse(_self: object, key: str, *, durable: bool = True) -> None:
        if ".probe-" not in key:
            raise RunError(f"{key}: could not be removed: Read-only file system.")

    monkeypatch.setattr(LocalPlace, "remove", refuse)
    done = prune(storage, "--delete")
    assert done.exit_code == 1
    assert "Read-only file system" in done.output
    assert "removed 0 B" in done.output


def test_wrong_use_is_refused(tmp_path: Path, storage: Path) -> None:
    assert prune(tmp_path / "nowhere").exit_code == 2
    assert not (tmp_path / "nowhere").exists()
    done = prune(storage, "--older-than", "soon")
    assert (done.exit_code, "7d" in done.output) == (2, True)
    with pytest.raises(UserError):
        parse_age("-1h")
    assert parse_age("1.5h") == 5400


def test_records_are_checked_line_by_line(storage: Path) -> None:
    rundir = RunDir(storage, "tiny")
    record = json.loads(Path(rundir.rounds.location).read_text().splitlines()[0])
    record["average"]["test"]["accuracy"] = 0.123
    Path(rundir.rounds.location).write_text(json.dumps(record) + "\n")
    with pytest.raises(CorruptArtifactError, match=r"rounds\.jsonl"):
        rundir.read_rounds()
