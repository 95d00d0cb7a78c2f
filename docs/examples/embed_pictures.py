"""Embeds your own pictures with a trained model and finds the nearest picture of each.

    python docs/examples/embed_pictures.py runs/demo-ten-minutes PICTURES --out vectors.npz

PICTURES is a folder of image files. The archive holds `names` [n] and `vectors` [n d], of length one, so that
an inner product of two rows is their cosine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import flava_ds
from flava_ds.errors import UserError
from flava_ds.recipes.outside import import_plugins


def main() -> None:
    """Embeds, saves and prints the nearest neighbours."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a run, a checkpoint or a Hugging Face folder")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--out", type=Path, default=Path("vectors.npz"))
    parser.add_argument(
        "--plugin", action="append", default=[], help="your code that the run's parts are from"
    )
    options = parser.parse_args()
    if not options.pictures.is_dir():
        parser.error(f"{options.pictures} is no folder")
    files = sorted(
        path
        for path in options.pictures.iterdir()
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")
    )
    if len(files) < 2:
        parser.error(f"{options.pictures} holds {len(files)} pictures; two or more have neighbours")

    try:
        import_plugins(options.plugin)
        model = flava_ds.load(options.model)
        vectors = model.encode_images(files).float().cpu().numpy()
    except UserError as error:  # a broken picture, for one
        parser.error(str(error))
    np.savez(options.out, names=np.array([path.name for path in files]), vectors=vectors)

    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -1.0)
    for row, nearest in enumerate(similarity.argmax(axis=1)):
        print(f"{files[row].name}  ->  {files[nearest].name}  (cosine {similarity[row, nearest]:.3f})")


if __name__ == "__main__":
    main()
