"""Times the image codebook's encoder in three ways, in turn, and compares their codes.

    python benchmarks/codebook_speed.py [--device cpu] [--images 2] [--rounds 5] && make docs

The ways: NCHW as PyTorch lays images out by default, channels-last, and channels-last compiled. The codebook
is flava_base's, with random weights, in fp32 on a CPU and in bf16 on a GPU. The images are the demo's
drawings, enlarged. Codes are compared with NCHW's in fp32. The numbers go to
benchmarks/results/codebook_speed.json, one entry per device.
"""

from __future__ import annotations

import copy
import io
import json
import statistics
import tarfile
import time
from pathlib import Path

import numpy as np
import torch
from flava_kernels.bench.machine import device_name
from PIL import Image
from scripts import parser_of, read_results
from torch import Tensor

from flava_ds.codebook.image_codebook import ImageCodebook
from flava_ds.demo.dataset import unpack
from flava_ds.recipes import resolve
from flava_ds.storage.atomic import write_json

RESULT = Path(__file__).parent / "results" / "codebook_speed.json"
WAYS = ("NCHW", "channels-last", "channels-last, compiled")


def main() -> None:
    """Measures this machine's device and writes its entry."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    entry = compare(device, drawings(options.images).to(device), options.rounds)
    before = read_results(RESULT, [])
    others = [each for each in before if each["device"] != entry["device"]]
    write_json(RESULT, [*others, entry], indent=1)
    print(json.dumps(entry, indent=1))


def drawings(count: int) -> Tensor:
    """Returns drawings of the demo at the size of flava_base's codebook: [b 3 112 112] uint8."""
    size = resolve("flava_base", []).codebook.image_size
    with tarfile.open(next(unpack().glob("pairs-train/*.tar"))) as shard:
        pictures = [member for member in shard if member.name.endswith((".png", ".jpg", ".webp"))][:count]
        images = [
            Image.open(io.BytesIO(shard.extractfile(member).read())).convert("RGB").resize((size, size))
            for member in pictures
        ]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images])


def compare(device: torch.device, pixels: Tensor, rounds: int) -> dict[str, object]:
    """Returns each way's median seconds and the share of its codes that equal those of NCHW in fp32."""
    half = device.type == "cuda"
    torch.manual_seed(0)
    codebook = ImageCodebook(resolve("flava_base", []).codebook, decoder=False).to(device).eval()
    exact = codebook.encode(pixels)
    codebook = codebook.to(torch.bfloat16 if half else torch.float32)
    seconds: dict[str, list[float]] = {}
    equal = {}
    ways: dict[str, ImageCodebook] = {}
    for way in WAYS:
        ways[way] = copy.deepcopy(codebook)
        if way != "NCHW":
            ways[way].for_inference(compiled="compiled" in way)
        equal[way] = float((ways[way].encode(pixels) == exact).double().mean())  # compiles, too
        seconds[way] = []
    for _ in range(rounds):
        for way in WAYS:
            begun = time.perf_counter()
            ways[way].encode(pixels).cpu()
            seconds[way].append(time.perf_counter() - begun)
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "dtype": "bf16" if half else "fp32",
        "images": len(pixels),
        "codes": exact.numel(),
        "seconds": {way: statistics.median(times) for way, times in seconds.items()},
        "ratio": {
            way: statistics.median(a / b for a, b in zip(seconds["NCHW"], times, strict=True))
            for way, times in seconds.items()
        },
        "equal": equal,
    }


if __name__ == "__main__":
    main()
