"""Which samples make up each split: limits, and the validation samples that are held out of the training samples.

Splits are pure functions of the labels and of a seed; integer labels make them stratified.
"""

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
    generator = np.random.RandomState(np.array([word & 0xFFFFFFFF, word >> 32], dtype=np.uint32))
    return generator.permutation(num)


def class_counts(labels: np.ndarray, total: int) -> dict[int, int]:
    """How many of each class make ``total`` samples with the classes' own shares.

    Largest remainders, ties to the lower class; each count is within one of the exact share.
    """
    classes, sizes = np.unique(labels, return_counts=True)
    counts = sizes * total // len(labels)
    remainders = sizes * total % len(labels)
    missing = total - int(counts.sum())
    # A stable sort leaves equal remainders in the order of the classes.
    for index in np.argsort(-remainders, kind="stable")[:missing]:
        counts[index] += 1
    return dict(zip(classes.tolist(), counts.tolist(), strict=True))


def stratified_draw(labels: np.ndarray, total: int, seed: int, purpose: str) -> np.ndarray:
    """``total`` random rows with the classes' own shares, class after class."""
    drawn = []
    for label, count in class_counts(labels, total).items():
        rows = np.flatnonzero(labels == label)
        drawn.append(rows[shuffled(len(rows), seed, purpose, label)[:count]])
    return np.concatenate(drawn)


def first_rows(num: int, labels: np.ndarray | None, limit: int | None) -> np.ndarray:
    """Rows that a limit leaves, ascending: the first of each class, with the classes' shares kept."""
    if limit is None or limit >= num:
        return np.arange(num)
    if labels is None:
        return np.arange(limit)
    first = [np.flatnonzero(labels == label)[:count] for label, count in class_counts(labels, limit).items()]
    return np.sort(np.concatenate(first))


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
        held = stratified_draw(labels, count, seed, "validation")
    return fixed_order(np.setdiff1d(np.arange(num), held), seed), np.sort(held)


def fixed_order(rows: np.ndarray, seed: int) -> np.ndarray:
    """The rows in a random order that only the seed decides, for passes without shuffling."""
    return rows[shuffled(len(rows), seed, "fixed order")]


def take(arrays: Any, rows: np.ndarray) -> Any:
    """The rows of every leaf of a tree, contiguous."""
    return tree_map(lambda leaf: np.take(leaf, rows, axis=0), arrays)
