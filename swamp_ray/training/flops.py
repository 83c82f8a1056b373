"""Counts the FLOPs of a network's forward pass, layer by layer, with torch's own formulas.

Counted are multiplications of matrices, convolutions and attention (``torch.utils.flop_counter``); a multiply-add is
two FLOPs. Activations, normalisation and pooling have no formula there, and are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from swamp_ray.data.trees import num_samples
from swamp_ray.errors import first_line
from swamp_ray.random_state import seeded
from swamp_ray.sparsity.masks import Layout, clean_name
from swamp_ray.training.cost import NetworkFlops
from swamp_ray.training.tasks import Batch


@dataclass(frozen=True)
class CountedFlops:
    """The FLOPs of a network, or why they cannot be counted."""

    network: NetworkFlops | None = None
    reason: str = ""


def count_flops(model: nn.Module, task: Any, batch: Batch, layout: Layout) -> CountedFlops:
    """Count a forward pass of training, with its loss.

    Args:
        model: On the CPU; its buffers change as in training.
        task: Takes the pass.
        batch: Some training samples.
        layout: The network's prunable weights.
    """
    weights = {clean_name(name): parameter for name, parameter in model.named_parameters()}
    mode = _Counting({layer.name: weights[layer.name] for layer in layout.layers})
    handles = _follow(model, mode)
    model.train()
    try:
        # Fused attention on a CPU has no formula; as plain multiplications of matrices it has.
        with seeded(0), sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), mode:
            task.training_step(model, batch)
    except Exception as error:  # whatever a network of the user's raises under a counter; training does without one
        return CountedFlops(reason=f"{type(error).__name__}: {first_line(error)}")
    finally:
        for handle in handles:
            handle.remove()
    layers, rest = _by_layer(mode.operations, [layer.name for layer in layout.layers])
    uncounted = [name for name, flops in layers.items() if flops == 0]
    if uncounted:
        more = f" and {len(uncounted) - 1} more" if len(uncounted) > 1 else ""
        return CountedFlops(reason=f"no operation that torch has a formula for multiplies by {uncounted[0]}{more}")
    samples = num_samples(batch)
    per_sample = {name: flops / samples for name, flops in layers.items()}
    return CountedFlops(NetworkFlops(per_sample, rest / samples))


@dataclass(frozen=True)
class _Operation:
    """An operation that was counted.

    Attributes:
        flops: Of the whole batch.
        layer: The prunable tensor that it multiplies by, where that can be seen.
        owner: The prunable tensor of the innermost module that it ran in.
    """

    flops: float
    layer: str | None
    owner: str | None


class _Counting(TorchDispatchMode):
    """Notes every operation that torch has a formula for.

    Args:
        prunable: Tensors by name.
    """

    def __init__(self, prunable: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.operations: list[_Operation] = []
        self.owners: list[str] = []
        self.names = {id(weight): name for name, weight in prunable.items()}
        self._storages = {weight.untyped_storage().data_ptr(): name for name, weight in prunable.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count it."""
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula: Any = flop_registry.get(func.overloadpacket)
        if formula is not None:
            flops = formula(*args, **kwargs, out_val=result)
            owner = self.owners[-1] if self.owners else None
            self.operations.append(_Operation(float(flops), self._layer_of(args), owner))
        return result

    def _layer_of(self, args: Any) -> str | None:
        """The prunable tensor among the arguments. A transposed or a sliced one has the storage of the whole."""
        for argument in tree_leaves(args):
            if isinstance(argument, Tensor) and argument.layout == torch.strided:
                name = self._storages.get(argument.untyped_storage().data_ptr())
                if name is not None:
                    return name
        return None


def _follow(model: nn.Module, mode: _Counting) -> list[RemovableHandle]:
    """Let a counter know in which of the modules that own a prunable tensor the network is."""
    handles = []
    for module in model.modules():
        owned = [mode.names[id(one)] for one in module.parameters(recurse=False) if id(one) in mode.names]
        if not owned:
            continue

        def enter(*_: Any, name: str = owned[0]) -> None:
            mode.owners.append(name)

        def leave(*_: Any) -> None:
            mode.owners.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    return handles


def _by_layer(operations: list[_Operation], names: list[str]) -> tuple[dict[str, float], float]:
    """FLOPs of each prunable tensor, and of all other operations.

    A weight that is changed before it is used, as by standardisation, cannot be seen among the arguments. Then the
    operations of its module that multiply by no other prunable tensor are its own.
    """
    layers = dict.fromkeys(names, 0.0)
    for one in operations:
        if one.layer is not None:
            layers[one.layer] += one.flops
    unseen = {name for name, flops in layers.items() if flops == 0}
    rest = 0.0
    for one in operations:
        if one.layer is not None:
            continue
        if one.owner in unseen:
            layers[one.owner] += one.flops
        else:
            rest += one.flops
    return layers, rest
