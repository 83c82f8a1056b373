"""Files that hold keys, passwords or tokens: they never leave the machine, whatever git thinks of them."""

from __future__ import annotations

import codecs
import os
import re
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

PRIVATE = "it may hold keys"
HOLDS_KEY = "it holds a key"
OUTSIDE = "a link that leads out of the folder"
NAMED = (PRIVATE, HOLDS_KEY, OUTSIDE)
"""Reasons that the user is told of, file by file."""

WHOLE_BYTES = 1 << 20
"""Larger files are looked at from their beginning to here."""
WHOLE_NOTEBOOK_BYTES = 1 << 26
"""The same for notebooks, in which a picture stands before the next cell."""

_FILES = (
    # environment and log-in files
    ".env*", "*.env", "*.env.*", ".netrc", "_netrc", ".git-credentials", ".npmrc", ".yarnrc*", ".pypirc", "pip.conf",
    ".pgpass", ".my.cnf", ".htpasswd", "*.htpasswd", ".vault-token", ".vault_pass*", ".dockercfg", ".dockerconfigjson",
    ".boto", ".s3cfg", ".databrickscfg", ".rhosts", ".renviron", ".*_history", "kaggle.json", ".terraformrc",
    "terraform.rc", "*.tfrc.json", "*.tfstate", "*.tfstate.*", "*.tfvars", "*.tfvars.json", "kubeconfig*",
    "*.kubeconfig", "*.keytab", "krb5cc_*", ".flaskenv", ".condarc", ".mylogin.cnf", ".passwd-s3fs*", "*rclone.conf",
    ".modal.toml", "ngrok.yml", "nuget.config", "auth.json", "vault_pass*", "rootkey.csv", "*accesskeys.csv",
    "cookies.txt", "cookies.sqlite*", "*.ovpn", "*.gpg", ".comet.config", "comet.config", "local.settings.json",
    "jupyter_server_config.json", "jupyter_notebook_config.json",
    # keys
    "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", "id_xmss*", "*_rsa", "*_ed25519", "*_ecdsa", "*.pem", "*.key",
    "*.p12", "*.pfx", "*.pkcs12", "*.jks", "*.keystore", "*.ppk", "*.kdbx", "*.der", "*.p8", "secring.*",
    "deploy_key*", "*_api_key", "*_api_keys", "wandb*_key*",
    # tokens
    "token", ".token", "*.token", "token.json", "token.pickle", "auth_token", "*_token", "hf_token*",
    ".wandb_api_key", "api_key*", "apikey*",
)
_DATA = (".json", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".csv", ".txt", ".xml", ".properties", ".db", "")
_STEMS = ("credentials", "credential", "*-credentials", "*_credentials", ".credentials", "secret", "secrets",
          "*-secret", "*-secrets", "*_secrets", ".secrets", "service-account*", "service_account*", "serviceaccount*",
          "client_secret*", "application_default_credentials", "*adminsdk*", "gcp-key*", "gcp_key*")
_NOTEBOOK = ".ipynb"
_CODE = (".py", ".pyi", ".ipynb", ".md", ".rst")
_FOLDERS = (".ssh", ".aws", ".kube", ".docker", ".gnupg", ".azure", ".gcloud", ".oci", ".ray", ".huggingface",
            ".env", ".envs", ".kaggle", ".terraform", ".terraform.d", ".password-store", ".secrets", ".databricks",
            ".snowflake", ".snowsql", ".age", ".mc", ".runpod", ".ngrok2", ".lambda_cloud", ".jupyter",
            ".git-credential-cache")
_INNER_FOLDERS = (".config/gcloud", ".config/gh", ".config/hub", ".config/wandb", ".config/rclone", ".config/sops",
                  ".config/helm", ".config/huggingface", ".config/containers", ".config/op", ".config/pip",
                  ".config/vastai", ".config/ngrok", "share/jupyter/runtime")
_INNER_FILES = ("wandb/settings", "huggingface/token", "huggingface/stored_tokens", ".cargo/credentials*",
                ".gem/credentials", ".m2/settings.xml", ".streamlit/secrets.toml", ".git/config", ".config/hub",
                ".dvc/config.local")
_COPY = re.compile(r"(?:~|\.(?:bak|backup|old|orig|save|copy|swp|\d+))+$")
"""How editors and people mark a copy of a file."""

_KEY = re.compile(rb"^\s*-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----[ \t]*\r?$"
                  rb"|\"private_key\"\s*:\s*\"-----BEGIN|^PuTTY-User-Key-File-\d|^AGE-SECRET-KEY-1"
                  rb"|^openssh-key-v1\0", re.MULTILINE)
_TOKENS = re.compile(rb"(?i:aws_secret_access_key|aws_session_token)\s*[=:]\s*\S"
                     rb"|\"type\"\s*:\s*\"(?:service_account|authorized_user|external_account)\""
                     rb"|^kind:\s*[\"']?Secret[\"']?\s*$"
                     rb"|\bhf_[A-Za-z0-9]{30,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|\bglpat-[\w-]{20,}"
                     rb"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|://[^/\s:@]+:[^/\s@]+@api\.wandb\.ai"
                     rb"|\bsk-(?:proj|ant|svcacct|or)-[\w-]{20,}|\bsk-[A-Za-z0-9]{32,}|\bxox[abprs]-\d[\w-]{10,}"
                     rb"|\bAIza[\w-]{35}|\bnpm_[A-Za-z0-9]{36}|\bpypi-AgE[\w-]{30,}"
                     rb"|\bAccountKey=[A-Za-z0-9+/=]{40,}|^\s*PrivateKey\s*=\s*[A-Za-z0-9+/=]{40,}"
                     rb"|\beyJ[\w-]{10,}\.[\w-]{5,}\.[\w-]{5,}"
                     rb"|(?i:api_?key)[\\\"'\]\s]*[=:][\\\"'\s]*(?=[\w-]*\d)[\w-]{20,}"
                     rb"|(?i:aws_secret_access_key)[\\\"'\]\s]*[=:][\\\"'\s]*[A-Za-z0-9+/]{30,}", re.MULTILINE)
_KEY_IN_NOTEBOOK = re.compile(rb"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----\s*\n")
_SPELLED_SPACE = re.compile(rb"\\+[nrt]")


def why_private(path: str, is_folder: bool) -> str | None:
    """Why a file or folder is private by its name, None if it is not.

    Args:
        path: Relative to the project, with slashes. Upper and lower case are the same.
        is_folder: Whether it is a folder.
    """
    lower = path.lower()
    name = _COPY.sub("", lower.rpartition("/")[2])
    if is_folder:
        return PRIVATE if name in _FOLDERS or any(_ends(lower, inner) for inner in _INNER_FOLDERS) else None
    stem, ending = os.path.splitext(name)
    if any(fnmatchcase(name, pattern) for pattern in _FILES) and ending not in _CODE:
        return PRIVATE
    # Code may be called id_mapping.py; a key has no ending, or one that says nothing.
    if fnmatchcase(name, "id_*") and ending in ("", ".pub", ".bak", ".old"):
        return PRIVATE
    if ending in _DATA and any(fnmatchcase(stem or name, pattern) for pattern in _STEMS):
        return PRIVATE
    return PRIVATE if any(_ends(lower, inner) for inner in _INNER_FILES) else None


def _ends(path: str, inner: str) -> bool:
    parts = PurePosixPath(path).parts
    pattern = PurePosixPath(inner).parts
    return len(parts) >= len(pattern) and all(
        fnmatchcase(part, wanted) for part, wanted in zip(parts[-len(pattern):], pattern, strict=True))


def why_content_private(file: Path) -> str | None:
    """Why a file is private by what is in it, None if it is not. A file that cannot be read is not."""
    ending = file.suffix.lower()
    is_notebook = ending == _NOTEBOOK
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as opened:
            beginning = opened.read(WHOLE_NOTEBOOK_BYTES if is_notebook else WHOLE_BYTES)
    except OSError:
        return None
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        # What PowerShell writes.
        beginning = beginning.decode("utf-16", "replace").encode(errors="replace")
    if is_notebook:
        beginning = _SPELLED_SPACE.sub(b"\n", beginning)
    if _KEY.search(beginning) or (is_notebook and _KEY_IN_NOTEBOOK.search(beginning)):
        return HOLDS_KEY
    # In code, a text that looks like a token is nearly always an example; in a notebook it is often an output.
    is_code = ending in _CODE and not is_notebook
    return HOLDS_KEY if not is_code and _TOKENS.search(beginning) else None


def link_reason(path: Path, folder: Path) -> str | None:
    """Why a link is private: it leads out of a folder, or to something private in it.

    Args:
        path: The link.
        folder: The project's folder.
    """
    real = Path(os.path.realpath(path))
    top = Path(os.path.realpath(folder))
    if not real.is_relative_to(top):
        return OUTSIDE
    inside = real.relative_to(top)
    folders = [why_private(str(parent), True) for parent in inside.parents if str(parent) != "."]
    return next(filter(None, folders), None) or why_private(str(inside), real.is_dir())
