"""Networks of a few hundred weights whose results are pinned."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def conv(num_classes: int = 3) -> nn.Module:
    """A convolution with batch normalisation."""
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, num_classes))


def mlp(num_classes: int = 3) -> nn.Module:
    """Two layers with dropout between them."""
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, num_classes))


class Attention(nn.Module):
    """Attention over the rows of an image."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        hidden = self.block(self.embed(images.squeeze(1)))
        return self.head(torch.mean(hidden, dim=1))
