"""Writes the corpus' first entries: the inputs of the hostile trials that began this harness, by surface.

    python tests/fuzz/known.py

An entry that a fuzzing run finds is added by that run (driver.keep); none is ever removed.
"""

from __future__ import annotations

import base64
import json
import sys
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np  # noqa: E402  (after the path)
from data.shard_files import encode  # noqa: E402
from data.shard_mutations import END, member, members  # noqa: E402
from fuzz.driver import CORPUS  # noqa: E402
from fuzz.mutations import as_json  # noqa: E402
from fuzz.run_surfaces import portable  # noqa: E402


def config(**changes: object) -> bytes:
    """The debug recipe's config.json with other values at some places, whose names have `__` for dots."""
    tree = portable("flava_debug")
    for name, value in changes.items():
        *path, last = name.split("__")
        section = tree
        for part in path:
            section = section[part]
        section[last] = value
    return as_json(tree)


def changed(file: str, content: bytes | str, agreed: bool = True) -> bytes:
    """A file of a checkpoint with other content."""
    data = content.encode() if isinstance(content, str) else content
    return as_json({"file": file, "agreed": agreed, "content": base64.b64encode(data).decode()})


def chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def entries() -> dict[str, bytes]:
    """Returns surface/name -> input."""
    png = encode(np.zeros((8, 8, 3), dtype=np.uint8), "PNG")
    webp = encode(np.zeros((8, 8, 3), dtype=np.uint8), "WEBP", exif=b"Exif\0\0" + b"\xff" * 40)
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21), 9))
    profile = chunk(b"iCCP", b"\x1b]0;title\x07\0\0" + zlib.compress(b"none"))
    tensors = b'{"weight/a":{"dtype":"F32","shape":[7],"data_offsets":[0,28]},"__metadata__":{"starts":"{}"}}'
    source = "data__sources__pair"
    return {
        "shard/pickle": b"".join([member(b"x.pkl", b"cos\nsystem\n(S'touch ran'\ntR."), *members(), END]),
        "shard/zeros_without_end": b"".join([*members(), bytes(2**14)]),
        "index/clean": b"",
        "index/other_header": bytes(8),
        "picture/png_long_text_and_transparency": png[:33] + text + chunk(b"tRNS", bytes(6)) + png[33:],
        "picture/png_profile_name": png[:33] + profile + png[33:],
        "picture/webp_broken_exif": webp,
        "checkpoint/empty_manifest": changed("manifest.json", "{}"),
        "checkpoint/escapes_in_latest": changed("latest", b"\x1b]0;title\x07\xff\n"),
        "checkpoint/world_of_1e8": changed("state.json", json.dumps({"world_size": 10**8})),
        "checkpoint/deep_json": changed("state.json", "[" * 5_000),
        "checkpoint/wrong_shape": changed(
            "weights_00001.safetensors", len(tensors).to_bytes(8, "little") + tensors + bytes(28)
        ),
        "checkpoint/nothing": changed("optimizer_00000.safetensors", b"", agreed=False),
        "config/deep_json": b"[" * 5_000,
        "config/weight_nan": config(**{f"{source}__weight": float("nan")}),
        "config/rotation_nan": config(**{f"{source}__transform__rotation_degrees": float("nan")}),
        "config/lr": config(optimizer__lr=1e300),
        "config/min_lr": config(schedule__min_lr=1.0),
        "config/total_steps": config(training__total_steps=10**20),
        "config/timeout": config(engine__communication_timeout_s=10**13),
        "config/cache": config(data__cache_gib=float("nan")),
        "config/masked_patches": config(objectives__mim__num_masked_patches=1000),
        "config/best_metric": config(checkpoint__best_metric="nonsense"),
        "config/profile": config(logging__profile_steps=[1, 10**11]),
        "config/name_outside": config(name="../x"),
        "config/name_nul": config(name="a\0b"),
        "config/root": config(checkpoint__directory=""),
        "config/pipe": config(**{f"{source}__shards": "pipe:touch ran", f"{source}__allow_code": True}),
        "command/zip": as_json(["prepare", "index", "zip:///"]),
        "command/url_out": as_json(["convert", "run", "--to", "safetensors", "http://host/out"]),
        "command/escapes": as_json(["evaluate", "\x1b[2Jrun"]),
        "command/empty_directory": as_json(["config", "flava_debug", "--checkpoint.directory", ""]),
        "command/batch": as_json(["config", "flava_debug", "--training.global-batch-size", "-4"]),
        "command/secret": as_json(["prepare", "index", "memory://user:secret@x/0.tar?sig=secret"]),
        "pattern/ten_thousand_million": b"a{0..99999}{0..99999}.tar",
        "pattern/pipe": b"pipe:touch ran",
        "pattern/chained": b"simplecache::pipe:touch ran",
        "pattern/long_name": b"x" * 5000,
        "skip_list/escapes": b"key \x1b[2J\nphash zz 99\n",
    }


if __name__ == "__main__":
    for name, data in entries().items():
        path = CORPUS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
