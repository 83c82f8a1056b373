"""Damaged and hostile files: an error that says so, or the same bytes; never a traceback, never executed."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result

from swamp_ray.cli import main
from swamp_ray.config import yaml_reading
from swamp_ray.config.reading import build_config, dump_config, parse_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import CorruptArtifactError, Interrupted, SwampError, UserError
from swamp_ray.launch import run
from swamp_ray.method.events import Job
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.artifacts import CHECKPOINT, ArtifactStore
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.tickets import load_ticket
from swamp_ray.storage.usage import read_usage
from swamp_ray.training.results import Progress
from tests.helpers import TINY, ticket_digests, tiny
from tests.hostile import DAMAGES, damage_some, hostile_json, with_other_value

pytestmark = pytest.mark.nightly

PACKAGE = Path(__file__).resolve().parents[2] / "swamp_ray"
SMALL: dict[str, Any] = {"pruning__target": 0.5, "particles__count": 2, "round__length": 3,
                         "model__name": "lenet_300_100"}


class Interrupter(Reporter):
    """Stops the run in the middle of the last particle of the last round."""

    def job_advanced(self, job: Job, progress: Progress) -> None:
        if job == Job("particle", 1, 1) and progress.epoch == 2:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def halted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped with a checkpoint, and one that shares its first round and is complete."""
    folder = tmp_path_factory.mktemp("halted")
    run(tiny(folder, **{**SMALL, "name": "complete", "pruning__target": 0.0}))
    with pytest.raises(Interrupted):
        run(tiny(folder, **SMALL), Interrupter())
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Digests of the undisturbed runs' tickets."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(tiny(folder, **SMALL))
    run(tiny(folder, **{**SMALL, "name": "complete", "pruning__target": 0.0}))
    return {name: ticket_digests(folder, name) for name in ("tiny", "complete")}


def swamp(*arguments: str) -> Result:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), (
        f"a traceback: {type(done.exception).__name__}: {done.exception}")
    assert done.exit_code in (0, 1, 2), done.output
    return done


def categories(storage: Path) -> list[list[Path]]:
    """Records of runs, tickets, manifests, payloads: each as likely as the others, whatever their number."""
    files = sorted(path for path in storage.rglob("*") if path.is_file() and "tensorboard" not in path.parts)
    records = [path for path in files if "runs" in path.parts and path.suffix in {".json", ".jsonl", ".yaml"}]
    tickets = [path for path in files if "tickets" in path.parts]
    manifests = [path for path in files if path.name in {"result.json", "checkpoint.json"}]
    payloads = [path for path in files if "artifacts" in path.parts and path not in manifests]
    return [records, tickets, manifests, payloads]


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(18))
def test_a_damaged_storage_gives_an_error_or_the_same_bytes(
    tmp_path: Path, halted: Path, expected: dict[str, dict[str, str]], seed: int
) -> None:
    dice = random.Random(seed)
    storage = tmp_path / "s"
    shutil.copytree(halted, storage)
    damages = damage_some(categories(storage)[seed % 4], dice)
    for name in ("tiny", "complete"):
        swamp("status", name, "--storage", str(storage))
    swamp("prune-storage", "--storage", str(storage))
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_config(tiny(storage, **SMALL)))
    for path in storage.glob("runs/*/tickets/*/model.safetensors"):
        try:
            load_ticket(path)
        except SwampError:
            continue
    done = swamp("run", str(config), "--quiet")
    if done.exit_code == 0:
        assert ticket_digests(storage) == expected["tiny"], damages
    else:
        assert done.output.startswith("swamp: "), damages


@pytest.mark.chaos
def test_damaged_records_never_end_in_a_traceback(tmp_path: Path, halted: Path) -> None:
    storage = tmp_path / "s"
    shutil.copytree(halted, storage)
    folder = storage / "runs" / "complete"
    originals = {name: (folder / name).read_bytes() for name in ("run.json", "rounds.jsonl", "results.jsonl")}
    for seed in range(120):
        dice = random.Random(seed)
        name = dice.choice(sorted(originals))
        (folder / name).write_bytes(dice.choice([hostile_json, hostile_json, *DAMAGES])(originals[name], dice))
        swamp("status", "complete", "--storage", str(storage))
        swamp("prune-storage", "--storage", str(storage))
        (folder / name).write_bytes(originals[name])


def test_any_text_is_a_config_or_a_users_error() -> None:
    full = SwampConfig.model_validate(TINY).model_dump(mode="json")
    text = yaml.safe_dump(full, sort_keys=False).encode()
    built = 0
    for seed in range(200):
        dice = random.Random(seed)
        try:
            if seed % 2:
                config = build_config(with_other_value(full, dice))
            else:
                config = parse_config(dice.choice(DAMAGES)(text, dice).decode("utf-8", "replace"))
        except UserError:
            continue
        built += 1
        assert parse_config(dump_config(config)) == config
    assert built > 10


@pytest.mark.parametrize("text", [
    "seed: " + "9" * 5000, "name: " + "9" * 5000, "data: {options: {x: .inf}}",
    "data: {options: &a {x: *a}}", "[" * 2000, "model: {options: {x: !!binary aGFsbG8=}}",
    "model: {options: {1: 2}}", "task: {options: {x: !!set {a, b}}}",
    "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 8)}]\n" for i in range(12)),
    "!!python/object/apply:os.system ['true']", "x: !!python/name:os.system",
])
def test_hostile_yaml_is_a_users_error(text: str) -> None:
    with pytest.raises(UserError):
        parse_config(text)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (self.path,)


def malicious(path: Path) -> Iterator[tuple[str, bytes]]:
    """Files that would create a folder: a plain pickle, torch's zip format, torch's old format."""
    yield "pickle", pickle.dumps(Payload(path))
    for name, new_format in (("zip", True), ("legacy", False)):
        buffer = io.BytesIO()
        torch.save({"state_dict": Payload(path)}, buffer, _use_new_zipfile_serialization=new_format)
        yield name, buffer.getvalue()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Payload(path)))
        archive.writestr("archive/version", "3")
    yield "forged zip", buffer.getvalue()


def test_the_malicious_files_would_do_harm(tmp_path: Path) -> None:
    pickle.loads(dict(malicious(tmp_path / "harm"))["pickle"])
    assert (tmp_path / "harm").is_dir()


def test_nothing_in_a_malicious_checkpoint_is_executed(
    tmp_path: Path, halted: Path, expected: dict[str, dict[str, str]]
) -> None:
    for index, (kind, data) in enumerate(malicious(tmp_path / "harm")):
        storage = tmp_path / str(index)
        shutil.copytree(halted, storage)
        store, names = ArtifactStore(storage), read_usage(RunDir(storage, "tiny")).names
        unfinished = [name for name in names if store.find(name, CHECKPOINT) is not None]
        assert len(unfinished) == 1
        store.put(unfinished[0], {"run.pt": data}, {"epoch": 2}, CHECKPOINT)
        run(tiny(storage, **SMALL))
        assert ticket_digests(storage) == expected["tiny"], kind
        assert not (tmp_path / "harm").exists(), kind


def test_nothing_in_a_malicious_result_is_executed(tmp_path: Path, halted: Path) -> None:
    shutil.copytree(halted, tmp_path / "s")
    for path in sorted((tmp_path / "s").glob("artifacts/*/*/result.json")):
        manifest = json.loads(path.read_text())
        for payload in path.parent.glob("*.safetensors"):
            payload.write_bytes(pickle.dumps(Payload(tmp_path / "harm")))
        path.write_bytes(pickle.dumps(Payload(tmp_path / "harm")))
        with pytest.raises(CorruptArtifactError):
            ArtifactStore(tmp_path / "s").find(manifest["name"])
    run(tiny(tmp_path / "s", **SMALL))
    assert not (tmp_path / "harm").exists()


def test_nothing_in_a_malicious_ticket_or_start_is_executed(tmp_path: Path) -> None:
    for kind, data in malicious(tmp_path / "harm"):
        path = tmp_path / "start"
        path.write_bytes(data)
        with pytest.raises(UserError):
            load_ticket(path)
        with pytest.raises(UserError, match="neither safetensors nor a torch file of plain tensors"):
            run(tiny(tmp_path / "s", start_from={"path": str(path)}))
        assert not (tmp_path / "harm").exists(), kind


@pytest.mark.parametrize("data", [b"", b"\0" * 8, b"\xff" * 64, b"PK\x03\x04", b"\x80\x02", b"\x80\x02.", b"[1, 2]",
                                  (2**40).to_bytes(8, "little") + b"{}", b"PK\x05\x06" + b"\0" * 18])
def test_a_start_that_is_no_checkpoint_is_a_users_error(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "start"
    path.write_bytes(data)
    with pytest.raises(UserError):
        run(tiny(tmp_path / "s", start_from={"path": str(path)}))


# Modules that run code from what they read, and functions that do so unless told otherwise.
FORBIDDEN = {"marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle"}
LOADERS = {"pickle.load", "pickle.loads", "pickle.Unpickler", "torch.jit.load", "torch.package.PackageImporter",
           "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "pd.read_pickle", "pandas.read_pickle", "eval",
           "exec"}


def unsafe_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of each call that could run code from a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = names if isinstance(node, ast.Import) else [node.module or ""]
            if {name.partition(".")[0] for name in modules} & FORBIDDEN:
                yield node.lineno, ast.unparse(node)
            if isinstance(node, ast.ImportFrom) and node.module == "pickle" and {"load", "loads"} & set(names):
                yield node.lineno, ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        safe_yaml = options.get("Loader") in {"_Loader", "yaml.SafeLoader"}
        if (called in LOADERS or (called == "torch.load" and options.get("weights_only") != "True")
                or (called in {"np.load", "numpy.load"} and options.get("allow_pickle", "False") != "False")
                or (called == "yaml.load" and not safe_yaml)):
            yield node.lineno, ast.unparse(node)[:80]


def test_the_package_never_loads_what_could_be_code() -> None:
    found = [f"{path.relative_to(PACKAGE)}:{line}: {text}" for path in sorted(PACKAGE.rglob("*.py"))
             for line, text in unsafe_calls(ast.parse(path.read_text()))]
    # A module of the user's without a source file is looked through for its imports; a run imports it anyway.
    allowed = "user_code/source_text.py"
    assert [text for text in found if not text.startswith(allowed) or "import marshal" not in text] == []
    assert issubclass(yaml_reading._Loader, yaml.SafeLoader)


@pytest.mark.parametrize("text", [
    "pickle.loads(x)", "torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)",
    "import cloudpickle", "from pickle import loads", "yaml.load(x, Loader=yaml.Loader)", "eval(x)",
])
def test_the_reader_of_calls_sees_them(text: str) -> None:
    assert list(unsafe_calls(ast.parse(text)))
