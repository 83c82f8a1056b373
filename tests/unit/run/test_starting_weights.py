"""Checkpoints to start from: what is taken, left out by name, and kept pruned; and what of a network is prunable."""

from __future__ import annotations

import argparse
import glob
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from swamp_ray.commands.check import print_plan
from swamp_ray.commands.status import describe
from swamp_ray.config.reading import build_config
from swamp_ray.errors import UserError
from swamp_ray.launch import run
from swamp_ray.run.prepare import Prepared, prepare
from swamp_ray.run.reporter import Reporter
from swamp_ray.sparsity.thin_layers import thin_layers, thin_text

NETWORKS = """
import torch
from torch import nn

def mlp(classes=3, bias=True):
    return nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, classes, bias=bias))

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(2, 8, batch_first=True), nn.Linear(8, 3)
    def forward(self, x):
        return self.head(self.rnn(x.view(-1, 2, 2))[0][:, -1])

class Partly(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.idle, self.other = nn.Linear(4, 3), nn.Linear(4, 4), nn.Conv2d(1, 2, 3)
    def forward(self, x):
        return self.used(x)

class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(4, 6, 4) * 0.1), nn.Linear(6, 3)
    def forward(self, x):
        return self.head(torch.einsum("bi,eoi->bo", x, self.weight))

def points():
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    return {"train": (x[:48], y[:48]), "test": (x[48:], y[48:])}
"""


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Prepared]:
    """Prepares a run of one of the networks."""
    (tmp_path / "nets_to_start.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)

    def prepare_run(network: str = "mlp", **start: Any) -> Prepared:
        return prepare(config_of(tmp_path, network, start=start))

    return prepare_run


def config_of(folder: Path, network: str, start: dict[str, Any] | None = None, **sections: Any) -> Any:
    tree: dict[str, Any] = {
        "name": "run", "storage": str(folder / "results"), "data": {"name": "nets_to_start:points"},
        "model": {"name": f"nets_to_start:{network}"},
        "training": {"batch_size": 8, "lr": 0.1, "schedule": {"warmup": 0}},
        "dense": {"length": 1}, "round": {"length": 1}, "particles": {"count": 1}, "averaging": {"within": "none"},
        "pruning": {"target": 0.75, "rate": 0.5}, "execution": {"executor": "inline", "device": "cpu"}, **sections}
    if start:
        tree["start_from"] = {"path": str(folder / "checkpoint.pt"), **start}
    return build_config(tree)


def weights(classes: int = 3) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    shapes = {"0.weight": (32, 4), "0.bias": (32,), "2.weight": (classes, 32), "2.bias": (classes,)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def saved(folder: Path, content: Any) -> None:
    torch.save(content, folder / "checkpoint.pt")


class TestSkip:
    def test_another_head_and_further_tensors_are_left_out_by_name(self, tmp_path: Path, prepared: Any) -> None:
        saved(tmp_path, {**weights(classes=7), "queue": torch.ones(5)})
        fresh = prepared().initial.parameters
        with pytest.raises(UserError, match=r"(?s)3 tensors.*2\.weight: the model has.*queue.*start_from\.skip"):
            prepared(skip=[])
        found = prepared(skip=["2.*", "queue"])
        assert np.array_equal(found.initial.parameters["0.weight"], weights()["0.weight"].numpy())
        assert np.array_equal(found.initial.parameters["2.weight"], fresh["2.weight"])
        assert any("2.weight (initialised anew)" in note and "queue (only in the checkpoint)" in note
                   for note in found.notes)

    def test_what_a_checkpoint_lacks_keeps_its_initialisation(self, tmp_path: Path, prepared: Any) -> None:
        saved(tmp_path, {name: tensor for name, tensor in weights().items() if "bias" not in name})
        found = prepared(skip=["*.bias"])
        assert np.array_equal(found.initial.parameters["0.bias"], prepared().initial.parameters["0.bias"])

    def test_a_pattern_that_matches_nothing_is_refused(self, tmp_path: Path, prepared: Any) -> None:
        saved(tmp_path, weights())
        with pytest.raises(UserError, match=r"start_from\.skip.*haed"):
            prepared(skip=["haed.*"])

    def test_arguments_of_a_training_script_beside_the_weights_do_no_harm(self, tmp_path: Path, prepared: Any) -> None:
        saved(tmp_path, {"args": argparse.Namespace(lr=0.1, name="mine"), "model": weights()})
        found = prepared(prefix="model")
        assert np.array_equal(found.initial.parameters["0.weight"], weights()["0.weight"].numpy())

    def test_complex_weights_are_refused_by_name(self, tmp_path: Path, prepared: Any) -> None:
        saved(tmp_path, {**weights(), "0.weight": torch.ones(32, 4, dtype=torch.complex64)})
        with pytest.raises(UserError, match=r"0\.weight: the model has torch\.float32, the checkpoint .*complex"):
            prepared(skip=[])


class TestOtherFiles:
    @pytest.mark.parametrize(("content", "said"), [
        (nn.Linear(4, 3), "an object (torch.nn.modules.linear.Linear)"),
        ({"state_dict": {}, "optimizer": torch.optim.SGD(nn.Linear(2, 2).parameters())},
         "an object (torch.optim.sgd.SGD)"),
        ({"path": Path("a"), "state_dict": {}}, r"an object \(pathlib"),
    ])
    def test_objects_beside_the_weights_are_named(
        self, content: Any, said: str, tmp_path: Path, prepared: Any
    ) -> None:
        saved(tmp_path, content)
        with pytest.raises(UserError, match=said if "\\" in said else re.escape(said)) as caught:
            prepared(skip=[])
        assert "weights_only" not in str(caught.value)
        assert "\x1b" not in str(caught.value)

    @pytest.mark.parametrize(("data", "said"), [
        (b"", "the file is empty"), (b"<html>404</html>", "it begins like neither"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "it begins like neither"), (b"PK\x03\x04" + bytes(99), "cut off"),
    ])
    def test_what_is_no_checkpoint_is_said_plainly(
        self, data: bytes, said: str, tmp_path: Path, prepared: Any
    ) -> None:
        (tmp_path / "checkpoint.pt").write_bytes(data)
        with pytest.raises(UserError, match=f"{said}.*Save model") as caught:
            prepared(skip=[])
        assert "weights_only" not in str(caught.value)

    @pytest.mark.parametrize(("content", "said"), [
        (weights(), "Leave start_from.prefix empty, if"), ({"model": weights(), "epoch": 3}, "There is: model."),
        (torch.ones(3), "Leave start_from.prefix empty."),
    ])
    def test_a_key_that_is_not_there(self, content: Any, said: str, tmp_path: Path, prepared: Any) -> None:
        saved(tmp_path, content)
        with pytest.raises(UserError, match=re.escape(f"no key 'state_dict'. {said}")):
            prepared(prefix="state_dict")


def test_check_says_how_good_the_untouched_checkpoint_is(
    tmp_path: Path, prepared: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    right = {name: torch.zeros_like(tensor) for name, tensor in weights().items()}
    right["0.weight"][:2, :2] = torch.eye(2)
    right["0.weight"][2:4, :2] = -torch.eye(2)
    right["2.weight"][:, :4] = torch.tensor([[-9.0, -9, 9, 9], [0.0, 0, 0, 0], [9.0, 9, -9, -9]])
    saved(tmp_path, right)
    prepared(zeros="regrow")
    print_plan(config_of(tmp_path, "mlp", start={"zeros": "regrow"}))
    said = capsys.readouterr().out
    found = re.search(r"the checkpoint as it is: accuracy ([\d.]+) % on validation, ([\d.]+) % on test", said)
    assert found is not None
    data = prepared(zeros="regrow").data
    network = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    network.load_state_dict(right)
    inputs, labels = (torch.from_numpy(part) for part in data.test.arrays)
    accuracy = float((network(inputs).argmax(1) == labels).float().mean())
    assert float(found[2]) == pytest.approx(100 * accuracy, abs=0.06)
    saved(tmp_path, weights(classes=5))
    print_plan(config_of(tmp_path, "mlp", start={"skip": ["2.*"]}))
    assert "as it is" not in capsys.readouterr().out, "a head that is not trained yet says nothing"


@pytest.mark.parametrize(("skip", "extra", "said"), [
    ([], {}, "as it is: accuracy"),
    (["ema"], {"ema": torch.ones(3)}, "as it is: accuracy"),
    (["2.*"], {}, "as it is, with what start_from.skip names: accuracy"),
    (["2.*", "a[0]*"], {"a[0]*": torch.ones(3)}, "as it is, with what start_from.skip names: accuracy"),
    (["2.*", "0.weight", "a*"], {"also": torch.ones(2)}, "as it is, with what start_from.skip names: accuracy"),
    (["2.*"], {"2.weight": torch.ones(5, 32), "2.bias": torch.ones(5)}, ""),
    (["2.*", "also.*"], {"2.weight": torch.ones(3, 9), "also.x": torch.ones(3)}, ""),
    (["2.*"], {"2.bias": None}, ""),
])
def test_check_says_how_good_a_checkpoint_is_of_which_parts_are_skipped(
    tmp_path: Path, prepared: Any, capsys: pytest.CaptureFixture[str], skip: list[str], extra: dict[str, Any], said: str
) -> None:
    given: dict[str, Any] = {**weights(), **extra}
    saved(tmp_path, {name: tensor for name, tensor in given.items() if tensor is not None})
    start = {"skip": [glob.escape(name) if "[" in name else name for name in skip], "zeros": "regrow"}
    data = prepared(**start).data
    print_plan(config_of(tmp_path, "mlp", start=start))
    found = re.search(r"the checkpoint (as it is.*: accuracy) [\d.]+ % on validation, ([\d.]+) % on test",
                      capsys.readouterr().out)
    assert (found[1] if found else "") == said
    if found:
        network = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
        network.load_state_dict(weights())
        inputs, labels = (torch.from_numpy(part) for part in data.test.arrays)
        accuracy = float((network(inputs).argmax(1) == labels).float().mean())
        assert float(found[2]) == pytest.approx(100 * accuracy, abs=0.06)


def sparse(share: float) -> dict[str, Tensor]:
    found = weights()
    flat = found["0.weight"].view(-1)
    flat[: int(share * flat.numel())] = 0
    return found


class TestZeros:
    def test_many_have_to_be_decided_on(self, tmp_path: Path, prepared: Any) -> None:
        saved(tmp_path, sparse(0.5))
        with pytest.raises(UserError, match=r"start_from\.zeros.*64 of 224 prunable weights.*keep.*regrow"):
            prepared(skip=[])

    def test_kept_ones_are_pruned_from_the_first_round_on(self, tmp_path: Path, prepared: Any) -> None:
        saved(tmp_path, sparse(0.5))
        found = prepared(zeros="keep")
        assert int(found.first_mask.sum()) == found.plan[0].survivors == 224 - 64
        assert np.array_equal(found.first_mask[:128], sparse(0.5)["0.weight"].numpy().reshape(-1) != 0)

    @pytest.mark.parametrize(("share", "zeros"), [(0.5, "regrow"), (0.05, "ask"), (0.0, "keep")])
    def test_otherwise_all_weights_are_trained(
        self, tmp_path: Path, prepared: Any, share: float, zeros: str
    ) -> None:
        saved(tmp_path, sparse(share))
        assert prepared(zeros=zeros).first_mask.all()


class TestCoverage:
    @pytest.mark.parametrize(("network", "left_out"), [
        ("Recurrent", "288 of GRU"), ("Experts", "96 of Experts")])
    def test_a_small_prunable_share_is_told_with_what_is_left_out(
        self, prepared: Any, network: str, left_out: str
    ) -> None:
        notes = prepared(network).notes
        assert any("can be pruned" in note and left_out in note for note in notes)

    def test_layers_that_no_forward_uses_are_told(self, prepared: Any) -> None:
        notes = prepared("Partly").notes
        assert any("no gradient reaches idle.weight, other.weight" in note for note in notes)

    def test_most_networks_get_no_note(self, prepared: Any) -> None:
        assert prepared("mlp").notes == ()

    def test_run_and_status_say_it(self, tmp_path: Path, prepared: Any) -> None:
        prepared()
        told: list[str] = []

        class Told(Reporter):
            def warning(self, text: str) -> None:
                told.append(text)

        done = run(config_of(tmp_path, "Recurrent"), Told())
        assert any("only 24 of 315 parameters" in text for text in told)
        lines = [str(line) for line in describe(done.rundir)]
        assert any(line.startswith("24 prunable weights of 315 parameters: at 75.0 % sparsity 5.7 %") for line in lines)
        assert any(line.startswith("warning: only 24 of 315") for line in lines)


@pytest.mark.parametrize(("size", "left", "is_thin"), [
    (14_400, 1, True), (14_400, 11, True), (14_400, 12, False), (14_400, 0, False), (9, 1, False), (100, 1, False)])
def test_thin_layers_keep_some_weights_but_hardly_any(size: int, left: int, is_thin: bool) -> None:
    assert ("conv" in thin_layers([("conv", size, left)])) is is_thin


def test_thin_layers_are_counted_where_there_are_many() -> None:
    text = thin_text({f"layer{index}": (1, 14_400) for index in range(7)})
    assert text.startswith("1 of 14,400 weights in layer0, ")
    assert text.endswith(" and few in 2 more layers")


def test_a_round_that_leaves_hardly_anything_of_a_layer_is_told(tmp_path: Path, prepared: Any) -> None:
    prepared()
    told: list[str] = []

    class Told(Reporter):
        def warning(self, text: str) -> None:
            told.append(text)

    (tmp_path / "small_layer.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    model = nn.Sequential(nn.Linear(4, 120), nn.Linear(120, 120), nn.Linear(120, 3))\n"
        "    model[1].weight.data.mul_(1e-6)\n"
        "    model[1].weight.data[0, 0] = 10.0\n"
        "    return model\n")
    done = run(config_of(tmp_path, "mlp", model={"name": "small_layer:net"}, pruning={"target": 0.97, "rate": 0.97},
                         training={"batch_size": 8, "lr": 1e-6, "schedule": {"warmup": 0}}), Told())
    assert any(text.startswith("round 1 keeps only ") and "of 14,400 weights in 1.weight" in text for text in told)
    lines = [str(line) for line in describe(done.rundir)]
    assert any("round 1 keeps only" in line for line in lines)
