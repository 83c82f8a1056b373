"""Credentials are known by names and shapes, and stand in no record."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from torch import nn

from swamp_ray.credentials import (
    HIDDEN,
    Concealer,
    concealed,
    concealed_arguments,
    concealed_tree,
    credentials_in,
    names_credential,
)
from swamp_ray.launch import run
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.tickets import load_ticket
from tests.helpers import tiny

SECRET = "s3cr3t-Value-42"


@pytest.mark.parametrize("name", [
    "token", "data.options.api_key", "HF_TOKEN", "hfToken", "AWS_SECRET_ACCESS_KEY", "password", "db_passwd",
    "WANDB_API_KEY", "auth", "client-secret", "privateKey", "SAS", "X-Amz-Signature", "AZURE_STORAGE_ACCOUNT_KEY"])
def test_names_of_credentials(name: str) -> None:
    assert names_credential(name)


@pytest.mark.parametrize("name", [
    "tokenizer", "num_tokens", "max_token_length", "author", "keyword", "image_key", "training.lr", "api_key_file",
    "RAY_AUTH_MODE", "token_dim", "secret_name", "key", "monkey", "compass", "", "averaging.start", "passes"])
def test_names_that_are_none(name: str) -> None:
    assert not names_credential(name)


@pytest.mark.parametrize("arguments", [
    ["--set", f"data.options.token={SECRET}"], ["--set", f"data.options={{api_key: {SECRET}, size: 3}}"],
    ["--set", f"data.options.image_key={SECRET}"], [f"--password={SECRET}"], ["--token", SECRET],
    ["--storage", f"s3://user:{SECRET}@host/x"], ["--set", f"data.root=https://{SECRET}@github.com/a/b"],
    ["--set", f"data.options.url=https://x/y?sv=1&sig={SECRET}"],
    ["--set", f"data.options.header='Bearer {SECRET}'"], ["--set", f'data.options={{"password": "{SECRET}"}}'],
])
def test_a_credential_in_a_command_line_is_replaced(arguments: list[str]) -> None:
    told = concealed_arguments(["swamp", "run", "x.yaml", *arguments, "--quiet"])
    assert SECRET not in " ".join(told)
    assert HIDDEN in " ".join(told)
    assert told[:3] == ["swamp", "run", "x.yaml"]
    assert told[-1] == "--quiet"


@pytest.mark.parametrize("arguments", [
    ["swamp", "run", "configs/x.yaml", "--set", "training.lr=0.1", "--name", "q", "--storage", "s3://bucket/folder"],
    ["swamp", "run", "x.yaml", "--set", "model.options.token_dim=64", "--set", "model.options.tokens=128"],
    ["swamp", "sweep", "x.yaml", "--set", "pruning.rate={grid: [0.2, 0.5]}", "--address", "http://10.0.0.1:8265"]])
def test_a_command_line_without_credentials_stays_as_it_is(arguments: list[str]) -> None:
    assert concealed_arguments(arguments) == arguments


@pytest.mark.parametrize("shape", ["AKIAIOSFODNN7EXAMPLE", "hf_" + "a1B" * 12, "ghp_" + "x9" * 18, "sk-" + "ab12" * 8,
                                   "glpat-" + "x" * 20, "xoxb-1234567890-abc"])
def test_a_credential_is_known_by_its_shape(shape: str) -> None:
    assert concealed(f"refused: {shape} is not valid") == f"refused: {HIDDEN} is not valid"


def test_trees_keep_everything_else() -> None:
    tree = {"lr": 0.1, "options": {"token": SECRET, "urls": [f"https://u:{SECRET}@h/x", "https://h/x"], "num": 3,
                                   "tokens": 7, "auth": None, "key": "image"}}
    assert credentials_in(tree) == {SECRET, f"u:{SECRET}"}
    told = concealed_tree(tree)
    assert SECRET not in json.dumps(told)
    assert told["options"]["urls"][1] == "https://h/x"
    assert {key: told["options"][key] for key in ("num", "tokens", "auth", "key")} == {
        "num": 3, "tokens": 7, "auth": None, "key": "image"}
    plain = {"a": 1, "b": [1.5, "x", None, True], "c": {"d": "e"}}
    assert concealed_tree(plain) == plain
    assert not credentials_in(plain)


def test_values_of_the_environment_are_replaced_wherever_they_stand() -> None:
    conceal = Concealer({"data": {"options": {"password": "from-config"}}},
                        {"MY_TOKEN": SECRET, "HOME": "/home/me", "PWD": "/home/me/x", "SHORT_TOKEN": "abc"})
    assert conceal(f"cannot log in with {SECRET} or from-config in /home/me/x abc") == \
        f"cannot log in with {HIDDEN} or {HIDDEN} in /home/me/x abc"


def network(in_channels: int = 1, num_classes: int = 3, api_token: str = "") -> nn.Module:
    """A network whose options hold a token."""
    assert api_token == SECRET
    return nn.Sequential(nn.Flatten(), nn.Linear(36 * in_channels, num_classes))


def test_a_token_given_to_a_run_stands_in_no_file_that_others_can_read(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["swamp", "run", "x.yaml", "--set", f"model.options.api_token={SECRET}"])
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "from-the-environment")
    config = tiny(tmp_path, model__name="tests.unit.test_credentials:network", pruning__target=0.0,
                  particles__count=1, model__options={"api_token": SECRET})
    run(config)
    held = [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert held == [Path(RunDir(tmp_path, "tiny").config.location)]
    assert held[0].stat().st_mode & 0o077 == 0
    about = RunDir(tmp_path, "tiny").read_run() or {}
    assert about["attempts"][0]["argv"][-1] == f"model.options.api_token={HIDDEN}"
    ticket = load_ticket(Path(RunDir(tmp_path, "tiny").ticket(0.0).location))
    assert ticket.meta["model"]["options"] == {"api_token": HIDDEN}
    again = run(config)
    assert (again.rundir.read_run() or {})["attempts"][-1]["trained"] == 0


def test_a_config_without_credentials_can_be_read_by_a_group(tmp_path: Path) -> None:
    run(tiny(tmp_path, pruning__target=0.0, particles__count=1))
    assert Path(RunDir(tmp_path, "tiny").config.location).stat().st_mode & 0o040
