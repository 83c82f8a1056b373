"""Checks a new network's tensors, and gives each of them memory of its own.

torch's fused optimisers read a parameter's memory as if it had no gaps, a particle's weights are written in place, and
buffers travel as NumPy arrays. All of that is right for tensors that fill memory which nothing else uses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy

from swamp_ray.errors import UserError
from swamp_ray.sparsity.masks import clean_name, refuse_computed_weights

BUFFER_TYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16,
                torch.float32, torch.float64, torch.complex64)
"""Element types that NumPy and stored states have, too."""
_OWN_BUFFER = "Keep it as float32 in a buffer, and convert it where the forward pass reads it."


def prepare_tensors_(model: nn.Module) -> None:
    """Check a new network's tensors, and move those into memory of their own that are views of something larger.

    Values, element types and the order of dimensions in memory stay as they are. Gradients that the network's code has
    left behind are dropped. Parameters that are not float32 or not initialised are left to ``find_prunable``.

    Raises:
        UserError: A tensor without values, sparse, of an own tensor class, of a type that buffers cannot have; two
            whose memory overlaps; a weight that is computed from others; two names that are equal without the prefixes
            of wrappers.
    """
    refuse_computed_weights(model)  # such a weight shares memory with the parameters that it is computed from
    parameters = {name: tensor for name, tensor in model.named_parameters() if not is_lazy(tensor)}
    buffers = dict(model.named_buffers())
    for name, parameter in parameters.items():
        _refuse_form(f"the parameter {name}", parameter)
        _refuse_values(name, parameter)
    for name, buffer in buffers.items():
        _refuse_buffer(name, buffer)
    _refuse_equal_names(list(parameters), list(buffers))
    _refuse_common_memory(model, parameters, buffers)
    for tensor in [*parameters.values(), *buffers.values()]:
        _own_memory_(tensor)
        tensor.grad = None


def refuse_odd_gradients(model: nn.Module) -> None:
    """Raise UserError if the gradients of a training step are not what the optimiser's step reads them as."""
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout != torch.strided:
            raise UserError(f"the parameter {clean_name(name)} gets sparse gradients", where="model.name",
                            do="Build its layer with sparse=False.")
        if gradient.dtype != parameter.dtype or not _lie_alike(gradient, parameter):
            raise UserError(f"the gradient of the parameter {clean_name(name)} has another type or order in memory "
                            "than the parameter", got=f"{gradient.dtype}, strides {gradient.stride()}",
                            where="model.name", do="Do not replace gradients in hooks; change them in place.")


def _refuse_form(what: str, tensor: Tensor) -> None:
    kind: Any = type(tensor)
    plain: Any = Tensor
    # A user's Parameter class is harmless as long as it does not override operations.
    overrides = (kind.__torch_function__ not in (Tensor.__torch_function__, nn.Parameter.__torch_function__)
                 or kind.__torch_dispatch__ is not plain.__torch_dispatch__)
    if overrides or (kind is not Tensor and not issubclass(kind, nn.Parameter)):
        raise UserError(f"{what} is of a tensor class of its own", got=kind.__name__, where="model.name",
                        do="Use a plain torch tensor.")
    if tensor.is_meta:
        raise UserError(f"{what} is on the meta device and has no values", where="model.name",
                        do="Build the model on the CPU and initialise it, e.g. with to_empty and reset_parameters.")
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise UserError(f"{what} must be dense", got=str(tensor.layout) if not tensor.is_quantized else "quantised",
                        where="model.name", do="Use .to_dense() or .dequantize().")
    if tensor.is_inference():
        raise UserError(f"{what} was made in inference mode and cannot be trained", where="model.name",
                        do="Build the model outside of torch.inference_mode().")


def _refuse_values(name: str, parameter: Tensor) -> None:
    if parameter.is_floating_point() and not bool(parameter.detach().isfinite().all()):
        raise UserError(f"the parameter {clean_name(name)} has values that are not finite before any training",
                        where="model.name", do="Initialise it: torch.empty() holds whatever was in memory.")


def _refuse_buffer(name: str, buffer: Tensor) -> None:
    what = f"the buffer {name}"
    if is_lazy(buffer):
        raise UserError(f"{what} of a lazy module is not initialised", where="model.name",
                        do="Run one batch through the model before returning it.")
    _refuse_form(what, buffer)
    if buffer.dtype not in BUFFER_TYPES:
        raise UserError(f"{what} has a type that a stored state cannot hold", got=str(buffer.dtype),
                        where="model.name", do=_OWN_BUFFER)
    if buffer.is_conj() or buffer.is_neg():
        raise UserError(f"{what} is a conjugate or the negative of other memory", where="model.name",
                        do="Store its values with .resolve_conj().resolve_neg().clone().")
    if buffer.grad_fn is not None:
        raise UserError(f"{what} was computed from parameters, which it would not follow", where="model.name",
                        do="Compute it in the forward pass, or store it with .detach().clone().")


def _refuse_equal_names(parameters: Sequence[str], buffers: Sequence[str]) -> None:
    """Refuse a buffer with the clean name of another tensor; ``find_prunable`` refuses two equal parameters."""
    known = {clean_name(name) for name in parameters}
    for name in buffers:
        if clean_name(name) in known:
            raise UserError(f"two tensors are called {clean_name(name)!r} once the prefixes of wrappers are taken off",
                            got=name, where="model.name", do="Rename the submodule.")
        known.add(clean_name(name))


def _refuse_common_memory(
    model: nn.Module, parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> None:
    """Refuse tensors whose memory overlaps with that of a tensor which training changes."""
    named: list[tuple[str, Tensor]] = []
    for name, parameter in parameters.items():
        if _num_places(parameter) < parameter.numel():
            raise UserError(f"the parameter {name} is expanded: several of its elements are one place in memory",
                            got=f"shape {list(parameter.shape)}, strides {parameter.stride()}", where="model.name",
                            do="Give it memory of its own with .clone() or .contiguous().")
        named.append((f"the parameter {name}", parameter))
    trained = {id(tensor) for tensor in parameters.values()}
    # Constant buffers may share memory among themselves: nothing changes there.
    changed = trained | _statistics(model)
    named += [(f"the buffer {name}", buffer) for name, buffer in buffers.items()]
    named += _attributes(model, trained)
    for (first, one), (second, other) in _pairs_in_one_storage(named):
        if (id(one) in changed or id(other) in changed) and one is not other and _overlap(one, other):
            raise UserError(f"{first} and {second} share memory, so that training one changes the other",
                            where="model.name", do="To tie two layers give both the same Parameter object; else use "
                            ".detach().clone().")


def _statistics(model: nn.Module) -> set[int]:
    """Identities of the buffers of normalisation modules."""
    found: set[int] = set()
    for module in model.modules():
        if isinstance(module, _NormBase):
            found |= {id(buffer) for buffer in module.buffers(recurse=False)}
    return found


def _attributes(model: nn.Module, known: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Tensors that modules hold as plain attributes, or in plain lists and dicts."""
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers", "_modules"):
                continue
            for tensor in _tensors_in(value):
                if id(tensor) not in known and tensor.layout == torch.strided and not tensor.is_meta:
                    yield f"the attribute {name}.{key}" if name else f"the attribute {key}", tensor


def _tensors_in(value: Any) -> Iterator[Tensor]:
    parts: Any = [value]
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, list | tuple):
        parts = value
    for part in parts:
        if isinstance(part, Tensor):
            yield part


def _pairs_in_one_storage(named: Sequence[tuple[str, Tensor]]) -> Iterator[Any]:
    groups: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in named:
        if tensor.numel():
            groups.setdefault(tensor.untyped_storage().data_ptr(), []).append((name, tensor))
    for group in groups.values():
        yield from combinations(group, 2)


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte of a tensor in its storage, and the one after its last."""
    first = int(tensor.storage_offset())
    last = first
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        last += (int(size) - 1) * int(stride)
    return first * tensor.element_size(), (last + 1) * tensor.element_size()


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of a storage have a byte in common."""
    first, end = _span(one)
    other_first, other_end = _span(other)
    if first >= other_end or other_first >= end:
        return False
    if one.dtype != other.dtype:
        return True
    low = min(first, other_first) // one.element_size()
    high = max(end, other_end) // one.element_size()
    return bool((_places(one, low, high) & _places(other, low, high)).any())


def _num_places(tensor: Tensor) -> int:
    """How many different places in memory the elements of a tensor have."""
    if tensor.numel() == 0 or _is_dense(tensor):
        return tensor.numel()
    first, last = _span(tensor)
    size = tensor.element_size()
    return int(np.count_nonzero(_places(tensor, first // size, last // size)))


def _places(tensor: Tensor, low: int, high: int) -> np.ndarray:
    """Which elements ``low`` to ``high - 1`` of its storage a tensor has, bool."""
    used = np.zeros(high - low, dtype=bool)
    view = np.lib.stride_tricks.as_strided(used[tensor.storage_offset() - low:], tuple(tensor.shape), tensor.stride())
    view[...] = True
    return used


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor's elements fill their memory without gaps, in any order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def _lie_alike(one: Tensor, other: Tensor) -> bool:
    """Whether elements of two tensors of one shape come in the same order in memory."""
    if one.numel() == 0:
        return True
    for size, stride, other_stride in zip(one.shape, one.stride(), other.stride(), strict=True):
        if size > 1 and stride != other_stride:
            return False
    return True


def _own_memory_(tensor: Tensor) -> None:
    dense = tensor.numel() == 0 or _is_dense(tensor)
    if dense and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size():
        return
    tensor.data = tensor.data.clone(memory_format=torch.preserve_format if dense else torch.contiguous_format)


def named_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Buffers under their clean names, as in a network's state."""
    for name, buffer in model.named_buffers():
        yield clean_name(name), buffer
