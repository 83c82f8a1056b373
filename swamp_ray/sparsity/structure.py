"""Masks with structure: which weights form a unit that survives or goes as a whole, so that kernels can use a ticket.

Three structures, over a layer seen as a matrix of outputs x inputs for each position of its kernel (a linear layer has
one position):

- ``N:M``: of every M consecutive inputs of an output (at one position) N weights survive. 2:4 is what NVIDIA's sparse
  tensor cores read: ``torch.sparse.to_sparse_semi_structured`` takes a linear layer's weight as it is, and of a
  convolution the matrix of outputs x (position, input), in which inputs are innermost.
- ``channels``: all weights of an output together.
- ``blocks:AxB``: A consecutive outputs x B consecutive inputs (at one position), as in torch's BSR layout.
"""

from __future__ import annotations

import numpy as np

from swamp_ray.errors import UserError
from swamp_ray.sparsity.masks import Layer, Layout
from swamp_ray.structure import CHANNELS, Structure


def check_structure(layout: Layout, structure: Structure) -> None:
    """Refuse layers that the structure does not divide.

    Raises:
        UserError: Names them all.
    """
    misfits: list[str] = []
    for layer in layout.layers:
        reason = _misfit(layer, structure)
        if reason:
            misfits.append(f"{layer.name} ({reason})")
    if misfits:
        names = ", ".join(f"{text.partition(' ')[0]!r}" for text in misfits)
        raise UserError(f"the structure {structure.text} does not fit {', '.join(misfits)}", where="pruning.structure",
                        do=f"Leave them unpruned: pruning.exclude: [{names}].")


def _misfit(layer: Layer, structure: Structure) -> str:
    """Why a layer cannot have the structure; empty if it can."""
    if layer.kind == "transposed_conv":
        return "a transposed convolution, whose outputs its groups divide"
    if structure.kind == CHANNELS:
        return ""
    outputs, inputs = _matrix_shape(layer)
    if structure.keeps_pattern:
        return f"{inputs} inputs, which {structure.second} does not divide" if inputs % structure.second else ""
    if outputs % structure.first:
        return f"{outputs} outputs, which {structure.first} does not divide"
    return f"{inputs} inputs, which {structure.second} does not divide" if inputs % structure.second else ""


def _matrix_shape(layer: Layer) -> tuple[int, int]:
    """Outputs and inputs of a layer."""
    if layer.kind == "conv1d":  # Hugging Face's transposed linear layer
        return layer.shape[1], layer.shape[0]
    return layer.shape[0], layer.shape[1]


def unit_indices(layer: Layer, structure: Structure) -> np.ndarray:
    """The weights of each unit, as flat indices within the layer, int64 ``[units, weights of a unit]``.

    A unit is a group of M inputs, a channel or a block. Units come in the order of their first weight, and the weights
    of a unit in theirs.
    """
    flat = np.arange(layer.size, dtype=np.int64)
    if layer.kind == "conv1d":
        by_position = flat.reshape(layer.shape[0], layer.shape[1], 1).transpose(1, 0, 2)
    else:
        by_position = flat.reshape(layer.shape[0], layer.shape[1], -1)
    outputs, inputs, positions = by_position.shape
    if structure.keeps_pattern:
        units = by_position.transpose(0, 2, 1).reshape(-1, structure.second)
    elif structure.kind == CHANNELS:
        units = by_position.reshape(outputs, inputs * positions)
    else:
        rows = structure.first
        columns = structure.second
        blocks = by_position.reshape(outputs // rows, rows, inputs // columns, columns, positions)
        units = blocks.transpose(0, 2, 4, 1, 3).reshape(-1, rows * columns)
    units = np.sort(units, axis=1)
    return units[np.argsort(units[:, 0], kind="stable")]


def unit_size(layer: Layer, structure: Structure) -> int:
    """How many weights a unit of a layer has."""
    if structure.keeps_pattern:
        return structure.second
    if structure.kind == CHANNELS:
        return layer.size // _matrix_shape(layer)[0]
    return structure.first * structure.second


def kept_of_groups(layout: Layout, structure: Structure, mask: np.ndarray) -> int:
    """N:M: how many weights every group keeps under a mask, bool ``[P]``.

    Raises:
        ValueError: Not all keep the same number; names a layer.
    """
    found: set[int] = set()
    for layer in layout.layers:
        own = mask[layer.span][unit_indices(layer, structure)].sum(axis=1)
        found.update(int(count) for count in np.unique(own))
        if len(found) > 1:
            raise ValueError(f"groups of {structure.second} inputs keep {min(found)} to {max(found)} weights, e.g. in "
                             f"{layer.name}")
    return found.pop()


def kept_units(layer: Layer, structure: Structure, mask: np.ndarray) -> np.ndarray:
    """Which units of a layer survive under a mask, bool ``[units]``.

    Raises:
        ValueError: The mask keeps a part of a unit.
    """
    kept = mask[layer.span][unit_indices(layer, structure)]
    whole = np.all(kept, axis=1)
    if np.any(np.any(kept, axis=1) != whole):
        raise ValueError(f"the mask keeps parts of {structure.text.partition(':')[0]} in {layer.name}")
    return whole
