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
from swamp_ray.data.trees import leaves, tree_map

_PIECE_BYTES = 32 * 2**20
"""Of floats that are made at a time where a whole column is normalised."""


Batch = Any


KEPT_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
"""Up to so many bytes of a split are kept in the form in which networks read them, where every pass reads the same."""
GROUP_BYTES = {"cpu": 0, "cuda": 64 * 2**20}
"""Of the batches that are made at a time: few launches on a GPU; on a CPU a batch is read while it is in the cache."""
_ALIGNMENT = 512
"""Bytes. Batches begin where memory that is asked for would: libraries choose their kernels by it."""


class Batches:
    """The batches of one split on one device.

    Every batch is a nest of fresh tensors, which the model may overwrite; floating point is float32,
    images are ``[B, C, H, W]``.

    Args:
        samples: The split.
        device: Where batches are wanted.
        channels_last: Give 4-D floating-point tensors in the channels-last layout.
        on_device: Keep arrays in the device's memory; without effect on the CPU.
        loader: Reads lazy samples; by default this process does.

    Attributes:
        group: How many batches of samples in memory are made at a time; None: as many as fit into ``GROUP_BYTES``.
            It decides over speed and memory alone.
    """

    def __init__(
        self, samples: Samples, *, device: torch.device, channels_last: bool, on_device: bool,
        loader: Loader | None = None,
    ) -> None:
        self.samples, self.device = samples, device
        self.group: int | None = None
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._pixels = ImagePipeline(samples.images, device) if samples.images is not None else None
        self._columns: list[LeafArray] = []
        self._arrays: Any = None
        if isinstance(samples, ArraySamples):
            resident = on_device and device.type != "cpu"
            self._columns = [
                LeafArray(array, device=device, layout=self._format, resident=resident,
                       pixels=self._pixels if index == 0 else None)
                for index, array in enumerate(leaves(samples.arrays))]
            self._keeps = resident or device.type == "cpu"
            self._arrays = samples.arrays
            self._flat = type(self._arrays) is tuple and all(isinstance(part, np.ndarray) for part in self._arrays)
        self._plain: Batches | None = None
        if isinstance(samples, ArraySamples) and samples.plain is not None:
            plain = ArraySamples(samples.plain, samples.images)
            self._plain = Batches(plain, device=device, channels_last=channels_last, on_device=on_device)
        self._lazily: tuple[Loader, DeviceCopies] | None = None
        if isinstance(samples, LazySamples):
            self._lazily = loader or Loader([samples], 0, pinned=device.type == "cuda"), DeviceCopies(device)

    def num_batches(self, batch_size: int, drop_last: bool) -> int:
        """How many batches one pass has."""
        return len(self.samples) // batch_size if drop_last else math.ceil(len(self.samples) / batch_size)

    def one_pass(
        self, batch_size: int, *, seed: int | None, drop_last: bool, first: int = 0, share: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """One pass over the split.

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
            yield from self._plain.one_pass(batch_size, seed=None, drop_last=drop_last, first=first, share=share)
            return
        num = self.num_batches(batch_size, drop_last)
        part, size = share[0] * (batch_size // share[1]), batch_size // share[1]
        if isinstance(self.samples, LazySamples):
            places = [slice(index * batch_size + part, index * batch_size + part + size) for index in range(first, num)]
            yield from self._lazy(self.samples, places, seed)
            return
        if seed is not None and self._keeps:
            self._keep()
        draws = self._draws(batch_size, seed, share)
        on_device = draws if draws is None or self.device.type == "cpu" else draws.to(self.device)
        group = self.group or self._fitting(size)
        for start in range(first, num, group):
            rows = slice(start * size, min(start + group, num) * size)
            here = None if on_device is None else on_device.part(rows)
            host = here if on_device is draws or draws is None else draws.part(rows)
            yield from self._divided([column.batch(rows, host, here) for column in self._columns], size)

    def _keep(self) -> None:
        """Bring what every pass reads in the same way into its last form."""
        for column in _kept(self._columns, self.device.type):
            column.make_ready()

    def _draws(self, batch_size: int, seed: int | None, share: tuple[int, int]) -> Draws | None:
        """The draws of what this rank reads, at its positions one after the other."""
        draws = Draws.of(len(self.samples), self.samples.images, seed)
        if share[1] == 1:
            return draws
        num = len(self.samples) // batch_size
        own = torch.arange(num * batch_size).view(num, share[1], -1)[:, share[0]].reshape(-1)
        return Draws(own) if draws is None else draws.part(own)

    def _fitting(self, size: int) -> int:
        """How many batches of ``size`` samples are made at a time."""
        num_bytes = sum(column.num_bytes for column in self._columns)
        return made_together(size * num_bytes // max(1, len(self.samples)), self.device.type)

    def _divided(self, whole: list[Tensor], size: int) -> Iterator[Batch]:
        """Batches of ``size`` samples from the leaves of several, the last one perhaps smaller."""
        num = len(whole[0])
        for first in range(0, num, size):
            parts = whole if num <= size else [_part(leaf, first, size) for leaf in whole]
            yield tuple(parts) if self._flat else _nest(self._arrays, parts)

    def _finish(self, raw: Any) -> Batch:
        """Images through the pipeline, floats to float32, layout as asked."""
        first = leaves(raw)[0]
        pixels = self._pixels

        def finish(tensor: Tensor) -> Tensor:
            if pixels is not None and tensor is first:
                tensor = pixels(tensor, None).permute(0, 3, 1, 2)
            return as_read(tensor, self._format)

        return tree_map(finish, raw)

    def _lazy(self, samples: LazySamples, places: list[slice], seed: int | None) -> Iterator[Batch]:
        order = samples.indices
        if seed is not None:
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed)).numpy()]
        assert self._lazily is not None
        loader, upload = self._lazily
        for batch in upload(loader.batches(samples, [order[rows] for rows in places], seed)):
            yield self._finish(batch)


def _kept(columns: Sequence[LeafArray], device: str) -> list[LeafArray]:
    """The leaves that are kept as networks read them, the smallest first, as far as there is room."""
    left, found = KEPT_BYTES[device], []
    for column in sorted((one for one in columns if one.fixed), key=lambda one: one.num_bytes):
        left -= column.num_bytes
        if left >= 0:
            found.append(column)
    return found


def kept_bytes(samples: ArraySamples, device: str, resident: bool, training: bool) -> int:
    """What a source of samples in memory keeps of them on its device.

    Args:
        samples: The split.
        device: ``"cpu"`` or ``"cuda"``.
        resident: Whether the samples lie in the memory of a GPU.
        training: Whether the split is trained on.
    """
    host = torch.device("cpu")
    pixels = ImagePipeline(samples.images, host) if samples.images is not None else None
    arrays = [np.asarray(leaf) for leaf in leaves(samples.arrays)]
    columns = [LeafArray(array, device=host, layout=torch.contiguous_format, resident=False,
                      pixels=pixels if index == 0 else None) for index, array in enumerate(arrays)]
    kept = _kept(columns, device) if training and (resident or device == "cpu") else []
    others = [array.nbytes if column.takes_pixels else column.num_bytes
              for column, array in zip(columns, arrays, strict=True) if column not in kept]
    return sum(column.num_bytes for column in kept) + (sum(others) if resident else 0)


def made_together(batch_bytes: int, device: str) -> int:
    """How many batches of so many bytes are made at a time on a kind of device."""
    return max(1, GROUP_BYTES[device] // max(1, batch_bytes))


def _part(leaf: Tensor, first: int, size: int) -> Tensor:
    """Some rows of a leaf of several batches, as if they had been made alone."""
    part = leaf[first : first + size]
    return part if size * leaf.stride(0) * leaf.element_size() % _ALIGNMENT == 0 else part.clone()


def _nest(like: Any, parts: list[Tensor]) -> Batch:
    """The leaves of a nest replaced in order."""
    given = iter(parts)
    return tree_map(lambda _: next(given), like)


def as_read(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """Floating point as float32, with four dimensions in a memory layout; anything else as it is."""
    if tensor.is_floating_point():
        tensor = tensor.float()
        if tensor.ndim == 4:
            return tensor.contiguous(memory_format=layout)
    return tensor


class LeafArray:
    """An array ``[N, ...]`` from which batches are taken.

    It lies on the device, or in the host's memory; as it came, or in the form in which networks read it, so that a
    batch is one copy.

    Args:
        array: The values; never written to.
        device: Where batches are wanted.
        layout: Of tensors with four dimensions.
        pixels: Makes floats of images; None where the values are used as they are.
        resident: Keep the array in the device's memory.
    """

    def __init__(
        self, array: np.ndarray, *, device: torch.device, layout: torch.memory_format, pixels: ImagePipeline | None,
        resident: bool,
    ) -> None:
        self._array, self._device, self._layout, self._pixels = array, device, layout, pixels
        self._resident = resident
        self._raw: Tensor | None = None
        self._ready: Tensor | None = None
        self._channels_inside = False
        if resident and pixels is not None:
            self._raw = torch.tensor(array, device=device)
        elif resident:
            self.make_ready()

    @property
    def num_bytes(self) -> int:
        """What the values take up in the form in which networks read them."""
        itemsize = 4 if self._pixels or self._array.dtype.kind == "f" else self._array.dtype.itemsize
        return self._array.size * itemsize

    @property
    def takes_pixels(self) -> bool:
        """Whether the values are images that are normalised."""
        return self._pixels is not None

    @property
    def fixed(self) -> bool:
        """Whether every pass reads the same values: no image is cropped or mirrored."""
        return self._pixels is None or not self._pixels.random

    def make_ready(self) -> None:
        """Bring all values into the form in which networks read them, once and for all."""
        if self._ready is not None:
            return
        if self._pixels is not None:
            values = self._normalised(self._pixels)
            read = as_read(values.permute(0, 3, 1, 2), self._layout)
            self._channels_inside = read.data_ptr() == values.data_ptr()
        else:
            read = as_read(torch.tensor(self._array, device=self._device), self._layout)
            self._channels_inside = not read.is_contiguous()
        # Rows are taken from what lies contiguously; the batch is turned afterwards, which moves nothing.
        self._ready = read.permute(0, 2, 3, 1) if self._channels_inside else read
        self._raw = None

    def _normalised(self, pixels: ImagePipeline) -> Tensor:
        """All images as float32 ``[N, H, W, C]``."""
        values = torch.empty(self._array.shape, dtype=torch.float32, device=self._device)
        size = max(1, _PIECE_BYTES * len(values) // max(1, self.num_bytes))
        for first in range(0, len(values), size):
            rows = slice(first, first + size)
            values[rows] = pixels(self._taken(rows, None, None), None)
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
        if self._pixels is not None:
            taken = self._pixels(taken, here).permute(0, 3, 1, 2)
        return as_read(taken, self._layout)

    def _taken(self, rows: slice, host: Draws | None, here: Draws | None) -> Tensor:
        """The values as they came, on the device; not to be written to."""
        if self._raw is not None:
            return self._raw[rows] if here is None else self._raw.index_select(0, here.order)
        chosen = np.array(self._array[rows]) if host is None else np.take(self._array, host.order.numpy(), axis=0)
        return to_device(torch.from_numpy(chosen), self._device)
