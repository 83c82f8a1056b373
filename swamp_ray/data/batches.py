"""Batches of a split on a device: order, augmentation and normalisation, vectorised."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swamp_ray.data.augmentation import Draws, Pixels
from swamp_ray.data.columns import Column, as_read
from swamp_ray.data.loader import Loader, Upload
from swamp_ray.data.samples import ArraySamples, LazySamples, Samples
from swamp_ray.data.trees import leaves, tree_map

Batch = Any


KEPT_BYTES = {"cpu": 256 * 2**20, "cuda": 2**30}
"""Up to so many bytes of a split are kept in the form in which networks read them, where every pass reads the same."""
GROUP_BYTES = {"cpu": 0, "cuda": 64 * 2**20}
"""Of the batches that are made at a time: few launches on a GPU; on a CPU a batch is read while it is in the cache."""
_ALIGNMENT = 512
"""Bytes. Batches begin where memory that is asked for would: libraries choose their kernels by it."""


class Feed:
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
        self._pixels = Pixels(samples.images, device) if samples.images is not None else None
        self._columns: list[Column] = []
        self._arrays: Any = None
        if isinstance(samples, ArraySamples):
            resident = on_device and device.type != "cpu"
            self._columns = [
                Column(array, device=device, layout=self._format, resident=resident,
                       pixels=self._pixels if index == 0 else None)
                for index, array in enumerate(leaves(samples.arrays))]
            self._keeps = resident or device.type == "cpu"
            self._arrays = samples.arrays
            self._flat = type(self._arrays) is tuple and all(isinstance(part, np.ndarray) for part in self._arrays)
        self._plain: Feed | None = None
        if isinstance(samples, ArraySamples) and samples.plain is not None:
            self._plain = Feed(ArraySamples(samples.plain, samples.images), device=device, channels_last=channels_last,
                               on_device=on_device)
        self._lazily: tuple[Loader, Upload] | None = None
        if isinstance(samples, LazySamples):
            self._lazily = loader or Loader([samples], 0, pinned=device.type == "cuda"), Upload(device)

    def num_batches(self, batch_size: int, drop_last: bool) -> int:
        """How many batches one pass has."""
        return len(self.samples) // batch_size if drop_last else math.ceil(len(self.samples) / batch_size)

    def batches(
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
            yield from self._plain.batches(batch_size, seed=None, drop_last=drop_last, first=first, share=share)
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


def _kept(columns: Sequence[Column], device: str) -> list[Column]:
    """The leaves that are kept as networks read them, the smallest first, as far as there is room."""
    left, found = KEPT_BYTES[device], []
    for column in sorted((one for one in columns if one.fixed), key=lambda one: one.num_bytes):
        left -= column.num_bytes
        if left >= 0:
            found.append(column)
    return found


def kept_bytes(samples: ArraySamples, device: str, resident: bool, training: bool) -> int:
    """What a feed of samples in memory keeps of them on its device.

    Args:
        samples: The split.
        device: ``"cpu"`` or ``"cuda"``.
        resident: Whether the samples lie in the memory of a GPU.
        training: Whether the split is trained on.
    """
    host = torch.device("cpu")
    pixels = Pixels(samples.images, host) if samples.images is not None else None
    arrays = [np.asarray(leaf) for leaf in leaves(samples.arrays)]
    columns = [Column(array, device=host, layout=torch.contiguous_format, resident=False,
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
