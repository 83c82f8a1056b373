"""Which weights can be pruned, and masks over them.

The flat index of a prunable weight counts through the prunable tensors in the order of
``model.named_parameters()``, each row-major; P is their total number. A mask is a flat bool array ``[P]``,
True = kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize, prune

from swamp_ray.errors import RunError, UserError

_WRAPPERS = ("module", "_orig_mod")
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Layer:
    """One prunable tensor.

    Attributes:
        name: Its parameter's clean name.
        shape: Its shape.
        kind: conv, transposed_conv, linear, attention or conv1d (Hugging Face's transposed linear layer).
        offset: Flat index of its first weight.
    """

    name: str
    shape: tuple[int, ...]
    kind: str
    offset: int

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def span(self) -> slice:
        """Its flat indices."""
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True)
class Layout:
    """How a model's parameters divide into prunable weights and the rest, both in the order of named_parameters."""

    layers: tuple[Layer, ...]
    rest: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def num_prunable(self) -> int:
        """P: all prunable weights."""
        return sum(layer.size for layer in self.layers)

    @property
    def num_rest(self) -> int:
        """All other parameters' elements."""
        return sum(int(np.prod(shape, dtype=np.int64)) for _, shape in self.rest)

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters."""
        return self.num_prunable + self.num_rest

    def sparsity_of_all(self, survivors: int) -> float:
        """Share of all parameters that are pruned, where so many of the prunable ones survive."""
        return (self.num_prunable - survivors) / self.num_parameters


def clean_name(name: str) -> str:
    """A parameter's name without what DataParallel and torch.compile put before it."""
    *modules, own = name.split(".")
    return ".".join([part for part in modules if part not in _WRAPPERS] + [own])


def find_prunable(model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()) -> Layout:
    """Divide a model's parameters into prunable weights and the rest.

    Prunable are the weights of convolutions (grouped and transposed ones too), of linear layers, the input
    projections of attention and Hugging Face's ``Conv1D``. Everything else is rest: biases, normalisation,
    embeddings (and linear weights tied to one), recurrent and bare matrices. A parameter that several modules
    share counts once.

    Args:
        model: Any model with float32 parameters.
        include: Patterns (as in shell globs) over parameter names; a prunable weight must match one.
        exclude: Patterns of weights that go to the rest.

    Raises:
        UserError: No prunable weight; a pattern that matches no parameter; a parameter that is not float32, not
            initialised, frozen, reparametrized, or already in torch's pruning form; two with the same clean name.
    """
    _refuse_other_forms(model)
    parameters = _clean_parameters(model)
    kinds = _kinds(model)
    _refuse_idle_patterns(include, list(parameters), "pruning.include")
    _refuse_idle_patterns(exclude, list(parameters), "pruning.exclude")
    layers: list[Layer] = []
    rest: list[tuple[str, tuple[int, ...]]] = []
    offset = 0
    for name, parameter in parameters.items():
        _refuse_unfit(name, parameter)
        kind = kinds.get(id(parameter))
        if kind is None or parameter.numel() == 0 or not _matches(name, include) or _matches(name, exclude):
            rest.append((name, tuple(parameter.shape)))
            continue
        if not parameter.requires_grad:
            raise UserError(f"the weight {name} is frozen (requires_grad is False) and cannot be pruned and retrained",
                            do="Exclude it with pruning.exclude, or unfreeze it.", where="pruning.exclude")
        layers.append(Layer(name, tuple(parameter.shape), kind, offset))
        offset += layers[-1].size
    if offset == 0:
        found = sorted({type(module).__name__ for module in model.modules() if list(module.parameters(recurse=False))})
        patterns = f"pruning.include is {list(include)} and pruning.exclude is {list(exclude)}"
        raise UserError(f"the model has no prunable weight: its parameters are in {', '.join(found) or 'no module'}; "
                        f"{patterns}", where="model.name" if not kinds else "pruning.exclude" if exclude else
                        "pruning.include")
    return Layout(tuple(layers), tuple(rest))


def _refuse_idle_patterns(patterns: Sequence[str], names: Sequence[str], where: str) -> None:
    for pattern in patterns:
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
            raise UserError("no parameter matches the pattern", got=pattern, where=where,
                            do=f"Parameters are called like {', '.join(names[:4])}.")


def _clean_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if clean_name(name) in parameters:
            raise UserError(f"two parameters are called {clean_name(name)!r} once the wrappers' prefixes "
                            f"{' and '.join(_WRAPPERS)} are taken off", got=name, where="model.name",
                            do="Rename the submodule.")
        parameters[clean_name(name)] = parameter
    return parameters


def _kinds(model: nn.Module) -> dict[int, str]:
    """Kind of each prunable parameter by identity; an embedding's weight is none, also where it is tied."""
    kinds: dict[int, str] = {}
    embeddings: set[int] = set()
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            embeddings.add(id(module.weight))
        for parameter, kind in _weights(module):
            kinds.setdefault(id(parameter), kind)
    return {key: kind for key, kind in kinds.items() if key not in embeddings}


def _weights(module: nn.Module) -> Iterator[tuple[Tensor, str]]:
    if isinstance(module, _ConvNd):
        yield module.weight, "transposed_conv" if module.transposed else "conv"
    elif isinstance(module, nn.Linear):
        yield module.weight, "linear"
    elif isinstance(module, nn.MultiheadAttention):
        for name in _ATTENTION:
            weight = getattr(module, name, None)
            if weight is not None:
                yield weight, "attention"
    elif type(module).__name__ == "Conv1D":
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2:
            yield weight, "conv1d"


_NORMALISED = {"WeightNorm": "weight", "SpectralNorm": "spectral"}
"""Hooks of torch that compute a module's weight before each forward pass."""


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _refuse_other_forms(model: nn.Module) -> None:
    refuse_computed_weights(model)
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            raise UserError(f"the module {name or 'model'!r} is parametrized (torch.nn.utils.parametrize), so that its "
                            "weight is computed and cannot be masked", where="model.name",
                            do="Remove it with torch.nn.utils.parametrize.remove_parametrizations.")
        own = {key for key, _ in module.named_parameters(recurse=False)}
        if any(key.endswith("_orig") and hasattr(module, key.removesuffix("_orig") + "_mask") for key in own):
            raise UserError(f"the module {name or 'model'!r} is in the form of torch.nn.utils.prune already",
                            where="model.name",
                            do="Make it permanent with torch.nn.utils.prune.remove, and start from a ticket.")


def refuse_computed_weights(model: nn.Module) -> None:
    """Raise UserError if a hook of torch's older normalisations computes a module's weight."""
    for name, module in model.named_modules():
        own = {key for key, _ in module.named_parameters(recurse=False)}
        hooks = {type(hook).__name__ for hook in module._forward_pre_hooks.values()}
        kinds = [kind for form, kind in _NORMALISED.items() if form in hooks]
        if kinds or {"weight_g", "weight_v"} <= own:
            kind = (kinds or ["weight"])[0]
            raise UserError(f"the module {name or 'model'!r} has {kind} normalisation (torch.nn.utils.{kind}_norm), so "
                            "that its weight is computed and cannot be masked", where="model.name",
                            do=f"Build the model without it, or take it off with torch.nn.utils.remove_{kind}_norm. "
                            f"The newer torch.nn.utils.parametrizations.{kind}_norm is refused for the same reason.")


def _refuse_unfit(name: str, parameter: Tensor) -> None:
    if isinstance(parameter, UninitializedParameter):
        raise UserError(f"the parameter {name} of a lazy module is not initialised", where="model.name",
                        do="Run one batch through the model before returning it.")
    if parameter.dtype != torch.float32:
        raise UserError(f"the parameter {name} must be float32", got=str(parameter.dtype), where="model.name",
                        do="Keep weights in float32; precision: bf16 computes in bfloat16 all the same.")


def prunable_tensors(model: nn.Module, layout: Layout) -> list[Tensor]:
    """The model's prunable parameters, in the layout's order."""
    parameters = {clean_name(name): parameter for name, parameter in model.named_parameters()}
    return [parameters[layer.name] for layer in layout.layers]


def flatten(tensors: Sequence[Tensor]) -> np.ndarray:
    """Row-major values of tensors on any device, one after the other: float32 ``[P]`` on the CPU."""
    if not tensors:
        return np.zeros(0, dtype=np.float32)
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).cpu().numpy()


def to_bits(mask: np.ndarray) -> np.ndarray:
    """A mask as bits, uint8 ``[ceil(P / 8)]``, first weight in the highest bit; unused bits are 0."""
    return np.packbits(mask)


def from_bits(bits: np.ndarray, num: int) -> np.ndarray:
    """The mask ``[num]`` of :func:`to_bits`.

    Raises:
        ValueError: The bits are not those of a mask of this length.
    """
    if bits.dtype != np.uint8 or bits.shape != ((num + 7) // 8,):
        raise ValueError(f"a mask of {num} weights has {(num + 7) // 8} bytes, but got {bits.dtype} {bits.shape}")
    if num % 8 and bits[-1] & (0xFF >> num % 8):
        raise ValueError("the unused bits of a mask must be 0")
    return np.unpackbits(bits, count=num).view(np.bool_)


def density(mask: np.ndarray) -> float:
    """Share of weights that are kept."""
    return float(np.count_nonzero(mask)) / mask.size


def layer_densities(layout: Layout, mask: np.ndarray) -> dict[str, float]:
    """Density of each layer, by name."""
    return {layer.name: density(mask[layer.span]) for layer in layout.layers}


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard index of two masks, ``|a and b| / |a or b|``; 1 if both are empty."""
    union = int(np.count_nonzero(a | b))
    return int(np.count_nonzero(a & b)) / union if union else 1.0


def emptied_layers(layout: Layout, mask: np.ndarray) -> list[str]:
    """Names of layers without a weight."""
    return [layer.name for layer in layout.layers if not mask[layer.span].any()]


def split(layout: Layout, mask: np.ndarray) -> dict[str, np.ndarray]:
    """The mask of each layer in the layer's shape, by name; views."""
    return {layer.name: mask[layer.span].reshape(layer.shape) for layer in layout.layers}


def mask_tensors(
    layout: Layout, mask: np.ndarray, *, device: torch.device | str, like: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """A mask as float32 tensors of 0 and 1, one a layer.

    Args:
        layout: The layers.
        mask: bool ``[P]``.
        device: Where the tensors go.
        like: Tensors whose strides they take over, so that products need no copies.
    """
    parts = [torch.tensor(part, dtype=torch.float32, device=device) for part in split(layout, mask).values()]
    if like is None:
        return parts
    return [torch.empty_like(tensor, device=device).copy_(part) for part, tensor in zip(parts, like, strict=True)]


def apply_mask_(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Multiply tensors by their masks in place."""
    if tensors:
        with torch.no_grad():
            torch._foreach_mul_(  # pyright: ignore[reportPrivateImportUsage]
                list(tensors), list(masks))


def check_support(values: np.ndarray, mask: np.ndarray) -> None:
    """Raise RunError if a weight outside the mask is not zero. Both ``[P]``."""
    outside = int(np.count_nonzero(values)) - int(np.count_nonzero(values[mask]))
    if outside:
        raise RunError(f"{outside} weights outside the mask are not zero: the mask did not hold during training")


def to_torch_prune(model: nn.Module, layout: Layout, mask: np.ndarray) -> nn.Module:
    """Put a mask into the form of ``torch.nn.utils.prune`` (``weight_orig`` and ``weight_mask``), in place.

    Every module that shares a tied weight gets the weight's mask.

    Returns:
        The same model.
    """
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, key))
    tensors = prunable_tensors(model, layout)
    for tensor, part in zip(tensors, split(layout, mask).values(), strict=True):
        for module, key in owners[id(tensor)]:
            prune.custom_from_mask(module, key, torch.tensor(part, device=tensor.device))
    return model


def from_torch_prune(model: nn.Module) -> dict[str, np.ndarray]:
    """Masks (bool, in the parameter's shape) by parameter name, of a model in torch's pruning form."""
    buffers = dict(model.named_buffers())
    found: dict[str, np.ndarray] = {}
    for original, _ in model.named_parameters():
        name = original.removesuffix("_orig")
        # Other buffers end in _mask too, an attention mask for one.
        if original.endswith("_orig") and f"{name}_mask" in buffers:
            found[clean_name(name)] = buffers[f"{name}_mask"].detach().cpu().numpy() != 0
    return found


def full_values(mask: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values ``[k]`` at the mask's places and zeros elsewhere, float32 ``[P]``.

    Raises:
        ValueError: There are more or fewer values than the mask keeps.
    """
    if values.shape != (int(np.count_nonzero(mask)),):
        raise ValueError(f"the mask keeps {int(np.count_nonzero(mask))} weights, but got {values.shape} values")
    flat = np.zeros(mask.size, dtype=np.float32)
    flat[mask] = values
    return flat
