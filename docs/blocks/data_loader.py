"""docs/data.md: our loader beside others on the same shards, from `benchmarks/data_loader.py`."""

from __future__ import annotations

from pathlib import Path

from blocks import markdown_table, read_results

NAMES = {
    "decode_crop": "decode + crop alone, one view: our decoder in two bare loops",
    "flava_ds": "**flava_ds**, one view",
    "open_clip": "open_clip {open_clip_torch}, its own webdataset pipeline",
    "webdataset_pillow": "webdataset {webdataset} + torchvision: Pillow's decode, float32",
    "webdataset_uint8": "webdataset {webdataset} + torchvision: uint8 tensors, tokens by batch",
    "pillow": "Pillow's decode + crop alone, one view",
    "decode_crop_two_views": "decode + crop alone, two views",
    "flava_ds_two_views": "**flava_ds**, two views, masks, mismatches",
    "webdataset_pillow_two_views": "webdataset {webdataset} + Pillow's decode, two views, uint8, no masks",
    "pillow_two_views": "Pillow's decode + crop alone, two views",
}


def data_loader(root: Path) -> str:
    """Lists the rates and the quotients that are wanted."""
    found = read_results(root, "data_loader")
    versions, machine, pictures = found["versions"], found["machine"], found["pictures"]
    busy = ", so samples per second say little" if machine["load"] > machine["cores"] + 0.5 else ""
    rates = [
        [
            NAMES[row["row"]].format(**versions),
            f"{row['samples_per_cpu_second']:.0f} ({row['low']:.0f} to {row['high']:.0f})",
            f"{row['samples_per_second']:.0f}",
        ]
        for row in found["rows"]
    ]
    ratios = [
        [ratio["what"], f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})", verdict(ratio)]
        for ratio in found["ratios"]
    ]
    return (
        f"{markdown_table(['loader', 'samples per CPU second', 'samples per second'], rates)}\n\n"
        f"{markdown_table(['ratio per CPU second, median of the rounds', 'result', 'wanted'], ratios)}\n\n"
        f"{found['rounds']} rounds of {found['samples']} samples each: {pictures['width']} x "
        f"{pictures['height']} JPEGs of {pictures['mean_bytes'] / 1000:.0f} kB on average, read by two "
        f"processes with one thread each. The machine: {machine['cores']} cores of {machine['processor']} at "
        f"a load of {machine['load']:.1f}{busy}; torch {versions['torch']}, torchvision "
        f"{versions['torchvision']}, Pillow {versions['pillow']}."
    )


def verdict(ratio: dict) -> str:
    """Says what was wanted, and whether it came out."""
    if ratio["wanted"] is None:
        return ""
    reached = round(ratio["median"], 2) >= ratio["wanted"]  # what is shown is what is judged
    return f"{ratio['wanted']:g}" + ("" if reached else ", **not reached**")


BLOCKS = {"data_loader": data_loader}
