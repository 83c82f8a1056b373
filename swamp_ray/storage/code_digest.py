"""What stands for user code in a name: a digest of what it does, and the packages that it uses.

Digested is the user's module and every module that it leads to by import statements, unless an installed distribution
or Python itself brings it. docs/identity.md says what is seen and what is not; :mod:`swamp_ray.user_code` finds it.
"""

from __future__ import annotations

import importlib.metadata

from swamp_ray.errors import UserError
from swamp_ray.storage.code_digest_v1 import digest_sources_v1, modules_v1
from swamp_ray.user_code.finding import find, is_standard, release_of
from swamp_ray.user_code.loading import taken
from swamp_ray.user_code.project import explore


def digest_sources(import_path: str) -> dict[str, str]:
    """What stands for the code of ``"package.module:attribute"``.

    In a process that has imported it for a run, this is the code as it was imported then.

    Returns:
        ``{"source": 64 hex digits}``; with ``"packages": "name==version,..."`` where the code imports any; or, for an
        installed package, with ``"distribution": "name==version"``.

    Raises:
        UserError: If the path is malformed or the module has no source file.
    """
    name = _module_name(import_path)
    found = find(name)
    if found is not None and (release := release_of(found)) is not None:
        return {"source": found.read().digest, "distribution": release}
    if found is not None and is_standard(found):
        return {"source": found.read().digest}
    project = taken(name)
    if project is None:
        project = explore([name])
    if name not in project.parts:
        raise UserError(f"no source file was found for the module {name!r}", where=import_path,
                        do="Put it into a file on the import path (PYTHONPATH or the current folder), or declare a "
                           "version for it.")
    return project.digest()


def former_digest(import_path: str) -> dict[str, str] | None:
    """What stood for the code in format 1; None where it did not see all of the user's modules that are seen now.

    Raises:
        UserError: As :func:`digest_sources`.
    """
    name = _module_name(import_path)
    found = find(name)
    if found is None or is_standard(found) or release_of(found) is not None:
        return digest_sources_v1(import_path)
    project = taken(name) or explore([name])
    return digest_sources_v1(import_path) if project.parts.keys() <= modules_v1(import_path) else None


def package_version(name: str) -> str:
    """``"name==version"`` of an installed distribution, for what is computed with it; ``"name"`` if there is none."""
    try:
        return f"{name.lower()}=={importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return name.lower()


def _module_name(import_path: str) -> str:
    module, colon, attribute = import_path.partition(":")
    words = module.split(".") + attribute.split(".")
    if not colon or not all(word.isidentifier() for word in words):
        raise UserError("an import path must have the form package.module:attribute", got=import_path,
                        do="For example my_project.models:make_model.")
    return module
