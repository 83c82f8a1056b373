"""The compact form of a sparse network: surviving weights, all other parameters, nothing else.

Particles of a round share their mask, so that it does not travel with their states.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor, nn

from swamp_ray.errors import CorruptArtifactError, RunError
from swamp_ray.sparsity.masks import Layout, check_support, clean_name, flatten, full_values, prunable_tensors

METADATA_KEY = "swamp"
CHUNK = 1 << 24
"""Elements of a state that are stored, averaged and checked as one piece: 64 MB. Part of the format of states."""


@dataclass(frozen=True)
class CompactState:
    """A sparse network without its pruned weights.

    Attributes:
        values: Surviving weights in flat order, float32 ``[k]``.
        rest: All other parameters, in the layout's order, float32 ``[num_rest]``.
    """

    values: np.ndarray
    rest: np.ndarray

    @property
    def nbytes(self) -> int:
        """Bytes that travel."""
        return self.values.nbytes + self.rest.nbytes

    @property
    def size(self) -> int:
        """Elements, surviving weights first."""
        return self.values.size + self.rest.size

    def part(self, first: int, last: int) -> CompactState:
        """Elements ``first`` to ``last - 1``, as views."""
        values = self.values[first:last]
        rest = self.rest[max(0, first - self.values.size):]
        return CompactState(values, rest[:max(0, last - max(first, self.values.size))])


def joined(parts: Sequence[CompactState]) -> CompactState:
    """The whole of parts in order; of a single one itself."""
    if len(parts) == 1:
        return parts[0]
    return CompactState(np.concatenate([part.values for part in parts]), np.concatenate([part.rest for part in parts]))


def chunks(size: int) -> list[tuple[int, int]]:
    """First and last element (exclusive) of each chunk of a state; at least one chunk."""
    return [(first, min(size, first + CHUNK)) for first in range(0, max(1, size), CHUNK)]


def spans(size: int, num_shards: int) -> list[tuple[int, int]]:
    """Whole chunks of a state for each of at most ``num_shards`` shards: first and last element (exclusive).

    Shards get as equal numbers of chunks as there can be; one that would get none is left out.
    """
    parts = chunks(size)
    cuts = [index * len(parts) // num_shards for index in range(num_shards + 1)]
    return [(parts[first][0], parts[last - 1][1]) for first, last in itertools.pairwise(cuts) if first < last]


def compact_model(model: nn.Module, layout: Layout, mask: np.ndarray) -> CompactState:
    """The compact state of a model's parameters, on whatever device they are.

    Raises:
        RunError: A weight outside the mask is not zero.
    """
    parameters = _parameters(model)
    together = flatten([*prunable_tensors(model, layout), *(parameters[name] for name, _ in layout.rest)])
    flat = together[:layout.num_prunable]
    check_support(flat, mask)
    # Copied: a view would keep all pruned weights in memory.
    return CompactState(flat[mask], together[layout.num_prunable:].copy())


def load_compact_(model: nn.Module, layout: Layout, mask: np.ndarray, compact: CompactState) -> None:
    """Write a compact state into a model's parameters, in place; pruned weights become 0."""
    parameters = _parameters(model)
    with torch.no_grad():
        for name, array in full_state(compact, layout, mask).items():
            parameters[name].copy_(torch.from_numpy(array))


def compact_state(
    state: Mapping[str, np.ndarray | Tensor], layout: Layout, mask: np.ndarray, *, drop_outside: bool = False
) -> CompactState:
    """The compact state of full arrays by parameter name.

    Args:
        state: At least all parameters of the layout; further entries are ignored.
        layout: Prunable weights and the rest.
        mask: bool ``[P]``.
        drop_outside: Drop weights outside the mask (the ticket of a mask); otherwise they must be zero.

    Raises:
        RunError: A weight outside the mask is not zero, or an array is missing or has another shape.
    """
    shapes = {**{layer.name: layer.shape for layer in layout.layers}, **dict(layout.rest)}
    wrong = [name for name, shape in shapes.items() if name not in state or tuple(state[name].shape) != shape]
    if wrong:
        raise RunError(f"the state lacks these parameters, or has them in another shape: {', '.join(wrong)}")
    arrays = {name: _array(state[name]) for name in shapes}
    flat = np.concatenate([arrays[layer.name].reshape(-1) for layer in layout.layers])
    if not drop_outside:
        check_support(flat, mask)
    rest = [arrays[name].reshape(-1) for name, _ in layout.rest]
    return CompactState(flat[mask], np.concatenate(rest) if rest else np.zeros(0, np.float32))


def full_state(compact: CompactState, layout: Layout, mask: np.ndarray) -> dict[str, np.ndarray]:
    """Full arrays by parameter name: prunable ones with zeros outside the mask, then the rest.

    Raises:
        ValueError: The arrays are not of this layout and mask.
    """
    if compact.rest.shape != (layout.num_rest,):
        raise ValueError(f"the rest must have {layout.num_rest} elements, but got {compact.rest.shape}")
    if mask.shape != (layout.num_prunable,):
        raise ValueError(f"the mask must be over {layout.num_prunable} weights, but got {mask.shape}")
    flat = full_values(mask, compact.values)
    full = {layer.name: flat[layer.span].reshape(layer.shape) for layer in layout.layers}
    first = 0
    for name, shape in layout.rest:
        last = first + int(np.prod(shape, dtype=np.int64))
        full[name] = compact.rest[first:last].reshape(shape).copy()
        first = last
    return full


def to_bytes(
    compact: CompactState, metadata: Mapping[str, object], others: Mapping[str, np.ndarray] | None = None
) -> bytes:
    """Safetensors bytes; equal content gives equal bytes.

    Args:
        compact: The state.
        metadata: JSON, stored under the one key ``swamp`` (several keys would come out in random order).
        others: Further arrays by name.
    """
    text = json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False)
    # safetensors writes the memory behind a strided view, not its elements.
    arrays = {"values": np.ascontiguousarray(compact.values), "rest": np.ascontiguousarray(compact.rest)}
    for name, array in sorted((others or {}).items()):
        # ascontiguousarray gives a number one dimension.
        arrays[name] = np.ascontiguousarray(array).reshape(array.shape)
    return save(arrays, {METADATA_KEY: text})


def from_bytes(data: bytes) -> tuple[CompactState, dict[str, Any]]:
    """A compact state and its metadata.

    Raises:
        CorruptArtifactError: The bytes are not those of :func:`to_bytes`.
    """
    try:
        arrays = load(data)
        compact = CompactState(arrays["values"], arrays["rest"])
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(json.loads(data[8:8 + length])["__metadata__"][METADATA_KEY])
    except (SafetensorError, KeyError, ValueError) as error:
        raise CorruptArtifactError(f"these bytes are not a compact state: {error}") from error
    if any(array.dtype != np.float32 or array.ndim != 1 for array in (compact.values, compact.rest)):
        raise CorruptArtifactError("a compact state must be two float32 vectors")
    return compact, metadata


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {clean_name(name): parameter for name, parameter in model.named_parameters()}


def _array(value: np.ndarray | Tensor) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    return np.asarray(array, dtype=np.float32)
