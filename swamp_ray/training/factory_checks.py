"""Refuses factories that give one network, or a part of one, to several callers."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from swamp_ray.errors import UserError
from swamp_ray.sparsity.masks import clean_name

_ADVICE = ("Build all of its modules, parameters and buffers anew in each call: without functools.cache, and without "
           "networks or tensors of the module's own. To start from such a one, return copy.deepcopy of it.")
_built: list[weakref.ref[nn.Module]] = []
"""The networks that factories have returned in this process, while they are in use."""


def refuse_given_before(model: nn.Module, name: str) -> None:
    """Refuse a network that shares memory with one that is still in use; remember it for those to come.

    Args:
        model: As its factory has given it.
        name: Import path of the factory.

    Raises:
        UserError: Training one of them would change the other.
    """
    _built[:] = [reference for reference in _built if reference() is not None]
    own = dict(_parts(model))
    for reference in _built:
        other = reference()
        if other is model:
            raise UserError(f"{name} gives the same network each time that it is called", where="model.name",
                            do=_ADVICE)
        if other is None:
            continue
        for key, _ in _parts(other):
            if key in own:
                raise UserError(f"networks of {name} share {own[key]}, so that training one of them changes the others",
                                where="model.name", do=_ADVICE)
    _built.append(weakref.ref(model))


def _parts(model: nn.Module) -> Iterator[tuple[object, str]]:
    """Keys and descriptions of what no two networks may share: modules that hold tensors, the tensors, their memory."""
    for path, module in model.named_modules():
        tensors = {**module._parameters, **module._buffers}
        if any(tensor is not None for tensor in tensors.values()):
            yield id(module), f"the module {path!r}"
        for name, tensor in tensors.items():
            if tensor is None:
                continue
            words = f"the tensor {'.'.join(filter(None, [path, name]))!r}"
            yield id(tensor), words
            address = _address(tensor)
            if address:
                yield (tensor.device, address), words


def _address(tensor: Tensor) -> int:
    """The address at which a tensor's memory begins; 0 where it has none of its own."""
    if is_lazy(tensor):
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # sparse tensors and wrappers
        return 0


class InitialValues:
    """The values of a network that was just built."""

    def __init__(self, model: nn.Module) -> None:
        self._values = {name: tensor.detach().clone() for name, tensor in _strided(model)}

    def refuse_changed(self, model: nn.Module, names: Iterable[str]) -> None:
        """Refuse a network whose forward pass itself writes into weights that may be pruned.

        Args:
            model: The same network, after some passes without an optimiser.
            names: Clean names of the weights.

        Raises:
            UserError: It names the weight.
        """
        prunable = set(names)
        for path, tensor in _strided(model):
            if clean_name(path) in prunable and not _equal(self._values[path], tensor.detach()):
                raise UserError(f"the network's own forward pass changes the weight {clean_name(path)}, so that pruned "
                                "weights would not stay 0", where="model.name",
                                do="Compute what is used from the weight, or exclude it with pruning.exclude.")

    def compare(self, again: nn.Module, name: str) -> None:
        """Refuse a factory that gives other values at its next call, under the same seed.

        Raises:
            UserError: It names the first tensor that differs.
        """
        found = dict(_strided(again))
        for path in [*self._values, *found]:
            first = self._values.get(path)
            second = found.get(path)
            if first is None or second is None or not _equal(first, second):
                raise UserError(
                    f"{name} gives another network at its next call, although both calls have the same seed and the "
                    f"same options: {path!r} differs", where="model.name",
                    do="Draw weights from torch's, NumPy's or Python's global generator, which are seeded before each "
                       f"call. {_ADVICE}")


def disturb_(model: nn.Module) -> None:
    """Change all values of a network that is not needed any more, so that networks that share its memory change too."""
    with torch.no_grad():
        for _, tensor in _strided(model):
            with contextlib.suppress(RuntimeError, NotImplementedError):
                tensor.add_(1)


def _strided(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not is_lazy(tensor) and tensor.layout == torch.strided and tensor.device.type != "meta":
            yield name, tensor


def _equal(first: Tensor, second: Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    if first.is_floating_point():  # NaN is equal to NaN here
        return torch.allclose(first.double(), second.double(), rtol=0.0, atol=0.0, equal_nan=True)
    return torch.equal(first, second)
