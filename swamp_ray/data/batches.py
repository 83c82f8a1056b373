"""Batches of a split on a device: order, augmentation and normalisation, vectorised."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swamp_ray.data.augmentation import Draws, ImagePipeline, to_device
from swamp_ray.data.loader import DeviceCopies, Loader
from swamp_ray.data.samples import ArraySamples, LazySamples, Samples
from swamp_ray.data.trees import leaves, with_leaves

Batch = Any

KEPT_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
"""Leaves of a split that every pass reads alike are converted once and kept, up to this many bytes a split."""
GROUP_BYTES = {"cpu": 0, "cuda": 64 * 2**20}
"""Batches are made in groups of this size: a GPU needs few launches then, a CPU reads a single batch from its cache."""
_CONVERTED_BYTES = 32 * 2**20
"""Floats that are made at a time when a whole leaf is normalised."""
_ALIGNMENT = 512
"""torch's allocators align memory to this many bytes, and libraries choose their kernels by the alignment."""


class Batches:
    """The batches of one split on one device.

    Every batch is a tree of fresh tensors, which the model may overwrite; floating point is float32,
    images are ``[B, C, H, W]``.

    Args:
        samples: The split.
        device: Where batches are wanted.
        channels_last: Give 4-D floating-point tensors in the channels-last layout.
        on_device: Keep arrays in the device's memory; without effect on the CPU.
        loader: Reads lazy samples; by default this process does.

    Attributes:
        group: How many batches of samples in memory are made at a time; None: as many as fit into ``GROUP_BYTES``.
            It changes speed and memory, no value.
    """

    def __init__(
        self, samples: Samples, *, device: torch.device, channels_last: bool, on_device: bool,
        loader: Loader | None = None,
    ) -> None:
        self.samples = samples
        self.device = device
        self.group: int | None = None
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._pipeline = ImagePipeline(samples.images, device) if samples.images is not None else None
        self._leaves: list[LeafArray] = []
        self._plain: Batches | None = None
        if isinstance(samples, LazySamples):
            self._loader = loader or Loader([samples], 0, pinned=device.type == "cuda")
            self._copies = DeviceCopies(device)
            return
        resident = on_device and device.type != "cpu"
        # Kept leaves take the device's memory, which samples in the host's memory must not fill on a GPU.
        self._may_keep = resident or device.type == "cpu"
        self._arrays = samples.arrays
        self._leaves = _leaf_arrays(samples, self._pipeline, device, self._layout, resident)
        if samples.plain is not None:
            plain = ArraySamples(samples.plain, samples.images)
            self._plain = Batches(plain, device=device, channels_last=channels_last, on_device=on_device)

    def num_batches(self, batch_size: int, drop_last: bool) -> int:
        """How many batches one pass has."""
        return len(self.samples) // batch_size if drop_last else math.ceil(len(self.samples) / batch_size)

    def one_pass(
        self, batch_size: int, *, seed: int | None, drop_last: bool, first: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """The batches of one pass over the split.

        Args:
            batch_size: Samples a batch.
            seed: Shuffles and augments: all draws of the pass come from CPU generators seeded with it, so that they
                depend neither on the device nor on anything else. None: fixed order, no augmentation.
            drop_last: Leave out the last batch if it is smaller.
            first: Begin at this batch of the pass; the ones before it are not read.
            share: ``(r, k)``: of every batch only the r-th of k equal parts, with the same values as in the whole;
                k must divide the batch, and partial ones be dropped.
        """
        if seed is None and self._plain is not None:
            return self._plain.one_pass(batch_size, seed=None, drop_last=drop_last, first=first, share=share)
        num = self.num_batches(batch_size, drop_last)
        if isinstance(self.samples, LazySamples):
            return self._read_samples(self.samples, batch_size, range(first, num), seed, share)
        return self._index_arrays(batch_size, range(first, num), seed, share)

    def _index_arrays(
        self, batch_size: int, numbers: range, seed: int | None, share: tuple[int, int]
    ) -> Iterator[Batch]:
        """Batches of samples in memory, made a group at a time."""
        if seed is not None and self._may_keep:
            for leaf in _kept(self._leaves, self.device.type):
                leaf.make_ready()
        size = batch_size // share[1]
        draws = self._draws(batch_size, seed, share)
        on_device = draws
        if draws is not None and self.device.type != "cpu":
            on_device = draws.to(self.device)
        group = self.group or self._group_size(size)
        for start in range(numbers.start, numbers.stop, group):
            rows = slice(start * size, min(start + group, numbers.stop) * size)
            here = None if on_device is None else on_device.part(rows)
            host = here
            if draws is not None and on_device is not draws:
                host = draws.part(rows)
            made = [leaf.batch(rows, host, here) for leaf in self._leaves]
            yield from self._divide(made, size)

    def _draws(self, batch_size: int, seed: int | None, share: tuple[int, int]) -> Draws | None:
        """The draws of what this rank reads, at its positions one after the other."""
        draws = Draws.of(len(self.samples), self.samples.images, seed)
        if share[1] == 1:
            return draws
        num = len(self.samples) // batch_size
        positions = torch.arange(num * batch_size).view(num, share[1], -1)
        own = positions[:, share[0]].reshape(-1)
        return Draws(own) if draws is None else draws.part(own)

    def _group_size(self, size: int) -> int:
        """How many batches of ``size`` samples are made at a time."""
        num_bytes = sum(leaf.num_bytes for leaf in self._leaves)
        return made_together(size * num_bytes // max(1, len(self.samples)), self.device.type)

    def _divide(self, made: list[Tensor], size: int) -> Iterator[Batch]:
        """Batches of ``size`` samples from the leaves of a group; the last one may be smaller."""
        num = len(made[0])
        for first in range(0, num, size):
            parts = made
            if num > size:
                parts = [_aligned_rows(leaf, first, size) for leaf in made]
            yield with_leaves(self._arrays, parts)

    def _read_samples(
        self, samples: LazySamples, batch_size: int, numbers: range, seed: int | None, share: tuple[int, int]
    ) -> Iterator[Batch]:
        """Batches of samples that are read one by one."""
        order = samples.indices
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            order = order[torch.randperm(len(order), generator=generator).numpy()]
        size = batch_size // share[1]
        rows = []
        for number in numbers:
            begin = number * batch_size + share[0] * size
            rows.append(order[begin:begin + size])
        for batch in self._copies(self._loader.batches(samples, rows, seed)):
            yield self._finish(batch)

    def _finish(self, batch: Any) -> Batch:
        """Collated samples as networks read them: images through the pipeline, floats as float32, layout as asked."""
        found = leaves(batch)
        if self._pipeline is not None:
            found[0] = self._pipeline(found[0], None).permute(0, 3, 1, 2)
        return with_leaves(batch, [as_read(leaf, self._layout) for leaf in found])


class LeafArray:
    """One leaf of samples in memory, ``[N, ...]``, from which batches are taken.

    It lies on the device or in the host's memory, in its original form or in the form in which networks read it. In
    the latter a batch is one copy.

    Args:
        array: The values; never written to.
        device: Where batches are wanted.
        layout: Of tensors with four dimensions.
        pipeline: Makes floats of images; None where the values are used as they are.
        resident: Keep the array in the device's memory.
    """

    def __init__(
        self, array: np.ndarray, *, device: torch.device, layout: torch.memory_format, pipeline: ImagePipeline | None,
        resident: bool,
    ) -> None:
        self._array = array
        self._device = device
        self._layout = layout
        self._pipeline = pipeline
        self._original: Tensor | None = None
        self._ready: Tensor | None = None
        self._channels_inside = False
        if resident and pipeline is not None:
            self._original = torch.tensor(array, device=device)
        elif resident:
            self.make_ready()

    @property
    def num_bytes(self) -> int:
        """Size of the values in the form in which networks read them."""
        is_float = self._pipeline is not None or self._array.dtype.kind == "f"
        return self._array.size * (4 if is_float else self._array.dtype.itemsize)

    @property
    def takes_pixels(self) -> bool:
        """Whether the values are images that are normalised."""
        return self._pipeline is not None

    @property
    def fixed(self) -> bool:
        """Whether every pass reads the same values: no image is cropped or mirrored."""
        return self._pipeline is None or not self._pipeline.random

    def make_ready(self) -> None:
        """Bring all values into the form in which networks read them, once and for all."""
        if self._ready is not None:
            return
        if self._pipeline is not None:
            values = self._normalised(self._pipeline)
            read = as_read(values.permute(0, 3, 1, 2), self._layout)
            self._channels_inside = read.data_ptr() == values.data_ptr()
        else:
            read = as_read(torch.tensor(self._array, device=self._device), self._layout)
            self._channels_inside = not read.is_contiguous()
        # Rows are taken from contiguous memory; a batch is permuted afterwards, which moves no byte.
        self._ready = read.permute(0, 2, 3, 1) if self._channels_inside else read
        self._original = None

    def _normalised(self, pipeline: ImagePipeline) -> Tensor:
        """All images as float32 ``[N, H, W, C]``."""
        values = torch.empty(self._array.shape, dtype=torch.float32, device=self._device)
        size = max(1, _CONVERTED_BYTES * len(values) // max(1, self.num_bytes))
        for first in range(0, len(values), size):
            rows = slice(first, first + size)
            values[rows] = pipeline(self._taken(rows, None, None), None)
        return values

    def batch(self, rows: slice, host: Draws | None, here: Draws | None) -> Tensor:
        """The values at some positions of a pass: a new tensor on the device, as networks read it.

        Args:
            rows: The positions.
            host: Their draws, on the host; None for the fixed order.
            here: The same on the device.
        """
        if self._ready is not None:
            taken = self._ready[rows].clone() if here is None else self._ready.index_select(0, here.order)
            return taken.permute(0, 3, 1, 2) if self._channels_inside else taken
        taken = self._taken(rows, host, here)
        if self._pipeline is not None:
            taken = self._pipeline(taken, here).permute(0, 3, 1, 2)
        return as_read(taken, self._layout)

    def _taken(self, rows: slice, host: Draws | None, here: Draws | None) -> Tensor:
        """The values in their original form, on the device; not to be written to."""
        if self._original is not None:
            return self._original[rows] if here is None else self._original.index_select(0, here.order)
        chosen = np.array(self._array[rows]) if host is None else np.take(self._array, host.order.numpy(), axis=0)
        return to_device(torch.from_numpy(chosen), self._device)


def as_read(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """Floating point as float32, with four dimensions in a memory layout; anything else as it is."""
    if tensor.is_floating_point():
        tensor = tensor.float()
        if tensor.ndim == 4:
            return tensor.contiguous(memory_format=layout)
    return tensor


def _leaf_arrays(
    samples: ArraySamples, pipeline: ImagePipeline | None, device: torch.device, layout: torch.memory_format,
    resident: bool,
) -> list[LeafArray]:
    """The leaves of samples in memory; the pipeline is the first one's."""
    found = []
    for index, leaf in enumerate(leaves(samples.arrays)):
        own = pipeline if index == 0 else None
        found.append(LeafArray(np.asarray(leaf), device=device, layout=layout, pipeline=own, resident=resident))
    return found


def _kept(arrays: Sequence[LeafArray], device: str) -> list[LeafArray]:
    """The leaves that are kept as networks read them: those that never change, the smallest first, while they fit."""
    fixed = [leaf for leaf in arrays if leaf.fixed]
    found = []
    left = KEPT_BYTES[device]
    for leaf in sorted(fixed, key=lambda leaf: leaf.num_bytes):
        left -= leaf.num_bytes
        if left >= 0:
            found.append(leaf)
    return found


def kept_bytes(samples: ArraySamples, device: str, resident: bool, training: bool) -> int:
    """Bytes of a split in memory that its :class:`Batches` keep on their device.

    Args:
        samples: The split.
        device: ``"cpu"`` or ``"cuda"``.
        resident: Whether the samples lie in the memory of a GPU.
        training: Whether the split is trained on.
    """
    host = torch.device("cpu")
    pipeline = ImagePipeline(samples.images, host) if samples.images is not None else None
    arrays = _leaf_arrays(samples, pipeline, host, torch.contiguous_format, resident=False)
    kept = _kept(arrays, device) if training and (resident or device == "cpu") else []
    total = sum(leaf.num_bytes for leaf in kept)
    if not resident:
        return total
    for leaf, array in zip(arrays, leaves(samples.arrays), strict=True):
        if leaf not in kept:
            total += array.nbytes if leaf.takes_pixels else leaf.num_bytes
    return total


def made_together(batch_bytes: int, device: str) -> int:
    """How many batches of so many bytes are made at a time on a kind of device."""
    return max(1, GROUP_BYTES[device] // max(1, batch_bytes))


def _aligned_rows(leaf: Tensor, first: int, size: int) -> Tensor:
    """Some rows of a group's leaf, in memory that begins where that of a batch made alone would."""
    part = leaf[first : first + size]
    row_bytes = leaf.stride(0) * leaf.element_size()
    return part if size * row_bytes % _ALIGNMENT == 0 else part.clone()
