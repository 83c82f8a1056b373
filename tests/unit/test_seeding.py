from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from swamp_ray.seeding import derive_seed

PURPOSES = ["init", "dense", "particle", "shuffle", "score", "augment", "data", "vary"]
seeds = st.integers(0, 2**63 - 1)
indices = st.lists(st.integers(0, 10**6), max_size=3).map(tuple)
names = st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"]), min_size=1, max_size=8)
calls = st.tuples(seeds, names, indices)


def test_the_spelling_is_fixed() -> None:
    """Stored results carry these seeds: whoever changes them makes every stored result another one."""
    digest = hashlib.sha256(b"swamp\x1f7\x1fparticle\x1f3\x1f1").digest()
    assert derive_seed(7, "particle", 3, 1) == int.from_bytes(digest[:8], "big") // 2


def test_distinct_over_seeds_purposes_rounds_and_particles() -> None:
    found = [derive_seed(seed, purpose, round_index, n)
             for seed in range(5) for purpose in PURPOSES for round_index in range(10) for n in range(16)]
    found += [derive_seed(seed, purpose, index) for seed in range(5) for purpose in PURPOSES for index in range(40)]
    found += [derive_seed(seed, purpose) for seed in range(5) for purpose in PURPOSES]
    assert len(set(found)) == len(found)


def test_independent_of_the_number_of_particles_and_of_order() -> None:
    few = {n: derive_seed(0, "particle", 2, n) for n in range(2)}
    many = {n: derive_seed(0, "particle", 2, n) for n in reversed(range(16))}
    assert all(many[n] == seed for n, seed in few.items())


@given(calls, calls)
def test_different_arguments_give_different_seeds(one: tuple[int, str, tuple[int, ...]],
                                                  other: tuple[int, str, tuple[int, ...]]) -> None:
    left, right = (derive_seed(seed, purpose, *where) for seed, purpose, where in (one, other))
    assert (left == right) == (one == other)


@given(calls)
def test_range(call: tuple[int, str, tuple[int, ...]]) -> None:
    seed, purpose, where = call
    assert 0 <= derive_seed(seed, purpose, *where) < 2**63


def test_digits_of_indices_do_not_run_together() -> None:
    assert len({derive_seed(0, "p", 1, 23), derive_seed(0, "p", 12, 3), derive_seed(0, "p", 123),
                derive_seed(0, "p1", 23)}) == 4
