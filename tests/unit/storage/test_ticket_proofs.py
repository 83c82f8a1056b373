"""Tickets of runs prove that they are what their runs wrote; whatever became of their files is told, and mended."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
from click.testing import CliRunner

from swamp_ray.analysis.bench import Bench
from swamp_ray.analysis.rewinding import side_of
from swamp_ray.api import result_of
from swamp_ray.cli import main
from swamp_ray.commands.evaluate import evaluate_runs
from swamp_ray.errors import CorruptArtifactError, SwampError, UserError
from swamp_ray.launch import run
from swamp_ray.report.load.runs import read_runs
from swamp_ray.run.prepare import prepare
from swamp_ray.storage import ticket_records
from swamp_ray.storage.json_lines import sealed
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.tickets import METADATA_KEY, load_round_ticket, load_ticket, ticket_bytes
from tests.helpers import ticket_digests, tiny

SETTINGS: dict[str, Any] = {"training__schedule": {"warmup": 0}, "round__length": 1, "particles__count": 1,
                            "averaging__within": "none"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    storage = tmp_path_factory.mktemp("storage")
    run(tiny(storage, **SETTINGS))
    return storage


@pytest.fixture
def storage(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "storage"))


def ticket_of(storage: Path, sparsity: str = "0.5000") -> Path:
    return storage / "runs/tiny/tickets" / sparsity / "model.safetensors"


def flip(position: float) -> Callable[[Path], None]:
    """One bit of the file, at a share of its length."""
    def damage(storage: Path) -> None:
        path = ticket_of(storage)
        data = bytearray(path.read_bytes())
        data[int(position * (len(data) - 1))] ^= 0x40
        path.write_bytes(data)
    return damage


def change_metadata(storage: Path) -> None:
    path = ticket_of(storage)
    data = path.read_bytes()
    assert b'higher_is_better\\":true' in data
    path.write_bytes(data.replace(b'higher_is_better\\":true', b'higher_is_better\\":null'))


def cut(storage: Path) -> None:
    path = ticket_of(storage)
    path.write_bytes(path.read_bytes()[:-100])


def exchange(storage: Path) -> None:
    shutil.copy(ticket_of(storage, "0.7500"), ticket_of(storage))


def rewrite(storage: Path) -> None:
    """A sound ticket with its own digest, of other weights."""
    ticket = load_ticket(ticket_of(storage))
    state = {name: tensor * 2 for name, tensor in ticket.state.items()}
    ticket_of(storage).write_bytes(ticket_bytes(state, ticket.masks, ticket.meta))


def strip_digest(storage: Path) -> None:
    """As an older version would have written it."""
    path = ticket_of(storage)
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[METADATA_KEY])
    del header["digest"]
    path.write_bytes(safetensors.torch.save(safetensors.torch.load_file(path), {METADATA_KEY: json.dumps(header)}))


DAMAGES = [flip(0.4), flip(0.75), flip(0.9), flip(1.0), change_metadata, cut, exchange, rewrite, strip_digest]


@pytest.mark.parametrize("damage", DAMAGES)
def test_whoever_reads_a_ticket_says_that_it_is_not_what_was_written_and_the_same_run_mends_it(
    storage: Path, damage: Callable[[Path], None]
) -> None:
    whole, rundir = ticket_digests(storage), RunDir(storage, "tiny")
    done = result_of(run(tiny(storage, **SETTINGS)))
    damage(storage)
    assert ticket_digests(storage) != whole
    readers: list[Callable[[], object]] = [
        lambda: load_ticket(ticket_of(storage)),
        lambda: done.ticket(0.5),
        lambda: evaluate_runs([rundir]),
        lambda: Bench(rundir).mask(1),
        lambda: side_of(rundir, {}).mask(1),
        lambda: prepare(tiny(storage, start_from={"path": str(ticket_of(storage))})),
    ]
    for read in readers:
        with pytest.raises(UserError):
            read()
    [shown] = read_runs(["tiny"], str(storage))
    assert [shown.ticket(record) is None for record in shown.records] == [False, True, False]
    run(tiny(storage, **SETTINGS))
    assert ticket_digests(storage) == whole
    assert load_ticket(ticket_of(storage)).verified


@pytest.mark.parametrize("damage", [flip(0.4), flip(0.75), flip(0.9), change_metadata, cut])
def test_a_ticket_far_from_its_run_proves_itself(
    storage: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(storage)
    alone = shutil.copy(ticket_of(storage), tmp_path / "network.safetensors")
    with pytest.raises(UserError):
        load_ticket(alone)


def lines_of(storage: Path) -> list[dict[str, Any]]:
    path = storage / "runs/tiny/rounds.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_lines(storage: Path, lines: list[dict[str, Any]]) -> None:
    (storage / "runs/tiny/rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def as_of_an_older_version(storage: Path) -> None:
    """Neither tickets nor records have digests."""
    lines = []
    for line in lines_of(storage):
        plain = {key: value for key, value in line.items() if key not in ("ticket_sha256", "check")}
        lines.append(sealed(plain))
    write_lines(storage, lines)
    for sparsity in ("0.0000", "0.5000", "0.7500"):
        path = ticket_of(storage, sparsity)
        with safetensors.safe_open(path, "pt") as file:
            header = json.loads(file.metadata()[METADATA_KEY])
        for key in ("digest", "input", "classes", "task"):
            del header[key]
        path.write_bytes(safetensors.torch.save(safetensors.torch.load_file(path), {METADATA_KEY: json.dumps(header)}))


def test_an_older_run_is_said_to_be_unverified_once_is_not_refused_and_goes_on(
    storage: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ticket_records, "_told", set())
    whole = ticket_digests(storage)
    as_of_an_older_version(storage)
    rundir = RunDir(storage, "tiny")
    with caplog.at_level(logging.WARNING):
        evaluate_runs([rundir])
        ticket = load_ticket(ticket_of(storage))
    assert not ticket.verified
    assert "not verified" in repr(ticket)
    assert (ticket.mean, ticket.input_shape, ticket.class_names, ticket.primary) == (None, None, (), None)
    assert [record.getMessage() for record in caplog.records] == [
        "the tickets of the run 'tiny' cannot be verified: they are older than digests of tickets. The same run again "
        "adds them."]
    done = run(tiny(storage, **SETTINGS))
    assert ticket_digests(storage) == whole
    assert all(load_round_ticket(rundir, record).verified for record in rundir.read_rounds())
    assert [record.ticket_sha256 for record in done.records] == list(whole.values())
    attempts = (rundir.read_run() or {})["attempts"]
    assert attempts[-1]["trained"] == 0


def test_an_exchanged_ticket_of_an_older_run_is_noticed_too(storage: Path) -> None:
    as_of_an_older_version(storage)
    exchange(storage)
    with pytest.raises(UserError, match="this is a ticket of another round: its round is 2 instead of 1"):
        evaluate_runs([RunDir(storage, "tiny")])


PATHS = ["../../../etc/passwd", "/etc/passwd", "runs/tiny/../../../x", "a\0b", "", None, 5, ["tickets"], "c:\\x",
         "\x1b[31m", "x/" * 3000]


@pytest.mark.parametrize("path", PATHS)
def test_a_path_of_a_ticket_that_is_none_is_told_in_a_sentence(storage: Path, path: object) -> None:
    lines = [{key: value for key, value in line.items() if key != "check"} | {"ticket": path}
             for line in lines_of(storage)]
    write_lines(storage, lines)
    with pytest.raises(CorruptArtifactError, match=r"rounds\.jsonl: what stands there as the path of the ticket"):
        RunDir(storage, "tiny").ticket_of(lines[0])
    done = CliRunner().invoke(main, ["evaluate", "tiny", "--storage", str(storage)])
    assert isinstance(done.exception, SwampError | SystemExit)
    assert "Traceback" not in done.output
    run(tiny(storage, **SETTINGS))
    assert load_round_ticket(RunDir(storage, "tiny"), RunDir(storage, "tiny").read_rounds()[1]).verified


@pytest.mark.parametrize("line", [{"round": 0}, {"round": 0, "sparsity": "half"}, {"round": 0, "sparsity": None}])
def test_a_round_without_a_sparsity_is_told_in_a_sentence(storage: Path, line: dict[str, Any]) -> None:
    write_lines(storage, [line])
    with pytest.raises(CorruptArtifactError, match="a round has no sparsity"):
        evaluate_runs([RunDir(storage, "tiny")])


@pytest.mark.parametrize(("folder", "words"), [
    ("runs/tiny", "Name one of the 3 files in it, e.g. "), ("runs/tiny/tickets", "Name one of the 3 files in it"),
    ("runs/tiny/tickets/0.5000", "Name a file in it: "), ("runs", "Tickets are files: "),
])
def test_a_folder_is_answered_with_the_files_in_it(storage: Path, folder: str, words: str) -> None:
    with pytest.raises(UserError, match="this is a folder, and a ticket is a file") as caught:
        load_ticket(storage / folder)
    assert words in str(caught.value)


@pytest.mark.parametrize("path", ["a\0b", "", "x" * 5000, "/dev/null/x", "s3:/nothing"])
def test_what_is_no_path_of_a_ticket_is_told(path: str) -> None:
    with pytest.raises(SwampError):
        load_ticket(path)
