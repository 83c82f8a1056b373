"""A whole network as numpy arrays by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import nn

from swamp_ray.sparsity.masks import clean_name


@dataclass(frozen=True)
class State:
    """A whole network as numpy arrays by name; it travels to workers once."""

    parameters: dict[str, np.ndarray]
    buffers: dict[str, np.ndarray]

    @property
    def num_bytes(self) -> int:
        """Size of all arrays."""
        return sum(array.nbytes for array in [*self.parameters.values(), *self.buffers.values()])


def state_of(model: nn.Module) -> State:
    """Copies of a model's parameters and buffers under their clean names."""
    return State(
        {clean_name(name): p.detach().cpu().contiguous().numpy().copy() for name, p in model.named_parameters()},
        {clean_name(name): b.detach().cpu().contiguous().numpy().copy() for name, b in model.named_buffers()},
    )
