"""Deterministic damage: bytes and JSON values changed as disks, editors and attackers change them."""

import json
import random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    None, True, 0, -1, 2**70, 1e308, float("nan"), float("inf"), "", "\x00", "\x1b[31m", "../../etc/passwd",
    "/dev/zero", "x" * 5000, "\ud800", [], {}, [[[]]], [None], {"a": {}}, "[" * 3000, "1" * 5000, "nan", "!!int abc",
    "\u202e", "http://x/",
)  # fmt: skip
"""Values that a field may hold instead of its own."""

SNIPPETS = (
    b"\x00", b"\xff\xfe", b"\n", b"\r", b'"', b"'", b",", b"\t", b"{", b"}", b"[" * 400, b"]", b"9" * 5000, b"null",
    b"NaN", b"\\u0000", b"\\ud800", b"-", b"1e999", b"&a", b"*a", b"!!int abc", b"!!python/object:os.system", b"<<: *a",
    b": ",
    b"\x1f\x8b", b"PK\x03\x04", b"\xc3", b"\xef\xbb\xbf", b"\x1b[2J",
)  # fmt: skip
"""Bytes that parsers stumble over."""


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` after one to four cuts, flips, insertions, repeats or overwritten ranges."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(changed) + 1)
        end = min(len(changed), start + rng.choice((1, 2, 8, 64, 1000)))
        match rng.randrange(6):
            case 0:
                del changed[start:]
            case 1 if start < len(changed):
                changed[start] ^= 1 << rng.randrange(8)
            case 2:
                changed[start:start] = rng.choice(SNIPPETS)
            case 3:
                changed[start:end] = rng.randbytes(end - start)
            case 4:
                changed[start:start] = changed[start:end]
            case _:
                del changed[start:end]
    return bytes(changed)


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A JSON value in which one member, at any depth, is hostile, missing, renamed or a text instead of its value."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        match rng.randrange(5):
            case 0:
                return {name: each for name, each in value.items() if name != key}
            case 1:
                return {(f"{name}x" if name == key else name): each for name, each in value.items()}
            case _:
                return {**value, key: mutate_value(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        index = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value[:index] + value[index + 1 :]
        return [*value[:index], mutate_value(value[index], rng), *value[index + 1 :]]
    return str(value) if rng.random() < 0.1 else rng.choice(HOSTILE)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """A JSON file with a changed value, or with changed bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    return json.dumps(mutate_value(json.loads(data), rng)).encode("utf-8", "surrogatepass")
