"""Masks as bits, as they travel and are stored: counting, and choosing among the weights that they keep.

One bit a prunable weight, the first in the highest bit of its byte, as `masks.to_bits` writes them. Nothing here
unpacks more than a block at a time, so that a mask over ten billion weights takes 1.25 GB and not ten.
"""

from __future__ import annotations

import numpy as np

from swamp_ray.sparsity.masks import Layout

_BLOCK = 1 << 16
_FEW = 0.3
"""Where so few of a block's bytes keep any weight, the others are left out."""


def num_kept(bits: np.ndarray) -> int:
    """How many weights a mask keeps."""
    return sum(_num_ones(bits[begin:begin + 8 * _BLOCK]) for begin in range(0, bits.size, 8 * _BLOCK))


def layer_counts(layout: Layout, bits: np.ndarray) -> list[int]:
    """How many weights each layer keeps."""
    return [_count_between(bits, layer.offset, layer.offset + layer.size) for layer in layout.layers]


def between(bits: np.ndarray, first: int, last: int) -> np.ndarray:
    """The mask of weights ``first`` to ``last - 1``, bool."""
    return np.unpackbits(bits[first // 8:(last + 7) // 8])[first % 8:first % 8 + last - first].view(np.bool_)


def choose(bits: np.ndarray, first: int, chosen: np.ndarray) -> tuple[int, np.ndarray]:
    """The mask that keeps those of some survivors that were chosen.

    Args:
        bits: The present mask.
        first: Index among its survivors of the first that is chosen from.
        chosen: bool, for that survivor and those after it.

    Returns:
        The first byte that they lie in, and the bytes from there on; bits of other survivors are 0.

    Raises:
        ValueError: There are not so many survivors.
    """
    if not chosen.size:
        return 0, np.zeros(0, dtype=np.uint8)
    begin, before = _byte_of(bits, first)
    if first > before:
        chosen = np.concatenate([np.zeros(first - before, dtype=np.bool_), chosen])
    return begin, _deposit(bits[begin:], chosen)


def _num_ones(block: np.ndarray) -> int:
    whole = block.size // 8 * 8
    words = np.bitwise_count(block[:whole].view(np.uint64)).sum(dtype=np.int64)
    return int(words + np.bitwise_count(block[whole:]).sum(dtype=np.int64))


def _count_between(bits: np.ndarray, first: int, last: int) -> int:
    inner = range((first + 7) // 8, last // 8)
    if not inner:
        return int(np.count_nonzero(between(bits, first, last)))
    edges = np.count_nonzero(between(bits, first, 8 * inner.start)) + np.count_nonzero(between(bits, 8 * inner.stop,
                                                                                             last))
    return int(edges) + num_kept(bits[inner.start:inner.stop])


def _byte_of(bits: np.ndarray, survivor: int) -> tuple[int, int]:
    """The byte that holds a survivor, and how many survivors there are before this byte."""
    before = 0
    for begin in range(0, bits.size, _BLOCK):
        block = bits[begin:begin + _BLOCK]
        num = _num_ones(block)
        if survivor < before + num:
            counts = np.bitwise_count(block)
            ends = before + np.cumsum(counts, dtype=np.int64)
            place = int(np.searchsorted(ends, survivor, side="right"))
            return begin + place, int(ends[place]) - int(counts[place])
        before += num
    raise ValueError(f"the mask keeps {before} weights, but survivor {survivor} was asked for")


def _deposit(bits: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Bits of a mask, without those whose survivor was not chosen, as far as there are choices."""
    out = np.empty_like(bits)
    done = end = 0
    while done < chosen.size and end < bits.size:
        begin = end
        end = min(bits.size, end + _BLOCK)
        num = _num_ones(bits[begin:end])
        out[begin:end] = _deposit_block(bits[begin:end], num, chosen[done:done + num])
        done += num
    if done < chosen.size:
        raise ValueError(f"the mask keeps {done} of these weights, but {chosen.size} choices were given")
    return out[:end]


def _deposit_block(block: np.ndarray, num: int, chosen: np.ndarray) -> np.ndarray:
    """The same for a block that keeps ``num`` weights."""
    choice_bits = np.zeros(num // 8 + 3, dtype=np.uint8)
    choice_bits[:(chosen.size + 7) // 8] = np.packbits(chosen)
    if num == 8 * block.size:
        return choice_bits[:block.size]
    kept = block != 0
    if np.count_nonzero(kept) > _FEW * block.size:
        return _deposit_bytes(block, choice_bits)
    out = np.zeros_like(block)
    places = np.flatnonzero(kept)
    out[places] = _deposit_bytes(block[places], choice_bits)
    return out


def _deposit_bytes(block: np.ndarray, choice_bits: np.ndarray) -> np.ndarray:
    """The same byte by byte, with the choices as bits and at least two bytes of zeros after them."""
    # The eight choices from any one on lie within two bytes.
    windows = choice_bits.astype(np.uint16)
    windows <<= 8
    windows[:-1] |= choice_bits[1:]
    starts = np.zeros(block.size + 1, dtype=np.int32)
    np.cumsum(np.bitwise_count(block), out=starts[1:])
    starts = starts[:-1]
    choices = np.take(windows, starts >> 3, mode="clip")
    starts &= 7
    choices <<= starts.astype(np.uint16)
    choices >>= 8
    return np.take(_DEPOSITS, block.astype(np.uint16) << 8 | choices, mode="clip")


def _deposits() -> np.ndarray:
    """For each byte of a mask and each byte of choices: the mask's bits that are chosen, uint8 ``[65536]``."""
    mask = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    ranks = np.cumsum(mask, axis=1) - 1
    choices = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    taken = choices[:, np.maximum(ranks, 0)]  # [choices, mask, bit]
    return np.packbits(taken & mask[None], axis=2)[..., 0].T.reshape(-1)


_DEPOSITS = _deposits()
