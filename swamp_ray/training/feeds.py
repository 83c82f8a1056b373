"""Batches of a split on a device: order, augmentation and normalisation, vectorised."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .loading import Loader, Upload
from .nests import leaves, tree_map
from .samples import ArraySamples, Images, LazySamples, Samples

Batch = Any


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
    """

    def __init__(
        self, samples: Samples, *, device: torch.device, channels_last: bool, on_device: bool,
        loader: Loader | None = None,
    ) -> None:
        self.samples, self.device = samples, device
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._pixels = _Pixels(samples.images, device) if samples.images is not None else None
        self._resident: Any = None
        if isinstance(samples, ArraySamples) and on_device and device.type != "cpu":
            self._resident = tree_map(lambda array: torch.tensor(array, device=device), samples.arrays)
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
        num = self.num_batches(batch_size, drop_last)
        part, size = share[0] * (batch_size // share[1]), batch_size // share[1]
        places = [slice(index * batch_size + part, index * batch_size + part + size) for index in range(first, num)]
        if isinstance(self.samples, LazySamples):
            yield from self._lazy(self.samples, places, seed)
            return
        draws = Draws.of(len(self.samples), self.samples.images, seed)
        on_device = None if draws is None else draws.to(self.device)
        for rows in places:
            raw = self._gather(self.samples.arrays, rows, draws, on_device)
            yield self._finish(raw, None if on_device is None else on_device.part(rows))

    def _gather(self, arrays: Any, rows: slice, draws: Draws | None, on_device: Draws | None) -> Any:
        """The samples' own values, as new tensors on the device."""
        if self._resident is not None:
            if on_device is None:
                return tree_map(lambda tensor: tensor[rows].clone(), self._resident)
            return tree_map(lambda tensor: tensor.index_select(0, on_device.order[rows]), self._resident)
        if draws is None:
            return tree_map(lambda array: self._upload(np.array(array[rows])), arrays)
        chosen = draws.order[rows].numpy()
        return tree_map(lambda array: self._upload(np.take(array, chosen, axis=0)), arrays)

    def _upload(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _finish(self, raw: Any, draws: Draws | None) -> Batch:
        """Images through the pipeline, floats to float32, layout as asked."""
        first = leaves(raw)[0]
        pixels = self._pixels

        def finish(tensor: Tensor) -> Tensor:
            if pixels is not None and tensor is first:
                tensor = pixels(tensor, draws).permute(0, 3, 1, 2)
            elif tensor.is_floating_point():
                tensor = tensor.float()
            if tensor.ndim == 4 and tensor.is_floating_point():
                return tensor.contiguous(memory_format=self._format)
            return tensor

        return tree_map(finish, raw)

    def _lazy(self, samples: LazySamples, places: list[slice], seed: int | None) -> Iterator[Batch]:
        order = samples.indices
        if seed is not None:
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(seed)).numpy()]
        assert self._lazily is not None
        loader, upload = self._lazily
        for batch in upload(loader.batches(samples, [order[rows] for rows in places], seed)):
            yield self._finish(batch, None)


@dataclass(frozen=True)
class Draws:
    """All random numbers of one pass.

    Attributes:
        order: Which sample comes when, int64 ``[N]``.
        top: Row of each crop's corner in the padded image, int64 ``[N]``; None without crops.
        left: Column likewise.
        flip: Whether a crop is mirrored, bool ``[N]``; None without flips.
    """

    order: Tensor
    top: Tensor | None
    left: Tensor | None
    flip: Tensor | None

    @classmethod
    def of(cls, num: int, images: Images | None, seed: int | None) -> Draws | None:
        """Draw for one pass over ``num`` samples; None without a seed."""
        if seed is None:
            return None
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(num, generator=generator)
        top = left = flip = None
        if images is not None and images.crop:
            offsets = torch.randint(0, 2 * images.crop_padding + 1, (2, num), generator=generator)
            top, left = offsets[0], offsets[1]
        if images is not None and images.flip:
            flip = torch.randint(0, 2, (num,), generator=generator).bool()
        return cls(order, top, left, flip)

    def to(self, device: torch.device) -> Draws:
        """The same numbers on a device."""
        return Draws(*(None if part is None else part.to(device) for part in self._parts()))  # type: ignore[arg-type]

    def part(self, rows: slice) -> Draws:
        """The draws of some positions of the pass."""
        return Draws(*(None if part is None else part[rows] for part in self._parts()))  # type: ignore[arg-type]

    def _parts(self) -> tuple[Tensor | None, ...]:
        return self.order, self.top, self.left, self.flip


class _Pixels:
    """uint8 ``[B, H, W, C]`` to normalised float32 of the same shape, cropped and mirrored as drawn."""

    def __init__(self, images: Images, device: torch.device) -> None:
        self.images, self.device = images, device
        std = torch.tensor(images.std, dtype=torch.float64)
        self._scale = (1.0 / (255.0 * std)).float().to(device)
        self._shift = (-torch.tensor(images.mean, dtype=torch.float64) / std).float().to(device)

    def __call__(self, images: Tensor, draws: Draws | None) -> Tensor:
        batch, height, width, channels = images.shape
        if draws is not None and draws.top is not None and draws.left is not None:
            rows = self._crop(images, draws.top, draws.left)
        else:
            rows = images.reshape(batch, height, width * channels)
        if draws is not None and draws.flip is not None:
            rows = rows.gather(2, self._columns(width, channels)[draws.flip.long()][:, None].expand(rows.shape))
        # Normalising whole rows keeps the inner loop long; broadcasting over 3 channels takes twice the time.
        scaled = torch.addcmul(self._shift.repeat(width), rows.float(), self._scale.repeat(width))
        return scaled.view(batch, height, width, channels)

    def _crop(self, images: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Windows of the padded images: ``[B, H, W * C]``, each row copied as one piece."""
        batch, height, width, channels = images.shape
        padding = self.images.crop_padding
        padded = F.pad(images, (0, 0, padding, padding, padding, padding))
        tall, wide = height + 2 * padding, width + 2 * padding
        windows = padded.as_strided((batch * tall * wide - width + 1, width * channels), (channels, 1))
        line = torch.arange(batch, device=self.device)[:, None] * tall + top[:, None]
        line = line + torch.arange(height, device=self.device)
        return windows.index_select(0, (line * wide + left[:, None]).view(-1)).view(batch, height, -1)

    def _columns(self, width: int, channels: int) -> Tensor:
        """Byte positions of a row as it is, and mirrored: int64 ``[2, W * C]``."""
        columns = torch.arange(width * channels, device=self.device).view(width, channels)
        return torch.stack([columns.reshape(-1), columns.flip(0).reshape(-1)])
