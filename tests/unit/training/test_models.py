"""Networks by name: sizes, determinism, and what a user reads when a name or an option is wrong."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from swamp_ray.config.sections import ModelConfig
from swamp_ray.errors import UserError
from swamp_ray.training.models import MODELS, build_model, check_outputs

INPUTS = {"digits_cnn": (1, 8, 8), "mlp": (5,), "lenet_300_100": (1, 28, 28), "lenet5": (1, 28, 28)}
PARAMETERS = {
    "lenet_300_100": 784 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10,
    "lenet5": 61_706,
    "resnet8": 75_290,
    "resnet20": 269_722,
    "resnet56": 853_018,
    "wrn_28_2": 1_467_610,
    "vgg16_bn": 14_728_266 - 4_224,  # without the biases before BatchNorm
    "vgg19_bn": 20_040_522 - 5_504,
}
SMALL = [name for name in MODELS if not name.startswith(("vgg", "wrn_32", "resnet56"))]


def make(name: str, seed: int = 0, num_classes: int | None = 10, shape: tuple[int, ...] | None = None,
         **options: Any) -> nn.Module:
    return build_model(ModelConfig(name=name, options=options), num_classes=num_classes,
                       input_shape=shape or INPUTS.get(name, (3, 32, 32)), seed=seed)


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_known_networks_have_their_published_size(name: str, count: int) -> None:
    assert size_of(make(name)) == count


def test_depth_counts_convolutions_and_shortcuts_without_parameters() -> None:
    kernels = [m.kernel_size for m in make("resnet20").modules() if isinstance(m, nn.Conv2d)]
    assert kernels == [(3, 3)] * 19
    wide = [m.kernel_size for m in make("wrn_32_4").modules() if isinstance(m, nn.Conv2d)]
    assert (wide.count((3, 3)), wide.count((1, 1))) == (31, 3)


@pytest.mark.parametrize("name", SMALL)
def test_logits_in_both_memory_layouts(name: str) -> None:
    model = make(name).eval()
    inputs = torch.randn(2, *INPUTS.get(name, (3, 32, 32)))
    logits = model(inputs)
    assert logits.shape == (2, 10)
    if inputs.ndim == 4:
        twin = model.to(memory_format=torch.channels_last)(inputs.to(memory_format=torch.channels_last))
        torch.testing.assert_close(twin, logits, rtol=1e-3, atol=1e-4)


def test_option_a_shortcut_slices_and_pads_with_zero_channels() -> None:
    block = make("resnet8").get_submodule("stage2.0").eval()
    with torch.no_grad():
        block.get_submodule("bn2").weight.zero_()  # type: ignore[union-attr]
    inputs = torch.randn(2, 16, 8, 8)
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = inputs[:, :, ::2, ::2].relu()
    torch.testing.assert_close(block(inputs), expected)


def test_convolutions_are_kaiming_normal_over_fan_out() -> None:
    convolutions = [m for m in make("wrn_28_2").modules() if isinstance(m, nn.Conv2d) and m.out_channels == 128]
    weight = convolutions[0].weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)
    assert abs(float(weight.mean())) < 1e-3


def test_same_seed_same_bits_whatever_the_global_generators() -> None:
    first = make("resnet8", seed=3).state_dict()
    torch.manual_seed(99)
    torch.rand(7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    again = make("resnet8", seed=3).state_dict()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # type: ignore[index]
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(make("resnet8", seed=4).state_dict()["conv1.weight"], first["conv1.weight"])
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in first.values() if p.is_floating_point())


def test_options_change_the_network() -> None:
    assert size_of(make("mlp", hidden=[4], shape=(5,))) == 5 * 4 + 4 + 4 * 10 + 10
    dropped = [m for m in make("wrn_28_2", dropout=0.3).modules() if isinstance(m, nn.Dropout)]
    assert len(dropped) == 12


def test_num_classes_as_an_option_replaces_that_of_the_data() -> None:
    model = build_model(ModelConfig(name="mlp", options={"num_classes": 1}), num_classes=None, input_shape=(5,), seed=0)
    assert model(torch.zeros(2, 5)).shape == (2, 1)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_0", "googlenet"])
def test_torchvision_by_name(name: str) -> None:
    model = make(f"torchvision/{name}", num_classes=7).eval()
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 7)


def test_torchvision_passes_options_on() -> None:
    assert size_of(make("torchvision/resnet18", width_per_group=64)) == 11_181_642


@pytest.mark.parametrize(("name", "text"), [
    ("resnet21", "model.name: there is no such model, but got 'resnet21'. Did you mean 'resnet20'?"),
    ("torchvision/resnet51", "Did you mean 'resnet50'?"),
    ("torchvision/fcn_resnet50", "no such classification model"),
    ("no_such_module_here:make", "cannot be imported"),
    ("torch.nn:NoSuchLayer", "has no attribute 'NoSuchLayer'"),
    ("math:pi", "must be callable"),
    ("builtins:dict", "must return a torch.nn.Module, but got 'dict'"),
])
def test_wrong_names(name: str, text: str) -> None:
    with pytest.raises(UserError) as caught:
        make(name)
    assert text in str(caught.value)


@pytest.mark.parametrize(("name", "options", "text"), [
    ("resnet20", {"width": 3}, "takes no option 'width'"),
    ("resnet20", {"depth": 32}, "takes no option 'depth'"),
    ("wrn_28_2", {"drop": 0.1}, "Did you mean 'dropout'?"),
    ("wrn_28_2", {"dropout": 1.0}, "dropout must lie in [0, 1)"),
    ("mlp", {"hidden": ["wide"]}, "Its own error:"),
    ("torchvision/resnet18", {"widht": 3}, "unexpected keyword argument 'widht'"),
    ("torchvision/resnet18", {"weights": "DEFAULT"}, "start_from"),
    ("torchvision/inception_v3", {"aux_logits": True}, "auxiliary outputs"),
    ("torch.nn:Linear", {"in_features": 3}, "out_features"),
])
def test_wrong_options(name: str, options: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as caught:
        make(name, **options)
    assert text in str(caught.value)


@pytest.mark.parametrize(("name", "num_classes", "shape", "text"), [
    ("lenet5", 10, (1, 8, 8), "28x28 or 32x32"),
    ("vgg16_bn", 10, (3, 16, 16), "at least 32x32"),
    ("resnet20", 10, (30,), "reads images"),
    ("mlp", None, (5,), "model.options.num_classes"),
    ("mlp", 10, None, "package.module:callable"),
])
def test_data_that_do_not_fit_the_model(
    name: str, num_classes: int | None, shape: tuple[int, ...] | None, text: str
) -> None:
    with pytest.raises(UserError) as caught:
        build_model(ModelConfig(name=name), num_classes=num_classes, input_shape=shape, seed=0)
    assert text in str(caught.value)


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "their_models.py").write_text(textwrap.dedent("""
        import numpy as np
        import torch

        def fitted(num_classes, input_shape, width=2):
            return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(input_shape[0], width),
                                       torch.nn.Linear(width, num_classes))

        def numpy_init():
            layer = torch.nn.Linear(2, 2)
            layer.weight.data = torch.from_numpy(np.random.rand(2, 2)).float()
            return layer

        def broken(width=2):
            raise ZeroDivisionError("my very own mistake")
    """))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "their_models"
    sys.modules.pop("their_models", None)


def test_user_callable_gets_what_its_signature_names(user_module: str) -> None:
    model = make(f"{user_module}:fitted", shape=(5,), num_classes=4, width=3)
    assert size_of(model) == 5 * 3 + 3 + 3 * 4 + 4


def test_user_model_drawn_by_numpy_is_seeded_too(user_module: str) -> None:
    first, again, other = (make(f"{user_module}:numpy_init", seed=seed).state_dict()["weight"] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_user_error_is_shown_below(user_module: str) -> None:
    with pytest.raises(UserError, match=r"(?s)cannot be built.*their_models.py.*ZeroDivisionError: my very own"):
        make(f"{user_module}:broken")
    with pytest.raises(UserError, match=r"model\.options.*'depth'"):
        make(f"{user_module}:broken", depth=3)


@pytest.mark.parametrize(("model", "text"), [
    (nn.Sequential(nn.Flatten(), nn.Linear(12, 9)), "shape [2, 9]"),
    (nn.Identity(), "shape [2, 3, 2, 2]"),
    (nn.Linear(5, 10), "cannot read inputs of shape [2, 3, 2, 2]"),
    (nn.LSTM(4, 10), "Its own error"),
])
def test_outputs_that_do_not_fit_the_classes(model: nn.Module, text: str) -> None:
    with pytest.raises(UserError) as caught:
        check_outputs(model, (torch.zeros(4, 3, 2, 2), torch.zeros(4)), 10)
    assert text in str(caught.value)


def test_checking_outputs_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(12, 10)).train()
    model[1].eval()
    before, state = torch.get_rng_state(), {name: value.clone() for name, value in model.state_dict().items()}
    check_outputs(model, (torch.ones(1, 3, 2, 2), torch.zeros(1)), 10)
    assert [module.training for module in model] == [True, False, True, True]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
