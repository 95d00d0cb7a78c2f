"""Shards of six pairs, damaged in ways whose consequences are known to the sample and to the reason, or at
random places.
"""

import gzip
import struct
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from data.shard_files import caption, picture

BLOCK, SAMPLES = 512, 6
END = bytes(2 * BLOCK)


@dataclass
class Mutation:
    """A damaged shard and what has to come of it: usable samples, faults counted while indexing and while
    reading.
    """

    name: str
    shard: bytes
    good: set[int] = field(default_factory=lambda: set(range(SAMPLES)))
    indexed: Counter = field(default_factory=Counter)
    read: Counter = field(default_factory=Counter)


def header(name: bytes, size: int, kind: bytes = b"0", size_field: bytes | None = None) -> bytes:
    """A GNU header whose checksum holds, with any bytes for a name and for a size."""
    block = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT)[:BLOCK])
    block[:100] = name[:100].ljust(100, b"\0")
    block[124:136] = b"%011o\0" % size if size_field is None else size_field
    block[156:157], block[148:156] = kind, b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: bytes, data: bytes, kind: bytes = b"0", size_field: bytes | None = None) -> bytes:
    """A member with its padding; what follows a size that is a lie is `data` all the same."""
    return header(name, len(data), kind, size_field) + data + bytes(-len(data) % BLOCK)


def pax(*records: tuple[bytes, bytes]) -> bytes:
    """An extended header."""
    body = b""
    for key, value in records:
        length = len(key) + len(value) + 3
        length += len(str(length + len(str(length))))
        body += b"%d %s=%s\n" % (length, key, value)
    return member(b"pax", body, b"x")


def content(number: int) -> tuple[bytes, bytes]:
    """Picture and caption of a sample."""
    return picture(number), caption(number).encode()


def key(number: int) -> bytes:
    """A sample's key."""
    return b"%09d" % number


def members() -> list[bytes]:
    """The undamaged members: picture and caption of each sample in turn."""
    return [
        part
        for n in range(SAMPLES)
        for part in (member(key(n) + b".webp", content(n)[0]), member(key(n) + b".txt", content(n)[1]))
    ]


def places() -> np.ndarray:
    """Where each member and the end begin."""
    return np.cumsum([0, *map(len, members())])


def up_to(m: int, *reasons: str) -> tuple[set[int], Counter]:
    """What is left of a shard that ends before member m, which is counted as `reasons`."""
    return set(range(m // 2)), Counter(reasons) + Counter({"missing caption": m % 2})


def _ending(name: str, m: int, block: bytes, reason: str) -> Mutation:
    """A member that ends its shard."""
    parts = members()
    return Mutation(name, b"".join([*parts[:m], block, *parts[m + 1 :], END]), *up_to(m, reason))


def _replaced(name: str, n: int, image: bytes | None, text: bytes | None, **reasons: str) -> Mutation:
    """Sample n with other content, or without; reasons are those of `indexed` or `read`."""
    parts = members()
    parts[2 * n] = parts[2 * n] if image is None else image
    parts[2 * n + 1] = parts[2 * n + 1] if text is None else text
    counts = {place: Counter({reason: 1}) for place, reason in reasons.items()}
    return Mutation(
        name, b"".join([*parts, END]), set(range(SAMPLES)) - ({n} if reasons else set()), **counts
    )


def _added(name: str, m: int, block: bytes, **indexed: int) -> Mutation:
    """Something more before member m, which loses no sample."""
    parts = members()
    return Mutation(
        name,
        b"".join([*parts[:m], block, *parts[m:], END]),
        indexed=Counter({reason.replace("_", " "): n for reason, n in indexed.items()}),
    )


def known(random: np.random.Generator) -> Iterator[Mutation]:
    """Yields one mutation of every kind, at places that `random` draws."""
    m, n = int(random.integers(2 * SAMPLES)), int(random.integers(SAMPLES))
    yield from _headers(random, m)
    yield from _samples(n)
    yield from _names(n)
    yield from _additions(random, m, n)


def _headers(random: np.random.Generator, m: int) -> Iterator[Mutation]:
    """Ends or breaks a shard at member m or at a drawn place."""
    name = (key(m // 2) + b".txt") if m % 2 else (key(m // 2) + b".webp")
    at, end = places(), int(places()[-1])
    cut = int(random.integers(1, end + BLOCK))
    whole = int(np.searchsorted(at[1:], cut, side="right"))
    data_ends = [int(start) + BLOCK + len(content(i // 2)[i % 2]) for i, start in enumerate(at[:-1])]
    whole += whole < 2 * SAMPLES and data_ends[whole] <= cut  # padding may be missing
    yield Mutation("truncated", b"".join([*members(), END])[:cut], *up_to(whole, "truncated shard"))
    flipped = bytearray(b"".join([*members(), END]))
    # byte 155 is read by nobody
    flipped[int(at[m]) + int(random.choice([i for i in range(BLOCK) if i != 155]))] ^= 1 << int(
        random.integers(8)
    )
    yield Mutation("header bit", bytes(flipped), *up_to(m, "broken header"))

    for label, size_field in (
        ("signed size", b"-0000001000\0"),
        ("negative size", b"\xff" * 12),
        ("no size", b"0x0000000zz\0"),
        ("underscores", b"1_000000000\0"),
    ):
        yield _ending(label, m, member(name, b"", size_field=size_field), "broken header")
    for label, size_field in (
        ("huge size", b"77777777777\0"),
        ("huge base-256 size", b"\x80" + b"\x7f" * 11),
    ):
        yield _ending(label, m, member(name, b"", size_field=size_field), "truncated shard")
    yield _ending("huge pax size", m, pax((b"size", b"9" * 15)) + member(name, b"x"), "truncated shard")


def _samples(n: int) -> Iterator[Mutation]:
    """Spoils a member of sample n."""
    image, text = content(n)
    for kind in b"1 2 3 4 5 6 S".split():
        yield _replaced(
            f"kind {kind.decode()}", n, None, member(key(n) + b".txt", b"", kind), indexed="missing caption"
        )
    yield _replaced("no caption", n, None, b"", indexed="missing caption")
    yield _replaced("no image", n, b"", None, indexed="no image")
    yield _replaced("empty image", n, member(key(n) + b".webp", b""), None, read="truncated")
    yield _replaced("empty caption", n, None, member(key(n) + b".txt", b" \n"), read="empty caption")
    yield _replaced("latin caption", n, None, member(key(n) + b".txt", b"caf\xe9"), read="not utf-8")
    yield _replaced(
        "picture for a caption",
        n,
        None,
        member(key(n) + b".txt", b"\xff\xd8\xff\xe0" + image),
        read="not utf-8",
    )
    yield _replaced("caption for a picture", n, member(key(n) + b".webp", text), None, read="undecodable")
    yield _replaced(
        "half a picture", n, member(key(n) + b".webp", image[: len(image) // 2]), None, read="undecodable"
    )
    for label, bomb, reason in image_bombs():
        yield _replaced(label, n, member(key(n) + b".webp", bomb), None, read=reason)
    yield _replaced("NUL in a name", n, None, member(key(n) + b"\0.txt", text), indexed="missing caption")


def _additions(random: np.random.Generator, m: int, n: int) -> Iterator[Mutation]:
    """Adds members that belong to no sample, and shards that are none."""
    yield _added("duplicates", 2 * SAMPLES, members()[2 * n] + members()[2 * n + 1], duplicate_member=2)
    yield _added(
        "pickles",
        m,
        b"".join(member(key(n) + s, b"cos\nsystem\n.") for s in (b".pkl", b".pth", b".pyd", b".x.pickle")),
        pickled_member=4,
    )
    yield _added(
        "packed",
        m,
        member(key(n) + b".txt.gz", gzip.compress(bytes(2**16))) + member(key(n) + b".zip", b"PK"),
        packed_member=2,
    )
    yield _added(
        "others",
        m,
        b"".join(
            member(s, b"import os")
            for s in (b"x.py", b"x.yaml", b"__key__", b".txt", b"folder/.webp", b"x.json.exe")
        ),
    )
    yield _added(
        "zeros",
        int(random.integers(1, 2 * SAMPLES)),
        bytes(BLOCK * int(random.integers(1, 5))),
        zeros_inside_a_shard=1,
    )
    yield _added("joined", SAMPLES, END, zeros_inside_a_shard=1)
    yield _added("global pax", m, member(b"pax", b"11 path=x\n\n", b"g"))
    yield _added("pax of digits", m, member(b"pax", b"1" * 6000 + b" path=x\n", b"x"))
    yield Mutation(
        "compressed", gzip.compress(b"".join([*members(), END])), set(), Counter({"compressed shard": 1})
    )
    yield Mutation("nothing", b"", set(), Counter({"truncated shard": 1}))


def _names(n: int) -> Iterator[Mutation]:
    """Sample n under names that lead elsewhere, are long, or mean nothing."""
    image, text = content(n)
    for label, unsafe in (
        ("dotted path", b"../../" + key(n)),
        ("absolute path", b"/tmp/" + key(n)),
        ("path that leaves", b"a/../../" + key(n)),
    ):
        found = _replaced(
            label, n, member(unsafe + b".webp", image), member(unsafe + b".txt", text), indexed="unsafe name"
        )
        yield Mutation(label, found.shard, found.good, Counter({"unsafe name": 2}))
    long = b"folder/" + "é漢字".encode() * 40 + b"/" + key(n)
    longer = [
        member(b"long", long + s + b"\0", b"L") + member(key(n), d)
        for s, d in ((b".webp", image), (b".txt", text))
    ]
    yield _replaced("long GNU name", n, *longer)
    yield _replaced(
        "long pax name",
        n,
        *(pax((b"path", long + s)) + member(key(n), d) for s, d in ((b".webp", image), (b".txt", text))),
    )
    yield _replaced(
        "name in no encoding",
        n,
        member(b"\xff\xfe" + key(n) + b".webp", image),
        member(b"\xff\xfe" + key(n) + b".txt", text),
    )
    named = _replaced(
        "pax name with NUL",
        n,
        None,
        pax((b"path", key(n) + b"\0.txt")) + member(key(n) + b".txt", text),
        indexed="missing caption",
    )
    yield Mutation(named.name, named.shard, named.good, named.indexed + Counter({"unsafe name": 1}))


def image_bombs() -> list[tuple[str, bytes, str]]:
    """Small files that claim to be large, or are never done: name, bytes, reason."""
    ihdr = struct.pack(">II5B", 100_000, 100_000, 8, 2, 0, 0, 0)
    frame = b"\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01"
    scan = b"\xff\xda\x00\x0c\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00"
    progressive = frame.replace(b"\xff\xc0", b"\xff\xc2").replace(b"\xff\xff\xff\xff", b"\0\x10\0\x10")
    vp8x = b"VP8X\x0a\0\0\0\0\0\0\0" + (16_383).to_bytes(3, "little") * 2
    return [
        (
            "PNG bomb",
            b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + ihdr + bytes(40),
            "too many pixels",
        ),
        ("JPEG bomb", b"\xff\xd8" + frame + scan + bytes(40), "too many pixels"),
        ("WebP bomb", b"RIFF" + struct.pack("<I", 100) + b"WEBP" + vp8x + bytes(40), "too many pixels"),
        ("JPEG of scans", b"\xff\xd8" + progressive + scan * 500, "undecodable"),
        ("JPEG of segments", b"\xff\xd8" + b"\xff\xe0\0\x02" * 20_000, "undecodable"),
        (
            "PNG of nothing",
            b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + bytes(13 + 40),
            "undecodable",
        ),
    ]


def flip(random: np.random.Generator, shard: bytearray) -> tuple[int, int]:
    """Changes some bits of some bytes."""
    start = int(random.integers(len(shard)))
    end = min(len(shard), start + int(random.integers(1, 20)))
    for place in range(start, end):
        shard[place] ^= int(random.integers(1, 256))
    return start, end


def swap(random: np.random.Generator, shard: bytearray) -> tuple[int, int]:
    """Exchanges two blocks."""
    first, second = sorted(
        int(block) * BLOCK for block in random.choice(len(shard) // BLOCK, 2, replace=False)
    )
    shard[first : first + BLOCK], shard[second : second + BLOCK] = (
        shard[second : second + BLOCK],
        shard[first : first + BLOCK],
    )
    return first, second + BLOCK


def wipe(random: np.random.Generator, shard: bytearray) -> tuple[int, int]:
    """Sets some blocks to zeros, or to one value."""
    start = int(random.integers(len(shard) // BLOCK)) * BLOCK
    end = min(len(shard), start + BLOCK * int(random.integers(1, 4)))
    shard[start:end] = bytes([int(random.choice([0, 0, 0xFF, 0x31]))]) * (end - start)
    return start, end


def insert(random: np.random.Generator, shard: bytearray) -> tuple[int, int]:
    """Puts bytes between others, so that all that follows moves."""
    start = int(random.integers(len(shard)))
    shard[start:start] = random.bytes(int(random.integers(1, 700)))
    return start, len(shard)


def resum(random: np.random.Generator, shard: bytearray) -> tuple[int, int]:
    """Changes a header and mends its checksum, so that the change is believed."""
    start = int(random.choice(places()[:-1]))
    for _ in range(int(random.integers(1, 4))):
        shard[start + int(random.integers(345))] = int(random.integers(256))
    shard[start + 148 : start + 156] = b" " * 8
    shard[start + 148 : start + 156] = b"%06o\0 " % sum(shard[start : start + BLOCK])
    return start, len(shard)


RANDOM: tuple[Callable[[np.random.Generator, bytearray], tuple[int, int]], ...] = (
    flip,
    flip,
    swap,
    wipe,
    insert,
    resum,
)
"""Each changes a shard in place and returns the range outside of which all is as it was."""
