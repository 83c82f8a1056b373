"""The structure that a mask may have, as a config names it; what it means for weights is in sparsity/structure.py."""

from __future__ import annotations

import re
from dataclasses import dataclass

NONE = "none"
CHANNELS = "channels"
PATTERN = "pattern"
BLOCKS = "blocks"
_PATTERN = re.compile(r"(\d{1,4}):(\d{1,4})")
_BLOCKS = re.compile(r"blocks:(\d{1,4})x(\d{1,4})")
_FORMS = "none, N:M such as 2:4, channels, or blocks:AxB such as blocks:4x4"
_TARGET_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Structure:
    """A structure.

    Attributes:
        text: As it is written in a config.
        kind: ``"pattern"`` (N:M), ``"channels"`` or ``"blocks"``.
        first, second: N and M, or A and B; 0 for channels.
    """

    text: str
    kind: str
    first: int = 0
    second: int = 0

    @property
    def keeps_pattern(self) -> bool:
        """Whether every group of M inputs keeps the same number of weights; else whole units compete."""
        return self.kind == PATTERN

    @property
    def target(self) -> float:
        """N:M: the sparsity of the finished pattern, 1 - N / M."""
        return 1 - self.first / self.second

    def has_target(self, target: float) -> bool:
        """N:M: whether a sparsity is that of the finished pattern, to three decimals."""
        return abs(target - self.target) < _TARGET_TOLERANCE


def parse_structure(text: str) -> Structure | None:
    """The structure that a config names; None for ``none``.

    Raises:
        ValueError: It is none of the forms, or its numbers have no meaning.
    """
    if text == NONE:
        return None
    if text == CHANNELS:
        return Structure(text, CHANNELS)
    found = _PATTERN.fullmatch(text)
    if found is not None:
        kept = int(found[1])
        of = int(found[2])
        if not 0 < kept < of:
            raise ValueError("must keep at least 1 and fewer than all of the weights of a group")
        return Structure(text, PATTERN, kept, of)
    found = _BLOCKS.fullmatch(text)
    if found is not None:
        rows = int(found[1])
        columns = int(found[2])
        if rows * columns < 2:
            raise ValueError("must have blocks of at least 2 weights")
        return Structure(text, BLOCKS, rows, columns)
    raise ValueError(f"must be {_FORMS}")
