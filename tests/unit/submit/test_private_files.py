"""Keys, tokens and passwords never travel with a submission, and what stays behind is named."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from swamp_ray.errors import UserError
from swamp_ray.submit.submission import check_upload, read_submission
from swamp_ray.submit.submit import left_behind
from swamp_ray.submit.upload import CONFIG_NAME, select_files, stage

PEM = "-----BEGIN {kind}PRIVATE KEY-----\nMIIEvgIBADANBgkqhkiG9w0BAQEFAASC\n-----END {kind}PRIVATE KEY-----\n"

BY_NAME = [
    ".env", ".ENV", ".env.production", ".envrc", "Prod.Env", "app.env.local", "deploy/.env", ".netrc", "_NETRC",
    "id_rsa", "ID_RSA", "id_rsa.bak", "id_ed25519_work", "id_deploy", "keys/id_ecdsa", "server.pem", "SERVER.PEM",
    "tls.key", "store.p12", "wallet.jks", "putty.ppk", ".git-credentials", ".npmrc", ".pypirc", ".vault-token",
    ".htpasswd", "site.htpasswd", "terraform.tfstate", "terraform.tfstate.backup", "prod.tfvars", "kaggle.json",
    "credentials.json", "aws-credentials.csv", "service-account-prod.json", "client_secret_1.json", "secrets.yaml",
    "secrets.toml", "auth_token", "hf_token.txt", "wandb_api_key.txt", "api_key.txt", "kubeconfig", "prod.kubeconfig",
    ".ssh/config", ".SSH/known_hosts", ".aws/config", ".kube/config", ".docker/config.json", ".gnupg/trustdb.gpg",
    ".config/gcloud/x.db", ".config/gh/hosts.yml", ".ray/auth_token", ".huggingface/token", "wandb/settings",
    "huggingface/stored_tokens", "home/.azure/x.json", ".streamlit/secrets.toml", ".bash_history",
    ".netrc.bak", ".git-credentials~", "server.PEM.old", "prod.env.1~", ".passwd-s3fs", "rclone.conf", ".modal.toml",
    "vast_api_key", "rootkey.csv", "me_accessKeys.csv", "deploy_key", "secring.gpg", ".flaskenv", "token.json",
    "wandb_key.txt", ".age/keys.txt", ".mc/config.json", ".snowsql/config", ".config/hub",
    "cookies.txt", "office.ovpn", ".comet.config", "local.settings.json", "jupyter_server_config.json",
    ".jupyter/custom.json", ".dvc/config.local", "share/jupyter/runtime/kernel-1.json",
]

NOTEBOOKS = {
    "log in.ipynb": '{"cells": [{"outputs": [{"text": ["Token:\\nhf_' + "aB3" * 12 + '\\n"]}]}]}',
    "wandb.ipynb": '{"cells": [{"source": ["wandb.login(key=k)  # api_key = \\"' + "0a1b" * 10 + '\\""]}]}',
    "s3.ipynb": '{"cells": [{"source": ["os.environ[\\"AWS_SECRET_ACCESS_KEY\\"] = \\"' + "aB3/" * 10 + '\\""]}]}',
    "key.ipynb": '{"cells": [{"source": ["k = \'-----BEGIN RSA PRIVATE KEY-----\\\\nMIIEvg"]}]}',
    "after a picture.ipynb": '{"image/png": "' + "A" * (1 << 21) + '", "text": "sk-proj-' + "aB3x" * 10 + '"}',
}

BY_CONTENT = {
    "notes.txt": PEM.format(kind=""), "backup": PEM.format(kind="RSA "),
    "x.py": f"KEY = \'\'\'\n{PEM.format(kind='EC ')}\'\'\'",
    "deploy.cfg": "\n\n" + PEM.format(kind="OPENSSH "), "crlf.dat": PEM.format(kind="").replace("\n", "\r\n"),
    "chain.crt": "-----BEGIN CERTIFICATE-----\nMIIC\n-----END CERTIFICATE-----\n" + PEM.format(kind="ENCRYPTED "),
    "gpg.txt": "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nlQOY\n", "putty": "PuTTY-User-Key-File-3: ssh-ed25519\n",
    "robot.json": '{"type": "service_account", "private_key": "-----BEGIN PRIVATE KEY-----\\nMII"}',
    "login.json": '{"refresh_token": "1//x", "type": "authorized_user"}', "age.txt": "AGE-SECRET-KEY-1QQQQ\n",
    "aws.ini": "[default]\naws_secret_access_key = abc\n", "hub": "hf_" + "aB3" * 12,
    "slack.json": '{"t": "xoxb-' + "1" * 12 + '-abcdef"}', "npm.txt": "npm_" + "aB3x" * 9, "gpt": "sk-" + "aB3x" * 12,
    "run.sh": "export WANDB_API_KEY=" + "0a1b" * 10, "blob.txt": "AccountName=a;AccountKey=" + "aB3x" * 20 + "==;",
    "tunnel.conf": "[Interface]\nPrivateKey = " + "aB3x" * 10 + "a1b=\n", "maps.toml": 'k = "AIza' + "aB3x-" * 7 + '"',
    "git.txt": "ghp_" + "aB3x" * 9,
    "secret-of-kubernetes.yaml": "apiVersion: v1\nkind: Secret\n",
}

HARMLESS = [
    "train.py", "id_mapping.py", "id_utils/model.py", "tokenizer.json", "tokens.txt", "credentials.py", "env.py",
    "environment.yml", "keys.py", "key_points.csv", "pkg/secrets.py", "configs/run.yaml", "README.md", "monkey.txt",
    "settings.yaml", "data.csv", "model.config", "docker/Dockerfile", "api_key.py", "special_tokens_map.json",
]


def write(folder: Path, name: str, text: str = "x = 1") -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_file_that_may_hold_keys_stays_behind_and_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path, "train.py")
    write(tmp_path, name)
    found = select_files(tmp_path, {})
    assert set(found.sizes) == {"train.py"}
    [text] = left_behind(found)
    assert "may hold keys" in text
    assert name.partition("/")[0] in text


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_that_holds_a_token_stays_behind(tmp_path: Path, name: str) -> None:
    write(tmp_path, name, NOTEBOOKS[name])
    assert select_files(tmp_path, {}).private() == [(name, "it holds a key")]


def test_other_notebooks_come_along(tmp_path: Path) -> None:
    write(tmp_path, "plain.ipynb", '{"cells": [{"source": ["api_key = os.environ[\\"API_KEY\\"]\\n", "sk-learn"]}]}')
    write(tmp_path, "picture.ipynb", '{"image/png": "iVBORw0KGgo' + "aB3/" * 1000 + '"}')
    assert not select_files(tmp_path, {}).private()


def test_a_token_that_powershell_wrote_stays_behind(tmp_path: Path) -> None:
    (tmp_path / "out.txt").write_bytes(("t = hf_" + "aB3" * 12).encode("utf-16"))
    assert select_files(tmp_path, {}).private() == [("out.txt", "it holds a key")]


@pytest.mark.parametrize("name", BY_CONTENT)
def test_a_key_stays_behind_under_any_name(tmp_path: Path, name: str) -> None:
    write(tmp_path, "train.py")
    write(tmp_path, name, BY_CONTENT[name])
    found = select_files(tmp_path, {})
    assert set(found.sizes) == {"train.py"}
    assert any(name in text for text in left_behind(found))


def test_what_only_sounds_like_a_key_comes_along(tmp_path: Path) -> None:
    for name in HARMLESS:
        write(tmp_path, name)
    write(tmp_path, "check.py", "if text.startswith('-----BEGIN PRIVATE KEY-----'): refuse('hf_' + 'x' * 40)")
    found = select_files(tmp_path, {})
    assert set(found.sizes) == {*HARMLESS, "check.py"}
    assert not left_behind(found)


def test_keys_that_git_tracks_stay_behind_as_well(tmp_path: Path) -> None:
    for name in ("train.py", "conf/prod.env", "deploy_rsa"):
        write(tmp_path, name, "x = 1")
    write(tmp_path, "notes.txt", PEM.format(kind=""))
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "add", "-f", "."], check=True)
    assert set(select_files(tmp_path, {}).sizes) == {"train.py"}


def test_links_that_lead_out_or_to_a_key_stay_behind(tmp_path: Path) -> None:
    write(tmp_path, "outside.txt")
    write(tmp_path, "outside/model.py")
    code = tmp_path / "code"
    for name in ("train.py", ".env", ".ssh/config", "sub/other.py"):
        write(code, name)
    links = {"out.txt": tmp_path / "outside.txt", "out": tmp_path / "outside", "up.txt": Path("../outside.txt"),
             "nowhere": Path("../nothing"), "settings.txt": Path(".env"), "hosts.txt": Path(".ssh/config"),
             "chain.txt": Path("settings.txt"), "sub/fine.py": Path("other.py")}
    for name, target in links.items():
        (code / name).symlink_to(target)
    found = select_files(code, {})
    assert set(found.sizes) == {"train.py", "sub/other.py", "sub/fine.py"}
    said = " ".join(left_behind(found))
    assert all(name in said for name in links if name != "sub/fine.py")


def test_a_project_that_is_reached_through_a_link_is_no_other_project(tmp_path: Path) -> None:
    write(tmp_path, "real/train.py")
    (tmp_path / "real" / "same.py").symlink_to("train.py")
    (tmp_path / "link").symlink_to("real")
    assert set(select_files(tmp_path / "link", {}).sizes) == {"train.py", "same.py"}


def test_many_are_counted(tmp_path: Path) -> None:
    for number in range(30):
        write(tmp_path, f"{number:02d}.key")
    [text] = left_behind(select_files(tmp_path, {}))
    assert "19.key and 10 more" in text


def test_code_that_holds_a_key_and_is_needed_is_refused_before_the_upload(tmp_path: Path) -> None:
    write(tmp_path, "mine.py", f"KEY = \'\'\'\n{PEM.format(kind='')}\'\'\'\ndef net(): ...")
    write(tmp_path, "run.yaml", "model: {name: 'mine:net'}\nstorage: /mnt/s\nname: q")
    submission = read_submission(tmp_path / "run.yaml")
    with pytest.raises(UserError, match=r"mine.py is needed, but is left out of the upload \(it holds a key\)"):
        check_upload(submission, select_files(tmp_path, {}))


def test_the_config_that_is_uploaded_is_for_the_owner_alone(tmp_path: Path) -> None:
    write(tmp_path / "code", "a.py")
    stage(select_files(tmp_path / "code", {}), "the config", tmp_path / "staged")
    assert os.stat(tmp_path / "staged" / CONFIG_NAME).st_mode & 0o077 == 0
