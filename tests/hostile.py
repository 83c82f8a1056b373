"""Damage and malice for files of a storage root, made from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**63, 10**400, -0.0, 1e308, "", "NaN", "Infinity", "../../../etc/passwd", "\u0000", "\ud800",
    "x" * 5000, [], {}, [[]], {"__class__": "os.system"}, [None] * 3, {"": {"": {"": 1}}},
)
HOSTILE_TEXTS = (
    b"", b"null", b"[]", b"{}", b"0", b"\xff\xfe\x00", b"{" * 3000, b"[" * 3000, b'{"a":1e999}', b"NaN",
    b"\x00" * 64, b"\x80\x04\x95.", b'{"format":1}', b"!!python/object/apply:os.system ['true']", b"a: &a [*a]",
    b"? [1]\n: 2\n", b"<<: 3\n", b'{"a": 1, "a": 2}', b'"' + b"9" * 5000 + b'"', b"9" * 5000,
)


def flip(data: bytes, dice: random.Random) -> bytes:
    """One to three bits changed."""
    changed = bytearray(data)
    for _ in range(dice.randint(1, 3)):
        if changed:
            changed[dice.randrange(len(changed))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def truncate(data: bytes, dice: random.Random) -> bytes:
    """Cut off anywhere."""
    return data[: dice.randrange(len(data))] if data else b""


def extend(data: bytes, dice: random.Random) -> bytes:
    """Something appended."""
    return data + dice.choice(HOSTILE_TEXTS)


def replace(_: bytes, dice: random.Random) -> bytes:
    """Something else altogether."""
    return dice.choice(HOSTILE_TEXTS)


def hostile_json(data: bytes, dice: random.Random) -> bytes:
    """JSON, or lines of it, in which a value is another one, of another type; anything else has bits flipped."""
    lines = data.splitlines()
    try:
        whole = json.loads(data)
    except ValueError:
        index = dice.randrange(len(lines)) if lines else 0
        try:
            lines[index] = json.dumps(with_other_value(json.loads(lines[index]), dice)).encode()
        except (ValueError, IndexError):
            return flip(data, dice)
        return b"\n".join(lines) + b"\n"
    return json.dumps(with_other_value(whole, dice)).encode()


def with_other_value(value: Any, dice: random.Random) -> Any:
    """A copy with one value somewhere inside replaced, removed or added."""
    if dice.random() < 0.25 or not isinstance(value, dict | list) or not value:
        return dice.choice(HOSTILE_VALUES)
    if isinstance(value, list):
        index = dice.randrange(len(value))
        return [with_other_value(item, dice) if place == index else item for place, item in enumerate(value)]
    key = dice.choice(sorted(value))
    if dice.random() < 0.15:
        return {other: item for other, item in value.items() if other != key}
    return {**value, key: with_other_value(value[key], dice)}


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (flip, truncate, extend, replace, hostile_json)


def damage_some(files: list[Path], dice: random.Random) -> list[str]:
    """Damage one to three files, or swap two; returns what was done."""
    done = []
    for _ in range(dice.randint(1, 3)):
        path, kind = dice.choice(files), dice.randrange(len(DAMAGES) + 2)
        if not path.is_file():
            continue
        if kind < len(DAMAGES):
            path.write_bytes(DAMAGES[kind](path.read_bytes(), dice))
            done.append(f"{DAMAGES[kind].__name__} {path}")
        elif kind == len(DAMAGES):
            other = dice.choice([one for one in files if one.is_file()])
            path.write_bytes(other.read_bytes())
            done.append(f"{path} overwritten with {other}")
        else:
            path.unlink()
            done.append(f"{path} removed")
    return done
