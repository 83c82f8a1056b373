"""How the tensors of a ticket, or of another checkpoint, fit into a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from swamp_ray.errors import UserError
from swamp_ray.sparsity.masks import clean_name
from swamp_ray.training.state_dict import EXTRA_STATE

_NUM_LISTED = 10


def transient_names(model: nn.Module) -> set[str]:
    """Clean names of the buffers that a model's ``state_dict()`` leaves out."""
    return {clean_name(f"{module_name}.{name}" if module_name else name)
            for module_name, module in model.named_modules(remove_duplicate=False)
            for name in module._non_persistent_buffers_set}


def is_extra(name: str) -> bool:
    """Whether an entry of a ``state_dict()`` is a module's extra state."""
    return name.rpartition(".")[2] == EXTRA_STATE


def extra_names(model: nn.Module) -> dict[str, str]:
    """A model's own names of its extra state, by clean name."""
    return {clean_name(name): name for name in model.state_dict() if is_extra(name)}


def own_names(model: nn.Module) -> dict[str, str]:
    """A model's own names of its tensors, by clean name."""
    names = [name for name, value in model.state_dict().items() if isinstance(value, Tensor)]
    own = {clean_name(name): name for name in names}
    if len(own) < len(names):
        raise UserError("some of the model's names differ only by 'module.' or '_orig_mod.'", where="load_into",
                        do="Rename the submodules in question.")
    return own


def differences(given: Mapping[str, Tensor], targets: Mapping[str, Tensor], strict: bool) -> list[str]:
    """Why tensors cannot be loaded into a model's, a line for each."""
    problems: list[str] = []
    for name in dict.fromkeys([*targets, *given]):
        if name not in given:
            problems += [f"{name}: only in the model"] if strict else []
        elif name not in targets:
            problems += [f"{name}: only in the ticket"] if strict else []
        elif given[name].shape != targets[name].shape:
            shapes = f"{list(given[name].shape)} in the ticket, {list(targets[name].shape)} in the model"
            problems.append(f"{name}: {shapes}")
        elif targets[name].is_meta:
            problems.append(f"{name}: the model has no memory for it (device 'meta')")
    return problems or broken_ties(given, targets)


def broken_ties(given: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[str]:
    """Names that are one tensor in the model but hold different values in the ticket."""
    first: dict[tuple[object, ...], str] = {}
    problems: list[str] = []
    for name in [name for name in targets if name in given and targets[name].numel()]:
        target = targets[name]
        other = first.setdefault((target.data_ptr(), target.dtype, target.shape, target.stride()), name)
        if other != name and not torch.equal(given[name], given[other]):
            problems.append(f"{name}: the same tensor as {other} in the model, but not in the ticket")
    return problems


def listed(problems: list[str]) -> str:
    """The first lines, indented, and how many more there are."""
    more = len(problems) - _NUM_LISTED
    return "".join(f"  {line}\n" for line in [*problems[:_NUM_LISTED], *([f"and {more} more"] if more > 0 else [])])
