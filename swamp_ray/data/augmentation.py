"""Images as a network reads them: cropped and mirrored as drawn, normalised, in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from swamp_ray.data.samples import ImageSettings


@dataclass(frozen=True)
class Draws:
    """All random numbers of one pass: order, crops and flips.

    Attributes:
        order: Which sample comes when, int64 ``[N]``.
        top: Row of each crop's corner in the padded image, int64 ``[N]``; None without crops.
        left: Column of that corner, int64 ``[N]``.
        flip: Whether a crop is mirrored, bool ``[N]``; None without flips.
    """

    order: Tensor
    top: Tensor | None = None
    left: Tensor | None = None
    flip: Tensor | None = None

    @classmethod
    def of(cls, num: int, images: ImageSettings | None, seed: int | None) -> Draws | None:
        """Draw for one pass over ``num`` samples; None without a seed."""
        if seed is None:
            return None
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(num, generator=generator)
        top = left = flip = None
        if images is not None and images.crop:
            offsets = torch.randint(0, 2 * images.crop_padding + 1, (2, num), generator=generator)
            top = offsets[0]
            left = offsets[1]
        if images is not None and images.flip:
            flip = torch.randint(0, 2, (num,), generator=generator).bool()
        return cls(order, top, left, flip)

    def to(self, device: torch.device) -> Draws:
        """The same numbers on a device; the copies are only started."""
        return self._map(lambda numbers: to_device(numbers, device))

    def part(self, rows: slice | Tensor) -> Draws:
        """The draws of some positions of the pass."""
        return self._map(lambda numbers: numbers[rows])

    def _map(self, function: Callable[[Tensor], Tensor]) -> Draws:
        top = None if self.top is None else function(self.top)
        left = None if self.left is None else function(self.left)
        flip = None if self.flip is None else function(self.flip)
        return Draws(function(self.order), top, left, flip)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device. A copy to CUDA is only started, from pinned memory."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class ImagePipeline:
    """uint8 ``[B, H, W, C]`` to normalised float32 of the same shape, cropped and mirrored as drawn.

    Tables that depend on the images' size alone are computed at the first batch and kept.
    """

    def __init__(self, images: ImageSettings, device: torch.device) -> None:
        self.images = images
        self.device = device
        std = torch.tensor(images.std, dtype=torch.float64)
        self._scale = (1.0 / (255.0 * std)).float().to(device)
        self._shift = (-torch.tensor(images.mean, dtype=torch.float64) / std).float().to(device)
        self._rows: dict[int, tuple[Tensor, Tensor]] = {}
        self._mirror: dict[int, Tensor] = {}
        self._corners: dict[tuple[int, int, int], Tensor] = {}

    @property
    def random(self) -> bool:
        """Whether a training pass draws anything for an image."""
        return self.images.crop or self.images.flip

    def __call__(self, images: Tensor, draws: Draws | None) -> Tensor:
        """Normalised images; without draws as they are, neither cropped nor mirrored."""
        batch, height, width, channels = images.shape
        if draws is not None and draws.top is not None and draws.left is not None:
            rows = self._crop(images, draws.top, draws.left)
        else:
            rows = images.reshape(batch, height, width * channels)
        if draws is not None and draws.flip is not None:
            columns = self._columns(width)[draws.flip.long()]
            rows = rows.gather(2, columns[:, None].expand(rows.shape))
        shift, scale = self._normalisation(width)
        return torch.addcmul(shift, rows.float(), scale).view(batch, height, width, channels)

    def _normalisation(self, width: int) -> tuple[Tensor, Tensor]:
        """Shift and scale of a row, each ``[W * C]``: broadcasting over 3 channels takes twice the time."""
        if width not in self._rows:
            self._rows[width] = self._shift.repeat(width), self._scale.repeat(width)
        return self._rows[width]

    def _crop(self, images: Tensor, top: Tensor, left: Tensor) -> Tensor:
        """Windows of the padded images: ``[B, H, W * C]``, each row copied as one piece."""
        batch, height, width, channels = images.shape
        padding = self.images.crop_padding
        padded = F.pad(images, (0, 0, padding, padding, padding, padding))
        tall = height + 2 * padding
        wide = width + 2 * padding
        windows = padded.as_strided((batch * tall * wide - width + 1, width * channels), (channels, 1))
        lines = self._lines(batch, height, width) + torch.add(left, top, alpha=wide)[:, None]
        return windows.index_select(0, lines.view(-1)).view(batch, height, -1)

    def _lines(self, batch: int, height: int, width: int) -> Tensor:
        """Where the lines of each image's upper left crop begin, int64 ``[B, H]``."""
        key = batch, height, width
        if key not in self._corners:
            padding = self.images.crop_padding
            tall = height + 2 * padding
            wide = width + 2 * padding
            line = torch.arange(batch, device=self.device)[:, None] * tall + torch.arange(height, device=self.device)
            self._corners[key] = line * wide
        return self._corners[key]

    def _columns(self, width: int) -> Tensor:
        """Byte positions of a row as it is, and mirrored: int64 ``[2, W * C]``."""
        if width not in self._mirror:
            channels = len(self.images.mean)
            columns = torch.arange(width * channels, device=self.device).view(width, channels)
            self._mirror[width] = torch.stack([columns.reshape(-1), columns.flip(0).reshape(-1)])
        return self._mirror[width]
