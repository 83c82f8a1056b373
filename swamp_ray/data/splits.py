"""TODO."""

from __future__ import annotations

from typing import Any

import numpy as np

from swamp_ray.data.trees import tree_map
from swamp_ray.errors import UserError
from swamp_ray.seeding import derive_seed


def shuffled(num: int, seed: int, purpose: str, *indices: int) -> np.ndarray:
    """A permutation of ``range(num)`` as a pure function of the arguments, int64."""
    word = derive_seed(seed, purpose, *indices)
    # NumPy promises to keep the stream of this legacy generator for ever, which it does not for the newer ones.
    return np.random.RandomState(np.array([word & 0xFFFFFFFF, word >> 32], dtype=np.uint32)).permutation(num)


def class_counts(labels: np.ndarray, total: int) -> dict[int, int]:
    """How many of each class make ``total`` samples with the classes' own shares.

    Largest remainders, ties to the lower class; each count is within one of the exact share.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    floors = sizes * total // len(labels)
    remainders = sizes * total % len(labels)
    for index in np.argsort(-remainders, kind="stable")[: total - int(floors.sum())]:
        floors[index] += 1
    return {int(c): int(n) for c, n in zip(classes, floors, strict=True)}


def first_rows(num: int, labels: np.ndarray | None, limit: int | None) -> np.ndarray:
    """Rows that a limit leaves, ascending: the first of each class, with the classes' shares kept."""
    if limit is None or limit >= num:
        return np.arange(num)
    if labels is None:
        return np.arange(limit)
    wanted = class_counts(labels, limit)
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:n] for c, n in wanted.items()]))


def hold_out(num: int, labels: np.ndarray | None, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split ``range(num)`` into the rows that stay and those held out.

    Exactly floor(num x share + 1/2) rows are held out, at least one, stratified over integer labels.
    The rows that stay come in a random but fixed order, so that no batch of a fixed-order pass
    holds one class only; those held out are ascending.

    Args:
        num: Number of rows.
        labels: int64 ``[num]``, or None for a plain random split.
        share: In (0, 1).
        seed: The only thing besides the labels that decides the split.

    Raises:
        UserError: Nothing would stay.
    """
    count = max(1, int(np.floor(num * share + 0.5)))
    if count >= num:
        raise UserError(f"{num} training samples are too few to hold out {share:g} of them for validation",
                        where="data.validation", do="Use more samples or another share.")
    if labels is None:
        held = shuffled(num, seed, "validation")[:count]
    else:
        held = np.concatenate([
            np.flatnonzero(labels == c)[shuffled(int((labels == c).sum()), seed, "validation", c)[:n]]
            for c, n in class_counts(labels, count).items()
        ])
    return fixed_order(np.setdiff1d(np.arange(num), held), seed), np.sort(held)


def fixed_order(rows: np.ndarray, seed: int) -> np.ndarray:
    """The rows in a random order that only the seed decides, for passes without shuffling."""
    return rows[shuffled(len(rows), seed, "fixed order")]


def take(arrays: Any, rows: np.ndarray) -> Any:
    """The rows of every leaf of a nest, contiguous."""
    return tree_map(lambda leaf: np.take(leaf, rows, axis=0), arrays)
