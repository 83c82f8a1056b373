"""Networks by name: built-in ones, torchvision's, and the user's own by import path."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from swamp_ray.config.sections import ModelConfig
from swamp_ray.data.trees import leaves, tree_map
from swamp_ray.errors import UserError, nearest
from swamp_ray.process_state import computing
from swamp_ray.random_state import seeded
from swamp_ray.training import networks
from swamp_ray.training.factory_checks import refuse_given_before
from swamp_ray.training.model_tensors import prepare_tensors_
from swamp_ray.user_code.importing import is_import_path, load_object, own_traceback

TORCHVISION = "torchvision/"
AUXILIARY_OUTPUTS = ("googlenet", "inception_v3")

# Depth 32 is no 6n + 4. The counting of He et al. (6n + 2: all 3x3 convolutions and the linear layer) gives 5 blocks.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "digits_cnn": networks.DigitsCNN,
    "mlp": networks.MLP,
    "lenet_300_100": networks.LeNet300100,
    "lenet5": networks.LeNet5,
    "resnet8": partial(networks.CifarResNet, depth=8),
    "resnet20": partial(networks.CifarResNet, depth=20),
    "resnet56": partial(networks.CifarResNet, depth=56),
    "wrn_28_2": partial(networks.WideResNet, num_blocks=4, widen=2),
    "wrn_32_4": partial(networks.WideResNet, num_blocks=5, widen=4),
    "vgg16_bn": partial(networks.CifarVGG, depth=16),
    "vgg19_bn": partial(networks.CifarVGG, depth=19),
}


@computing()
def build_model(
    config: ModelConfig, *, num_classes: int | None, input_shape: tuple[int, ...] | None, seed: int
) -> nn.Module:
    """The network that a config names, initialised from a seed: float32, on the CPU.

    The same seed gives the same bits whatever the state of the global random generators, which are left alone.
    A callable of your own gets ``config.options``, and ``num_classes`` and ``input_shape`` where it has parameters
    of these names. ``options.num_classes`` replaces the number that the data give.

    Args:
        config: Name and options.
        num_classes: Size of the output, from the data; None where the data have no classes.
        input_shape: Shape of one input, images as ``(C, H, W)``; None where it is not one tensor.
        seed: In [0, 2**63).

    Raises:
        UserError: The name is unknown, an option is not taken, or the model cannot be built from this data.
    """
    known: dict[str, Any] = {"num_classes": num_classes, "input_shape": input_shape}
    with seeded(seed):
        if is_import_path(config.name):
            return _user_model(config, known)
        if config.name.startswith(TORCHVISION):
            return _torchvision_model(config, known)
        return _built_in_model(config, known)


def _built_in_model(config: ModelConfig, known: Mapping[str, Any]) -> nn.Module:
    if config.name not in MODELS:
        raise UserError(
            "there is no such model", got=config.name, where="model.name",
            do=f"{_hint(config.name)} Known: {', '.join(MODELS)}; torchvision/NAME; "
            "or package.module:callable.".lstrip())
    build = MODELS[config.name]
    _refuse_unknown_options(config, _option_names(build))
    arguments = {**known, **config.options}
    if arguments["num_classes"] is None:
        raise UserError(f"the data have no classes, so {config.name} cannot know the size of its output",
                        where="model.options.num_classes", do="Set it, e.g. to 1 for a regression with one target.")
    if arguments["input_shape"] is None:
        raise UserError(f"the data are no pair of one input and its target, which {config.name} reads",
                        where="model.name", do="Use a model of your own: package.module:callable.")
    return _call(config, build, arguments)


def _hint(name: str) -> str:
    module, dot, attribute = name.rpartition(".")
    return f"Code of your own is named with a colon: {module}:{attribute}." if dot else nearest(name, MODELS)


def _option_names(build: Callable[..., nn.Module]) -> list[str]:
    fixed = {"input_shape", *(build.keywords if isinstance(build, partial) else ())}
    return [name for name in inspect.signature(build).parameters if name not in fixed]


def _refuse_unknown_options(config: ModelConfig, names: list[str]) -> None:
    for option in config.options:
        if option not in names:
            raise UserError(f"the model {config.name} takes no option {option!r}", where="model.options",
                            do=f"{nearest(option, names)} It takes: {', '.join(names) or 'none'}.".lstrip())


def torchvision_names() -> list[str]:
    """All classification models of the installed torchvision."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def _torchvision_model(config: ModelConfig, known: Mapping[str, Any]) -> nn.Module:
    from torchvision.models import get_model

    name = config.name.removeprefix(TORCHVISION)
    names = torchvision_names()
    if name not in names:
        raise UserError("torchvision has no such classification model", got=name, where="model.name",
                        do=nearest(name, names) or "torchvision.models.list_models() lists them.")
    if "weights" in config.options:
        raise UserError("networks start from their random initialisation", where="model.options.weights",
                        do="Save the pretrained weights to a file and set start_from.path.")
    options = dict(config.options)
    if known["num_classes"] is not None:
        options.setdefault("num_classes", known["num_classes"])
    if name in AUXILIARY_OUTPUTS:
        if options.get("aux_logits", False):
            raise UserError(f"{name} with auxiliary outputs returns several tensors, and a task reads one",
                            where="model.options.aux_logits", do="Leave it out: they are off by default.")
        options.update(aux_logits=False, init_weights=options.get("init_weights", True))
    return _call(config, partial(get_model, name, weights=None), options)


def _user_model(config: ModelConfig, known: Mapping[str, Any]) -> nn.Module:
    build = load_object(config.name, "model.name")
    if not callable(build):
        raise UserError(f"{config.name} must be callable and return a torch.nn.Module", got=type(build).__name__,
                        where="model.name")
    arguments = {**_taken(build, known), **config.options}
    try:
        inspect.signature(build).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{config.name} cannot be called with the options {sorted(config.options)}: {error}",
                        where="model.options", do=f"Its signature is {inspect.signature(build)}.") from error
    except ValueError:
        pass  # some callables written in C have no signature; calling them tells
    model = _call(config, build, arguments)
    refuse_given_before(model, config.name)
    return model


def _taken(build: Callable[..., Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The known facts of the data that the callable has parameters for."""
    try:
        parameters = inspect.signature(build).parameters
    except ValueError:
        return {}
    return {name: value for name, value in known.items() if name in parameters and value is not None}


def _call(config: ModelConfig, build: Callable[..., Any], arguments: Mapping[str, Any]) -> nn.Module:
    """Call a builder; its own exception is shown below the error's text."""
    try:
        model = build(**arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the model {config.name} cannot be built with {_spelled(arguments)}", where="model.name",
                        do=f"Its own error:\n{own_traceback(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{config.name} must return a torch.nn.Module", got=type(model).__name__, where="model.name")
    prepare_tensors_(model)
    return model.cpu()


def _spelled(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items()) or "no options"


def check_outputs(model: nn.Module, batch: Any, num_classes: int) -> None:
    """Try a classification model on two samples: its output must be ``[B, num_classes]``.

    The model's mode and the global random state stay as they were.

    Args:
        model: On the device of the batch.
        batch: ``(inputs, labels)``.
        num_classes: From the data.

    Raises:
        UserError: The model fails on the batch, or its output does not fit.
    """
    inputs = tree_map(lambda tensor: tensor[:2], batch[0])
    size = len(leaves(inputs)[0])
    shapes = ", ".join(str(list(tensor.shape)) for tensor in leaves(inputs))
    output = _try(model, inputs, shapes)
    got = f"shape {list(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    if not isinstance(output, Tensor) or tuple(output.shape) != (size, num_classes):
        raise UserError(
            f"for inputs of shape {shapes} and {num_classes} classes the model must return a tensor of shape "
            f"[{size}, {num_classes}]", got=got, where="model.name",
            do=f"Set model.options.num_classes to {num_classes}, or change the model or the data.")


def _try(model: nn.Module, inputs: Any, shapes: str) -> Any:
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), seeded(0):
            return model.eval()(inputs)
    except Exception as error:
        raise UserError(f"the model cannot read inputs of shape {shapes}", where="model.name",
                        do=f"{image_advice(inputs)} Its own error:\n{own_traceback(error)}".lstrip()) from error
    finally:
        for module, training in modes.items():
            module.training = training


def image_advice(batch: Any) -> str:
    """Advice where inputs are bytes, and no images in the form that is normalised; empty for other inputs."""
    first = leaves(batch)[0]
    if not isinstance(first, Tensor) or first.dtype != torch.uint8 or first.ndim < 3:
        return ""
    return (f"The inputs are bytes of shape {list(first.shape)}, which reach the model as they are. Images that are "
            "normalised are uint8 arrays [N, height, width, channels] with 1 or 3 channels, as the first of a pair. "
            "Add or move the axis of the channels, or return floating-point numbers.")
