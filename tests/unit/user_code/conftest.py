from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write modules into a folder of the import path; what was imported of them is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    known = set(sys.modules)

    def write(files: dict[str, str], folder: str = "project", *, on_path: bool = True) -> Path:
        root = tmp_path / folder
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        if on_path and str(root) not in sys.path:
            sys.path.insert(0, str(root))
        return root

    yield write
    for name in set(sys.modules) - known:
        if name.startswith("uc_"):
            del sys.modules[name]
