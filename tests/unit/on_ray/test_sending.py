"""Datasets that hold what cannot leave a process: named with advice before Ray starts."""

from __future__ import annotations

import socket
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from swamp_ray.data.samples import Data, LazySamples
from swamp_ray.errors import UserError
from swamp_ray.on_ray.sending import refuse_unsendable, sendable
from swamp_ray.run.prepare import prepare
from tests.helpers import tiny


class Holds(Dataset[Any]):
    def __init__(self, held: Any) -> None:
        self.values, self.held = np.zeros(3), held

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return self.values[index], 0


class Nested:
    def __init__(self, held: Any) -> None:
        self.inner = [{"held": held}]


class Lazily(Holds):
    """Leaves out what it can open again."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "held": None}


class Refuses:
    def __reduce__(self) -> Any:
        raise RuntimeError("not this one\nfor sure")


def opened() -> Any:
    return Path(__file__).open("rb")


def data_of(dataset: Any, **fields: Any) -> Data:
    samples = LazySamples(dataset, np.arange(3), **fields)
    return Data(samples, samples, samples, 2, (1,), (), "", {})


@pytest.mark.parametrize(("hold", "kind"), [
    (opened, "BufferedReader"), (threading.Lock, "lock"), (socket.socket, "socket"),
    (lambda: Nested(threading.RLock()), "Nested"), (lambda: (row for row in range(3)), "generator"),
    (Refuses, "not this one"), (threading.Event, "Event"),
])
def test_what_cannot_be_sent_is_named(hold: Callable[[], Any], kind: str) -> None:
    held = hold()
    text = rf"(?s)^my:data: the dataset of train, a Holds, .*'held' is a .*{kind}"
    with pytest.raises(UserError, match=text) as caught:
        refuse_unsendable(data_of(Holds(held)), "my:data")
    assert "__getstate__" in str(caught.value)
    assert "\n" not in str(caught.value)
    getattr(held, "close", lambda: None)()


def test_what_can_be_sent_passes() -> None:
    fields: dict[str, Any] = {"plain": Holds(4), "train_transform": lambda sample: sample}
    refuse_unsendable(data_of(Lazily(threading.Lock()), **fields), "my:data")


@pytest.mark.parametrize(("fields", "text"), [
    ({"plain": Holds(threading.Lock())}, "the unchanged dataset of train"),
    ({"train_transform": Refuses()}, "the transform of train, a Refuses")])
def test_every_part_that_travels_is_looked_at(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError, match=text):
        refuse_unsendable(data_of(Holds(3), **fields), "my:data")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "own_files.py").write_text(textwrap.dedent("""
        import torch
        from torch.utils.data import Dataset

        class Opened(Dataset):
            def __init__(self):
                self.file = open(__file__, "rb")
            def __len__(self):
                return 48
            def __getitem__(self, index):
                return torch.rand(1, 6, 6), index % 3

        def made():
            return {"train": Opened(), "test": Opened(), "num_classes": 3}
    """))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_files:made"
    sys.modules.pop("own_files", None)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_it_is_found_out_before_a_run_on_ray(tmp_path: Path, own: str) -> None:
    given: dict[str, Any] = {"data__name": own, "data__version": "1", "data__options": {}}
    with pytest.raises(UserError, match="'file' is a BufferedReader"):
        sendable(prepare(tiny(tmp_path, execution__executor="ray", data__loader_workers=0, **given)))
    assert "holds an open file" not in "".join(prepare(tiny(tmp_path, data__loader_workers=0, **given)).data.warnings)
    assert "holds an open file (file)" in "".join(prepare(tiny(tmp_path, **given)).data.warnings)
