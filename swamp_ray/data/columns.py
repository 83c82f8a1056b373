"""One leaf of samples in memory, and how parts of it become batches on a device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from swamp_ray.data.augmentation import Draws, Pixels, to_device

_PIECE_BYTES = 32 * 2**20
"""Of floats that are made at a time where a whole column is normalised."""


def as_read(tensor: Tensor, layout: torch.memory_format) -> Tensor:
    """Floating point as float32, with four dimensions in a memory layout; anything else as it is."""
    if tensor.is_floating_point():
        tensor = tensor.float()
        if tensor.ndim == 4:
            return tensor.contiguous(memory_format=layout)
    return tensor


class Column:
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
        self, array: np.ndarray, *, device: torch.device, layout: torch.memory_format, pixels: Pixels | None,
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

    def _normalised(self, pixels: Pixels) -> Tensor:
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
