"""What a ticket holds is what its network's state_dict() holds, whatever the network keeps besides weights."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from swamp_ray import SwampTrainer
from swamp_ray.commands.evaluate import evaluate_runs
from swamp_ray.config.schema import SwampConfig
from swamp_ray.errors import UserError
from swamp_ray.run.prepare import prepare
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.tickets import load_ticket, ticket_bytes
from swamp_ray.training.models import build_model
from tests.helpers import with_sections

MODULE = "their_contents"
THEIRS = '''
    import numpy as np
    import torch
    from torch import nn

    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 8)
            self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(torch.relu(self.norm(self.second(torch.relu(self.first(x))))))

    class Transient(Base):
        """Constants that state_dict() leaves out, at the top and below."""
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.linspace(0.5, 1.5, 4), persistent=False)
            self.first.register_buffer("ids", torch.arange(3), persistent=False)

        def forward(self, x):
            return super().forward(x * self.scale)

    class SharedBuffer(Base):
        """One buffer under two names."""
        def __init__(self):
            super().__init__()
            shared = torch.linspace(0.5, 1.5, 4)
            self.register_buffer("one", shared)
            self.first.register_buffer("other", shared)

        def forward(self, x):
            return super().forward(x * self.one * self.first.other)

    class TiedWeights(Base):
        def __init__(self):
            super().__init__()
            self.third = nn.Linear(8, 8)
            self.third.weight = self.second.weight

        def forward(self, x):
            return self.head(self.third(torch.relu(self.second(torch.relu(self.first(x))))))

    class ExtraTensor(Base):
        def get_extra_state(self):
            return torch.tensor([1, 2, 3])
        def set_extra_state(self, state):
            self.given = state

    class ExtraPlain(Base):
        def get_extra_state(self):
            return {"levels": [1, 2.5, "x"], "on": True}
        def set_extra_state(self, state):
            self.given = state

    class ExtraObject(Base):
        def get_extra_state(self):
            return {1, 2}
        def set_extra_state(self, state):
            self.given = state

    class Computed(Base):
        """state_dict() holds something that is made of the weights."""
        def __init__(self):
            super().__init__()
            self.register_state_dict_post_hook(Computed.add)
            self.register_load_state_dict_pre_hook(Computed.take)

        def add(self, state, prefix, _):
            state[prefix + "norms"] = self.second.weight.detach().norm(dim=1)
        def take(self, state, prefix, *_):
            state.pop(prefix + "norms", None)

    class Halves(Base):
        """Integers, flags, a half and a double among the buffers."""
        def __init__(self):
            super().__init__()
            self.register_buffer("flags", torch.tensor([True, False]))
            self.register_buffer("count", torch.tensor(3, dtype=torch.int16))
            self.register_buffer("wide", torch.tensor([0.1], dtype=torch.float64))
            self.register_buffer("narrow", torch.tensor([0.5], dtype=torch.float16))

    COUNTS = {"steps": 0}

    class Moving(Base):
        def forward(self, x):
            COUNTS["steps"] += self.training
            return super().forward(x)
        def get_extra_state(self):
            return dict(COUNTS)
        def set_extra_state(self, state):
            COUNTS.update(state)

    class Leaving(Base):
        def state_dict(self, *args, **kwargs):
            state = super().state_dict(*args, **kwargs)
            return {name: value for name, value in state.items() if "second" not in name}

    class Failing(Base):
        def state_dict(self, *args, **kwargs):
            raise ValueError("not mine")

    def vectors(num=60):
        draw = np.random.RandomState(0)
        def part(size):
            y = np.arange(size) % 2
            return (draw.randn(size, 4) + 2 * y[:, None]).astype(np.float32), y
        return {"train": part(num), "validation": part(12), "test": part(21), "class_names": ["low", "high"]}
'''
BASE: dict[str, Any] = {
    "data": {"name": f"{MODULE}:vectors"}, "model": {"name": f"{MODULE}:Base"},
    "training": {"batch_size": 20, "lr": 0.1, "schedule": {"warmup": 0}}, "dense": {"length": "1 steps"},
    "round": {"length": 2}, "particles": {"count": 1}, "averaging": {"within": "none"},
    "pruning": {"target": 0.5, "rate": 0.5}, "execution": {"executor": "inline", "device": "cpu"},
}


@pytest.fixture(autouse=True)
def _importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / f"{MODULE}.py").write_text(textwrap.dedent(THEIRS))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop(MODULE, None)


def configured(storage: Path, kind: str, **sections: Any) -> SwampConfig:
    config = with_sections(BASE, model={"name": f"{MODULE}:{kind}"}, **sections)
    return config.model_copy(update={"name": "run", "storage": str(storage / "results")})


def network(kind: str) -> nn.Module:
    return getattr(__import__(MODULE), kind)()


def accuracy(model: nn.Module) -> float:
    inputs, labels = __import__(MODULE).vectors()["test"]
    with torch.no_grad():
        found = model.eval()(torch.tensor(inputs)).argmax(1)
    return float((found == torch.tensor(labels)).double().mean())


@pytest.mark.parametrize("kind", ["Transient", "SharedBuffer", "TiedWeights", "ExtraTensor", "ExtraPlain",
                                  "ExtraObject", "Computed", "Halves"])
def test_a_ticket_holds_what_state_dict_holds_and_serves_everywhere(tmp_path: Path, kind: str) -> None:
    result = SwampTrainer(configured(tmp_path, kind), quiet=True).fit()
    ticket = result.ticket()
    model = ticket.load_into(network(kind))
    held = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    assert ticket.state.keys() == held.keys()
    for name, value in held.items():
        assert value.dtype == ticket.state[name].dtype, name
        assert torch.equal(value, ticket.state[name]), name
    assert accuracy(model) == pytest.approx(result.rounds[-1].average["test"]["accuracy"])
    [*_, level] = evaluate_runs([RunDir(tmp_path / "results", "run")])[0]
    assert level.members[0]["test"]["accuracy"] == pytest.approx(accuracy(model))
    path = str(result.ticket_paths[-1])
    again = prepare(configured(tmp_path, kind, start_from={"path": path}, pruning={"target": 0.75}))
    assert (again.initial.parameters["first.weight"] == ticket.state["first.weight"].numpy()).all()
    pruned: Any = ticket.to_torch_prune(network(kind))
    assert torch.equal(pruned.second.weight_mask.bool(), ticket.masks["second.weight"])


def test_extra_state_of_plain_values_is_given_back(tmp_path: Path) -> None:
    result = SwampTrainer(configured(tmp_path, "ExtraPlain"), quiet=True).fit()
    model: Any = result.ticket().load_into(network("ExtraPlain"))
    assert model.given == {"levels": [1, 2.5, "x"], "on": True}


@pytest.mark.parametrize(("kind", "words"), [
    ("Moving", "training changes the extra state '_extra_state'"),
    ("Leaving", r"state_dict\(\) of the network leaves out the parameter 'second\.weight'"),
    ("Failing", r"state_dict\(\) of the network fails: ValueError: not mine"),
])
def test_what_a_ticket_could_not_hold_is_refused_by_name_before_any_work(
    tmp_path: Path, kind: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        prepare(configured(tmp_path, kind))


def test_tickets_of_older_versions_that_hold_more_load_too(tmp_path: Path) -> None:
    model: Any = network("Transient")
    state = {**model.state_dict(), "scale": model.scale * 3, "first.ids": torch.arange(3)}
    data = ticket_bytes(state, {"first.weight": torch.ones(8, 4, dtype=torch.bool)}, {})
    (tmp_path / "old").write_bytes(data)
    loaded: Any = load_ticket(tmp_path / "old").load_into(network("Transient"))
    assert torch.equal(loaded.scale, torch.linspace(0.5, 1.5, 4)), "as the network says it"
    prepare(configured(tmp_path, "Transient", start_from={"path": str(tmp_path / "old")}))


def test_an_old_ticket_of_a_network_with_extra_state_loads(tmp_path: Path) -> None:
    state = {name: value for name, value in network("ExtraTensor").state_dict().items() if name != "_extra_state"}
    (tmp_path / "old").write_bytes(ticket_bytes(state, {}, {}))
    load_ticket(tmp_path / "old").load_into(network("ExtraTensor"))


def test_a_ticket_says_how_it_is_used(tmp_path: Path) -> None:
    config = configured(tmp_path, "Base")
    ticket = SwampTrainer(config, quiet=True).fit().ticket()
    assert (ticket.model_name, ticket.model_options) == (f"{MODULE}:Base", {})
    assert (ticket.input_shape, ticket.mean, ticket.std) == ((4,), None, None)
    assert (ticket.num_classes, ticket.class_names, ticket.primary) == (2, ("low", "high"), "accuracy")
    assert f"model='{MODULE}:Base', input_shape=(4,), num_classes=2, primary='accuracy'" in repr(ticket)
    with pytest.raises(UserError, match="names no normalisation of images"):
        ticket.normalise(torch.zeros(1, 2, 2, 3, dtype=torch.uint8))
    noted = json.dumps(ticket.meta)
    assert not any(word in noted for word in (str(tmp_path), '"run"', "inline"))


def test_checkpoints_in_which_tied_weights_differ_are_refused(tmp_path: Path) -> None:
    state = network("TiedWeights").state_dict()
    state["third.weight"] = state["third.weight"] + 1
    torch.save(state, tmp_path / "untied.pt")
    with pytest.raises(UserError, match=r"third\.weight: the same tensor as second\.weight in the model"):
        prepare(configured(tmp_path, "TiedWeights", start_from={"path": str(tmp_path / "untied.pt")}))


def test_images_are_normalised_by_a_ticket_as_the_run_did(tmp_path: Path) -> None:
    sections = {"data": {"name": "synthetic", "options": {"num_train": 60, "num_test": 10, "num_classes": 3,
                                                          "shape": [3, 8, 8]}}, "model": {"name": "digits_cnn"}}
    config = with_sections({**BASE, "data": {}, "model": {}}, **sections).model_copy(
        update={"name": "run", "storage": str(tmp_path / "results")})
    result = SwampTrainer(config, quiet=True).fit()
    ticket = result.ticket()
    test: Any = prepare(config).data.test
    raw, labels = test.arrays
    model = ticket.load_into(build_model(config.model, num_classes=ticket.num_classes,
                                         input_shape=ticket.input_shape, seed=0)).eval()
    with torch.no_grad():
        found = model(ticket.normalise(raw)).argmax(1)
    expected = result.rounds[-1].average["test"]["accuracy"]
    assert float((found == torch.tensor(labels)).double().mean()) == pytest.approx(expected)
    for wrong in (raw.astype("float32"), raw[0], raw[..., :1]):
        with pytest.raises(UserError, match=r"images must be uint8 \[B, H, W, 3\]"):
            ticket.normalise(wrong)
