from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from swamp_ray.errors import RunError, UserError
from swamp_ray.sparsity.masks import find_prunable, from_torch_prune
from swamp_ray.storage.tickets import MASK_PREFIX, METADATA_KEY, load_ticket, ticket_bytes
from tests.unit.storage.processes import run_python

META = {"sparsity": 0.5, "recipe": {"lr": 0.1}}
WEIGHT = "0.weight"


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5, bias=False)
        self.second = nn.Linear(5, 5, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))


def prune_(model: nn.Module, density: float = 0.5, seed: int = 0) -> dict[str, Tensor]:
    """Zero random weights; returns the masks."""
    generator = torch.Generator().manual_seed(seed)
    parameters = dict(model.named_parameters())
    masks: dict[str, Tensor] = {}
    for layer in find_prunable(model).layers:
        masks[layer.name] = torch.rand(layer.shape, generator=generator) < density
        with torch.no_grad():
            parameters[layer.name].mul_(masks[layer.name])
    return masks


def save(path: Path, model: nn.Module, masks: dict[str, Tensor]) -> Path:
    path.write_bytes(ticket_bytes(model.state_dict(), masks, META))
    return path


@pytest.fixture
def ticket_path(tmp_path: Path) -> Path:
    model = small_net()
    return save(tmp_path / "model.safetensors", model, prune_(model))


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(one[name], two[name]) and one[name].dtype == two[name].dtype for name in one)


def test_a_ticket_is_read_as_written(tmp_path: Path) -> None:
    model = small_net()
    masks = prune_(model)
    ticket = load_ticket(save(tmp_path / "t", model, masks))
    assert same(ticket.state, model.state_dict())
    assert same(ticket.masks, masks)
    assert ticket.meta == META
    kept, total = sum(int(m.sum()) for m in masks.values()), 27 + 36
    assert ticket.density == kept / total
    assert ticket.sparsity == 1 - kept / total


def test_it_is_a_plain_safetensors_file_with_one_bit_a_weight(ticket_path: Path) -> None:
    tensors = safetensors.torch.load_file(ticket_path)
    assert tensors[MASK_PREFIX + WEIGHT].shape == (4,)
    assert {name for name in tensors if not name.startswith(MASK_PREFIX)} == small_net().state_dict().keys()
    with safetensors.safe_open(ticket_path, "pt") as file:
        assert list(file.metadata()) == [METADATA_KEY]


def test_a_plain_model_computes_the_same_after_loading(ticket_path: Path) -> None:
    model = small_net()
    prune_(model)
    other = small_net(seed=1)
    assert load_ticket(ticket_path).load_into(other) is other
    images = torch.randn(2, 1, 4, 4)
    assert torch.equal(model.eval()(images), other.eval()(images))


def test_it_loads_into_wrapped_models_and_from_them(tmp_path: Path, ticket_path: Path) -> None:
    inner = small_net()
    masks = prune_(inner)
    wrapped = nn.Sequential()
    wrapped.add_module("module", inner)
    path = save(tmp_path / "wrapped", wrapped, {f"module.{name}": mask for name, mask in masks.items()})
    assert path.read_bytes() == ticket_path.read_bytes()
    other = nn.Sequential()
    other.add_module("module", small_net(seed=1))
    load_ticket(ticket_path).load_into(other)
    assert same(other.get_submodule("module").state_dict(), inner.state_dict())


def test_tied_weights_are_kept_under_both_names_and_stay_tied(tmp_path: Path) -> None:
    model = Tied()
    ticket = load_ticket(save(tmp_path / "t", model, prune_(model)))
    assert ticket.state.keys() == {"first.weight", "second.weight"}
    assert ticket.masks.keys() == {"first.weight"}
    other = Tied()
    ticket.load_into(other)
    assert other.first.weight is other.second.weight
    assert torch.equal(other.first.weight, model.first.weight)
    ticket.state["second.weight"] = torch.ones(5, 5)
    with pytest.raises(UserError, match=r"second\.weight: the same tensor as first\.weight"):
        ticket.load_into(other)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_it_loads_strictly_into_timm_models(tmp_path: Path, name: str) -> None:
    timm = pytest.importorskip("timm")

    def make() -> nn.Module:
        if name == "vit":
            return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=4)
        return timm.create_model("resnet10t", num_classes=4)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, other = make(), make()
    ticket = load_ticket(save(tmp_path / "t", model, prune_(model)))
    ticket.load_into(other, strict=True)
    assert same(other.state_dict(), model.state_dict())


def test_dtypes_layouts_and_counters_survive(tmp_path: Path) -> None:
    state = {"w": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), "half": torch.ones(3).bfloat16(),
             "count": torch.tensor(7), "flag": torch.tensor([True, False]), "none": torch.zeros(0, 3),
             "view": torch.arange(6.0).reshape(2, 3).T}
    (tmp_path / "t").write_bytes(ticket_bytes(state, {"w": state["w"] != 0}, {}))
    assert same(load_ticket(tmp_path / "t").state, state)


@given(st.lists(st.integers(0, 4), max_size=4), st.randoms(use_true_random=False))
def test_masks_of_any_shape_round_trip(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], random: Any
) -> None:
    mask = torch.tensor([random.random() < 0.5 for _ in range(torch.Size(shape).numel())], dtype=torch.bool)
    mask = mask.reshape(shape)
    path = tmp_path_factory.mktemp("ticket") / "t"
    path.write_bytes(ticket_bytes({"w": mask.float()}, {"w": mask}, {}))
    assert torch.equal(load_ticket(path).masks["w"], mask)


def test_masks_go_into_torchs_pruning_form_and_back(ticket_path: Path) -> None:
    ticket = load_ticket(ticket_path)
    model = ticket.to_torch_prune(small_net(seed=1))
    conv = model.get_submodule("0")
    assert isinstance(conv.weight_orig, nn.Parameter)
    assert isinstance(conv.weight_mask, Tensor)
    assert torch.equal(conv.weight_orig * conv.weight_mask, ticket.state[WEIGHT])
    back = {name: torch.from_numpy(mask) for name, mask in from_torch_prune(model).items()}
    assert same(back, ticket.masks)


def test_bytes_do_not_depend_on_the_process_or_on_order(tmp_path: Path) -> None:
    code = """
        import sys, torch
        from swamp_ray.storage.tickets import ticket_bytes
        names = sorted({f"layer{i}.weight" for i in range(40)}, key=hash)
        state = {n: torch.full((3, 3), float(n[5:-7])) for n in names}
        masks = {n: state[n] != 0 for n in set(names)}
        meta = {k: hash(k) * 0 for k in set("abcdefgh")}
        open(sys.argv[1], "wb").write(ticket_bytes(state, masks, meta))
        print(names)
        """
    runs = [run_python(code, tmp_path / seed, env={"PYTHONHASHSEED": seed}) for seed in ("1", "2")]
    assert all(run.returncode == 0 for run in runs), runs
    assert runs[0].stdout != runs[1].stdout
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def differ_name() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 3))


def differ_shape() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4))


@pytest.mark.parametrize(("make", "lines"), [
    (differ_name, ["2.weight: only in the model", "4.weight: only in the ticket"]),
    (differ_shape, ["4.weight: [3, 12] in the ticket, [4, 12] in the model", "4.bias: [3] in the ticket, [4]"]),
])
def test_a_model_that_differs_is_refused_with_the_tensors_and_left_as_it_is(
    ticket_path: Path, make: Callable[[], nn.Module], lines: list[str]
) -> None:
    model = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_ticket(ticket_path).load_into(model)
    assert all(line in str(caught.value) for line in lines)
    assert same(model.state_dict(), before)


def test_a_long_list_of_differences_is_cut(ticket_path: Path) -> None:
    with pytest.raises(UserError, match="and 17 more"):
        load_ticket(ticket_path).load_into(nn.Sequential(*[nn.Conv1d(1, 1, 1) for _ in range(12)]))


def test_what_both_have_is_loaded_when_not_strict_but_shapes_must_agree(ticket_path: Path) -> None:
    ticket = load_ticket(ticket_path)
    model = differ_name()
    ticket.load_into(model, strict=False)
    assert torch.equal(model.state_dict()[WEIGHT], ticket.state[WEIGHT])
    with pytest.raises(UserError, match=r"4\.bias"):
        ticket.load_into(differ_shape(), strict=False)


def test_a_model_without_memory_is_refused(ticket_path: Path) -> None:
    with pytest.raises(UserError, match="meta"):
        load_ticket(ticket_path).load_into(small_net().to("meta"))


def test_weights_outside_the_mask_are_not_written() -> None:
    for bad in (1.0, float("nan")):
        with pytest.raises(RunError, match="w: 1 weights outside the mask"):
            ticket_bytes({"w": torch.tensor([0.0, bad])}, {"w": torch.tensor([True, False])}, {})


@pytest.mark.parametrize(("state", "masks", "meta", "error"), [
    ({"w": torch.ones(2)}, {"v": torch.ones(2) > 0}, {}, ValueError),
    ({"w": torch.ones(2)}, {"w": torch.ones(3) > 0}, {}, ValueError),
    ({"w": torch.ones(2)}, {"w": torch.ones(2)}, {}, ValueError),
    ({"w": torch.ones(2), "module.w": torch.ones(2)}, {}, {}, ValueError),
    ({MASK_PREFIX + "w": torch.ones(2)}, {}, {}, ValueError),
    ({"w": torch.ones(2)}, {}, {"format": 2}, ValueError),
    ({"w": torch.ones(2)}, {}, {"x": {1}}, TypeError),
    ({"w": torch.ones(2, 2).to_sparse()}, {}, {}, TypeError),
    ({"w": "text"}, {}, {}, TypeError),
])
def test_what_a_ticket_cannot_hold_is_refused(state: Any, masks: Any, meta: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        ticket_bytes(state, masks, meta)


def outside(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[WEIGHT] = torch.ones_like(tensors[WEIGHT])


def short_bits(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[MASK_PREFIX + WEIGHT] = tensors[MASK_PREFIX + WEIGHT][:-1].clone()


def long_bits(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[MASK_PREFIX + WEIGHT] = torch.cat([tensors[MASK_PREFIX + WEIGHT], torch.zeros(1, dtype=torch.uint8)])


def padding_bits(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[MASK_PREFIX + WEIGHT][-1] = 255


def wrong_dtype(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    tensors[MASK_PREFIX + WEIGHT] = tensors[MASK_PREFIX + WEIGHT].to(torch.int8)


def no_weight(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    del tensors[WEIGHT]


def no_mask(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    del tensors[MASK_PREFIX + WEIGHT]


def no_shape(_: dict[str, Tensor], header: dict[str, Any]) -> None:
    del header["mask_shapes"][WEIGHT]


def other_shape(_: dict[str, Tensor], header: dict[str, Any]) -> None:
    header["mask_shapes"][WEIGHT] = [3, 9]


def no_shapes(_: dict[str, Tensor], header: dict[str, Any]) -> None:
    header["mask_shapes"] = 5


def no_format(_: dict[str, Tensor], header: dict[str, Any]) -> None:
    del header["format"]


def newer_format(_: dict[str, Tensor], header: dict[str, Any]) -> None:
    header["format"] = 2


@pytest.mark.parametrize("forge", [outside, short_bits, long_bits, padding_bits, wrong_dtype, no_weight, no_mask,
                                   no_shape, other_shape, no_shapes, no_format, newer_format])
def test_tickets_that_contradict_themselves_are_refused(
    ticket_path: Path, forge: Callable[[dict[str, Tensor], dict[str, Any]], None]
) -> None:
    with safetensors.safe_open(ticket_path, "pt") as file:
        header = json.loads(file.metadata()[METADATA_KEY])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    ticket_path.write_bytes(safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(header)}))
    load_ticket(ticket_path)
    forge(tensors, header)
    ticket_path.write_bytes(safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(header)}))
    with pytest.raises(UserError) as caught:
        load_ticket(ticket_path)
    assert str(ticket_path) in str(caught.value)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (Path("exploded"), "x"))


@pytest.mark.parametrize("write", [
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(bytes(range(256)) * 10),
    lambda path: path.write_bytes(b"\xff" * 100),
    lambda path: path.write_bytes(pickle.dumps({"w": Bomb()})),
    lambda path: torch.save({"w": Bomb()}, path),
    lambda path: path.write_bytes(safetensors.torch.save({"w": torch.ones(1)})),
    lambda path: path.write_bytes(safetensors.torch.save({"w": torch.ones(1)}, {METADATA_KEY: "[" * 100_000})),
    lambda path: path.write_bytes(safetensors.torch.save({"w": torch.ones(1)}, {METADATA_KEY: "[1]"})),
    lambda path: path.mkdir(),
    lambda path: None,
])
def test_what_is_not_a_ticket_is_refused_and_never_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], object]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "t")
    with pytest.raises(UserError) as caught:
        load_ticket(tmp_path / "t")
    assert str(tmp_path / "t") in str(caught.value)
    assert not (tmp_path / "exploded").exists()


def test_every_cut_of_a_ticket_is_refused(ticket_path: Path) -> None:
    whole = ticket_path.read_bytes()
    for cut in range(0, len(whole), 7):
        ticket_path.write_bytes(whole[:cut])
        with pytest.raises(UserError):
            load_ticket(ticket_path)


def test_a_ticket_in_memory_does_not_change_with_its_file(ticket_path: Path) -> None:
    ticket = load_ticket(ticket_path)
    before = {name: value.clone() for name, value in ticket.state.items()}
    with ticket_path.open("r+b") as file:
        file.write(bytes(ticket_path.stat().st_size))
    assert same(ticket.state, before)


@pytest.mark.parametrize("model", [None, nn.Linear, {"weight": torch.ones(2)}], ids=["None", "class", "state"])
def test_a_ticket_is_loaded_into_a_network_alone(ticket_path: Path, model: Any) -> None:
    with pytest.raises(UserError, match=r"load_into: a ticket is loaded into a torch\.nn\.Module"):
        load_ticket(ticket_path).load_into(model)
