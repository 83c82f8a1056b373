"""Data and networks of the study's blocks that are no built-in ones: MNIST, sentences as token ids, a Transformer."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swamp_ray.errors import UserError

PADDING = 0
MAX_TOKENS = 64


def mnist() -> dict[str, Any]:
    """MNIST from ``mnist-train.npz`` and ``mnist-test.npz``: uint8 images ``[N, 28, 28, 1]`` and labels."""
    splits: dict[str, Any] = {}
    for split in ("train", "test"):
        with np.load(_file(f"mnist-{split}.npz")) as arrays:
            splits[split] = (arrays["images"][..., None], arrays["labels"].astype(np.int64))
    return {**splits, "num_classes": 10}


def sentences(name: str, max_tokens: int = 32) -> dict[str, Any]:
    """Token ids ``[N, max_tokens]`` (0 is padding) and labels of one of the sets in ``text/``, official splits.

    Args:
        name: ``sst2``, ``trec``, ``cola``, ...
        max_tokens: Longer sentences are cut.
    """
    if not 1 <= max_tokens <= MAX_TOKENS:
        raise UserError(f"must be between 1 and {MAX_TOKENS}", got=max_tokens, where="data.options.max_tokens")
    splits: dict[str, Any] = {}
    with np.load(_file(f"text/{name}-ids.npz")) as arrays:
        for split in ("train", "validation", "test"):
            if f"{split}_ids" not in arrays:
                continue
            ids = arrays[f"{split}_ids"][:, :max_tokens].astype(np.int64)
            width = max_tokens - ids.shape[1]
            padded = np.pad(ids, ((0, 0), (0, width)), constant_values=PADDING)
            splits[split] = (padded, arrays[f"{split}_labels"].astype(np.int64))
    num_classes = 1 + int(splits["train"][1].max())
    return {**splits, "num_classes": num_classes}


def _file(name: str) -> Path:
    folder = os.environ.get("SWAMP_DATA")
    if not folder:
        raise UserError("the folder of the study's data is not known", do="Name it in SWAMP_DATA.", where="data.name")
    path = Path(folder) / name
    if not path.is_file():
        raise UserError("the study's data are not there", got=str(path), where="SWAMP_DATA")
    return path


class SmallTransformer(nn.Module):
    """An encoder over token ids whose mean over the tokens is classified (Vaswani et al., 2017; norms first).

    The embeddings are no prunable weights; the prunable ones are the projections of attention, both layers of each
    feed-forward network, and the classifier.

    Args:
        num_classes: Size of the output.
        vocabulary: Number of token ids.
        width, depth, heads: Of the encoder.
        max_tokens: The longest input.
        dropout: Behind each residual branch and the embeddings.
    """

    def __init__(self, num_classes: int, vocabulary: int = 20_066, width: int = 64, depth: int = 2, heads: int = 4,
                 max_tokens: int = MAX_TOKENS, dropout: float = 0.1) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width, padding_idx=PADDING)
        self.positions = nn.Embedding(max_tokens, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Scores ``[batch, classes]`` of ids ``[batch, tokens]``."""
        present = ids != PADDING
        hidden = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        hidden = self.dropout(hidden)
        for block in self.blocks:
            hidden = block(hidden, present)
        weights = present.to(hidden.dtype).unsqueeze(-1)
        total = (self.norm(hidden) * weights).sum(dim=1)
        return self.classifier(total / weights.sum(dim=1).clamp_min(1.0))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.first_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.second_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, present: Tensor) -> Tensor:
        hidden = hidden + self.dropout(self._attended(self.first_norm(hidden), present))
        expanded = F.gelu(self.expand(self.second_norm(hidden)))
        return hidden + self.dropout(self.contract(expanded))

    def _attended(self, hidden: Tensor, present: Tensor) -> Tensor:
        batch, length, width = hidden.shape
        parts = self.query_key_value(hidden).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-2, -1) / (width // self.heads) ** 0.5
        scores = scores.masked_fill(~present[:, None, None, :], -torch.inf)
        mixed = scores.softmax(dim=-1) @ value
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))
