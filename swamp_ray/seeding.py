"""Random seeds as pure functions of what they are for.

Every seed is a hash of (run seed, purpose, indices). No seed depends on the order in which work is
executed, on the number of particles, or on how many random numbers something else has drawn.
"""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, purpose: str, *indices: int) -> int:
    """A seed in [0, 2**63) for one purpose.

    Args:
        seed: The run's (or the particle's) seed.
        purpose: What the random numbers are for, e.g. ``"particle"`` or ``"shuffle"``.
        indices: Which one, e.g. round and particle.

    Returns:
        The first 63 bits of SHA-256 over an unambiguous spelling of the arguments.
    """
    text = "\x1f".join(["swamp", str(int(seed)), purpose, *(str(int(i)) for i in indices)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
