"""Changes of bytes and of JSON, drawn from a generator: what any surface may meet."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

NASTY_TEXTS = (
    "",
    " ",
    "\x00",
    "\x1b]0;title\x07\x1b[2J",
    "a\nb",
    "..",
    "../../x",
    "/tmp/fuzz-outside/x",
    "~root",
    "{0..99999}{0..99999}",
    "{0..99999999999}",
    "{{{{",
    "pipe:touch ran",
    "$(touch ran)",
    "`touch ran`",
    "simplecache::pipe:touch ran",
    "file:///etc/passwd",
    "zip:///",
    "memory://x",
    "http://user:secret@127.0.0.1:1/x?sig=secret",
    "\ud800",
    "%s%n",
    "None",
    "nan",
    "x" * 5000,
    "/dev/zero",
    "/dev/stdin",
    "-h",
    "--",
    "__class__",
)
NASTY_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**20,
    10**400,
    -(10**18),
    0.5,
    1e300,
    -1e300,
    float("nan"),
    float("inf"),
    float("-inf"),
    [],
    {},
    [[]],
    {"type": "lion"},
    {"": None},
    *NASTY_TEXTS,
)
NASTY_BYTES = (
    b"",
    b"\0",
    b"\xff" * 8,
    b"\x80\x04\x95",
    b"cos\nsystem\n(S'touch ran'\ntR.",
    b"PK\x03\x04",
    b"\x1b[2J",
)


def change_bytes(draw: random.Random, data: bytes) -> bytes:
    """Flips, cuts, inserts, repeats, wipes or overwrites some bytes, once to four times."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(changed) + 1)
        end = min(len(changed), at + draw.choice([1, 1, 2, 4, 8, 64, 512]))
        way = draw.randrange(7)
        if way == 0 and changed:
            changed[at % len(changed)] ^= 1 << draw.randrange(8)
        elif way == 1:
            changed[at:end] = draw.randbytes(end - at)
        elif way == 2:
            del changed[at:end]
        elif way == 3:
            changed[at:at] = draw.choice([*NASTY_BYTES, draw.randbytes(draw.randint(1, 40))])
        elif way == 4:
            changed[at:end] = bytes([draw.choice([0, 0xFF, 0x20])]) * (end - at)
        elif way == 5:
            changed[at:at] = changed[at:end]
        else:
            del changed[at:]
    return bytes(changed)


def change_json(draw: random.Random, value: Any) -> Any:
    """Replaces, removes, renames, repeats or moves some values of a tree, once to three times."""
    changed = copy.deepcopy(value)
    for _ in range(draw.randint(1, 3)):
        places = list(_places(changed))
        if not places:
            return draw.choice(NASTY_VALUES)
        holder, key = draw.choice(places)
        way = draw.randrange(6)
        if way <= 2:
            holder[key] = copy.deepcopy(draw.choice(NASTY_VALUES))
        elif way == 3:
            del holder[key]
        elif way == 4:
            other, place = draw.choice(places)
            holder[key] = copy.deepcopy(other[place]) if place in other or isinstance(other, list) else None
        elif isinstance(holder, dict):
            holder[draw.choice([text for text in NASTY_TEXTS if len(text) < 100])] = holder.pop(key)
        else:
            holder.append(copy.deepcopy(holder[key]))
    return changed


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yields each holder and key below a value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places(value[key])


def as_json(value: Any) -> bytes:
    """Writes JSON with NaN, halves of surrogate pairs and all."""
    return json.dumps(value).encode("utf-8", "surrogatepass")
