"""The user's sources as a run had them: kept in its folder for people to read, and compared with those of today.

``sources/manifest.json`` has a digest of each module and of each function and class in it; beside it lie the modules
as text, credentials replaced. Nothing of it is ever imported.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swamp_ray.config.schema import SwampConfig
from swamp_ray.credentials import HIDDEN, Concealer, names_credential
from swamp_ray.errors import SwampError
from swamp_ray.storage.json_lines import dump_json
from swamp_ray.storage.place import is_key
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.user_code.importing import is_import_path
from swamp_ray.user_code.project import Part, explore

MANIFEST = "sources/manifest.json"
EARLIER = "sources/earlier"
"""Holds a folder for each set of modules that a later attempt has overwritten, named by the digest of their texts."""
LARGEST_BYTES = 2**20
"""A larger module is not copied; its digest stands in the manifest all the same."""
_ASSIGNED = re.compile(r"""(\b[A-Za-z_]\w*)(["']?\s*(?::\s*[\w.\[\]| ]+)?\s*[=:]\s*)(["'])([^"'\n]+)\3""")


def manifest_of(config: SwampConfig) -> dict[str, Any]:
    """What a run's user code consists of now; no modules where it has none.

    Raises:
        UserError: A module's source cannot be read.
    """
    paths = _deciding(config)
    project = explore(path.partition(":")[0] for path in paths.values())
    modules = {name: {"digest": part.text.digest, "definitions": _definitions(_bytes(part))}
               for name, part in sorted(project.parts.items())}
    return {"paths": paths, "modules": modules, "packages": dict(sorted(project.packages.items()))}


def keep_sources(rundir: RunDir, config: SwampConfig) -> None:
    """Write the manifest and the modules into the run's folder; a run without user code gets neither."""
    paths = _paths(config)
    if not paths:
        return
    manifest = manifest_of(config)
    conceal = Concealer(config.model_dump(mode="json"))
    parts = explore(path.partition(":")[0] for path in paths.values()).parts
    texts: dict[str, bytes] = {}
    for name, part in parts.items():
        data = _bytes(part)
        if part.location.file.suffix == ".py" and len(data) <= LARGEST_BYTES:
            texts[name] = _without_secrets(conceal(data.decode(errors="replace"))).encode()
    _put_by_earlier(rundir, texts)
    for name, text in texts.items():
        rundir.spot(f"sources/{name}.py").write(text)
    first = parts.get(next(iter(paths.values())).partition(":")[0])
    if first is not None:
        manifest["project"] = _commit_of(first.location.file.parent)
    rundir.spot(MANIFEST).write(dump_json(manifest, indent=2) + b"\n")


def _put_by_earlier(rundir: RunDir, texts: Mapping[str, bytes]) -> None:
    """Copy what an attempt before has kept to a folder of its own, if another text is to overwrite any of it."""
    manifest = rundir.spot(MANIFEST).read()
    if manifest is None:
        return
    kept: dict[str, bytes] = {}
    for name in sorted({*texts, *_modules_in(manifest)}):
        text = rundir.spot(f"sources/{name}.py").read()
        if text is not None:
            kept[name] = text
    if all(texts.get(name, text) == text for name, text in kept.items()):
        return
    together = hashlib.sha256()
    for name, text in kept.items():
        together.update(f"{name} {hashlib.sha256(text).hexdigest()}\n".encode())
    folder = f"{EARLIER}/{together.hexdigest()[:12]}"
    for name, text in kept.items():
        rundir.spot(f"{folder}/{name}.py").write(text)
    rundir.spot(f"{folder}/manifest.json").write(manifest)


def _modules_in(manifest: bytes) -> list[str]:
    try:
        return [name for name in json.loads(manifest)["modules"] if is_key(f"{name}.py")]
    except (ValueError, TypeError, KeyError):
        return []


def code_changes(rundir: RunDir, config: SwampConfig,
                 manifests: dict[tuple[Any, ...], dict[str, Any]] | None = None) -> list[str]:
    """How today's user code differs from that of a run: a line for each module, function and package.

    Comments, docstrings and layout make no difference. Empty, too, for a run of which nothing was kept.

    Args:
        rundir: The run.
        config: Its config.
        manifests: What earlier calls have found of today's code; given to several calls, equal code is read once.

    Raises:
        UserError: A module's source cannot be read.
    """
    data = rundir.spot(MANIFEST).read()
    try:
        then = json.loads(data) if data else {}
        old: Mapping[str, Any] = then.get("modules", {})
    except (ValueError, AttributeError):
        return []
    if not old:
        return []
    manifests = {} if manifests is None else manifests
    key = tuple(sorted(_deciding(config).items()))
    if key not in manifests:
        manifests[key] = manifest_of(config)
    now = manifests[key]
    lines = []
    for name in sorted(old.keys() | now["modules"].keys()):
        lines += _module_changes(name, old.get(name), now["modules"].get(name))
    packages: Mapping[str, str] = then.get("packages", {})
    for name in sorted(packages.keys() | now["packages"].keys()):
        one = packages.get(name, "none")
        other = now["packages"].get(name, "none")
        if one != other:
            lines.append(f"package {name}: {one} -> {other}")
    return lines


def changes_in_words(rundir: RunDir, config: SwampConfig) -> str:
    """A sentence that says that the user's code has changed since a run; empty where it has not, or if nobody knows."""
    try:
        found = code_changes(rundir, config)
    except SwampError as error:
        return f"The code of the run {rundir.name} cannot be compared with that of today: {error}"
    if not found:
        return ""
    return (f"Your code has changed since the run {rundir.name} was trained, and the changed code is used here: "
            f"{'; '.join(found)}. A copy of the code that it was trained with is in {rundir.spot('sources')}.")


def _module_changes(name: str, old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> list[str]:
    if old is None or new is None:
        return [f"module {name}: {'not used before' if old is None else 'not used any more'}"]
    if old["digest"] == new["digest"]:
        return []
    before = old["definitions"]
    after = new["definitions"]
    differing = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    # A class differs wherever one of its methods does: the method says more.
    named = [key for key in differing if not any(other.startswith(f"{key}.") for other in differing)]
    return [f"module {name}: {', '.join(named) or 'its statements'}"]


def _definitions(data: bytes) -> dict[str, str]:
    """Digests of a module's functions, classes and methods, without docstrings; of its other statements together."""
    try:
        tree = ast.parse(data)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found: dict[str, str] = {}
    others: list[str] = []
    for node in _without_docstrings(tree).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = _digest(ast.dump(node))
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                    found[f"{node.name}.{inner.name}"] = _digest(ast.dump(inner))
        else:
            others.append(ast.dump(node))
    return {**found, "statements outside of functions": _digest("\n".join(others))}


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(
                    first.value.value, str):
                node.body = node.body[1:]
    return tree


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _bytes(part: Part) -> bytes:
    try:
        return part.location.file.read_bytes()
    except OSError:
        return b""


def _paths(config: SwampConfig) -> dict[str, str]:
    named = {"model.name": config.model.name, "task.name": config.task.name, "data.name": config.data.name,
             "pruning.score": config.pruning.score}
    return {option: path for option, path in named.items() if is_import_path(path)}


def _deciding(config: SwampConfig) -> dict[str, str]:
    """The code that stands for itself in names: of data the samples do, of other code perhaps a declared version."""
    versions = {"model.name": config.model.version, "task.name": config.task.version,
                "pruning.score": config.pruning.version}
    return {option: path for option, path in _paths(config).items() if versions.get(option, "samples") is None}


def _without_secrets(text: str) -> str:
    """Texts that are assigned to names such as API_KEY are replaced."""
    def hidden(found: re.Match[str]) -> str:
        name, sign, quote, _ = found.groups()
        return f"{name}{sign}{quote}{HIDDEN}{quote}" if names_credential(name, broadly=True) else found[0]

    return _ASSIGNED.sub(hidden, text)


def _commit_of(folder: Path) -> dict[str, Any] | None:
    """Commit of the user's project, and whether its tracked files differ from that; None outside of git."""
    def asked(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=5)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = asked("rev-parse", "HEAD")
    if not commit:
        return None
    return {"commit": commit, "dirty": bool(asked("status", "--porcelain", "--untracked-files=no"))}
