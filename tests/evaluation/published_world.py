"""The published data sets in miniature, each in the exact layout of its authors.

Every class is a colour, so that a probe has something to find: WRITERS maps a data set's name to what writes
it below ROOT.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from evaluation.color_world import COLORS, python2_pickle
from evaluation.miniature_files import mat, save, square, text

PER_CLASS = 6


def food101(root: Path) -> None:
    for split, count in (("train", PER_CLASS), ("test", 3)):
        listed = {color: [f"{color}/{split}{n}" for n in range(count)] for color in reversed(COLORS)}
        for color, keys in listed.items():
            for n, key in enumerate(keys):
                save(root / f"food-101/images/{key}.jpg", color, n)
        text(root / f"food-101/meta/{split}.json", json.dumps(listed))


def cifar(root: Path, folder: str, files: dict[str, int], meta: str, fields: tuple[str, str]) -> None:
    (root / folder).mkdir(parents=True)
    for file, count in files.items():
        labels = [n % 3 for n in range(count)]
        data = np.stack([square(COLORS[label], n, 32).reshape(-1) for n, label in enumerate(labels)])
        (root / folder / file).write_bytes(python2_pickle({"data": data, fields[1]: labels}))
    (root / folder / meta).write_bytes(python2_pickle({fields[0]: list(COLORS)}))


def cifar10(root: Path) -> None:
    files = {"test_batch": 6} | {f"data_batch_{n}": 6 for n in range(1, 6)}
    cifar(root, "cifar-10-batches-py", files, "batches.meta", ("label_names", "labels"))


def cifar100(root: Path) -> None:
    names = ("fine_label_names", "fine_labels")
    cifar(root, "cifar-100-python", {"test": 6, "train": 18}, "meta", names)


def stanford_cars(root: Path) -> None:
    base, kind = root / "stanford_cars", [("fname", "O"), ("class", "O")]
    for split, file in (
        ("train", "devkit/cars_train_annos.mat"),
        ("test", "cars_test_annos_withlabels.mat"),
    ):
        rows = [(save(base / f"cars_{split}/{n:05d}.jpg", COLORS[n % 3], n), n % 3 + 1) for n in range(15)]
        mat(base / file, annotations=np.array(rows, dtype=kind))
    mat(base / "devkit/cars_meta.mat", class_names=np.array(COLORS, dtype=object))


def fgvc_aircraft(root: Path) -> None:
    data, number = root / "fgvc-aircraft-2013b/data", 0
    text(data / "variants.txt", *(f"{color} 100" for color in COLORS))
    for split in ("train", "val", "test"):
        lines = []
        for n in range(12):
            save(data / f"images/{number:07d}.jpg", COLORS[n % 3], n)
            lines.append(f"{number:07d} {COLORS[n % 3]} 100")
            number += 1
        text(data / f"images_variant_{split}.txt", *lines)


def dtd(root: Path) -> None:
    for split in ("train", "val", "test"):
        keys = [f"{color}/{color}_{split}{n}.jpg" for color in COLORS for n in range(4)]
        for n, key in enumerate(keys):
            save(root / "dtd/dtd/images" / key, key.split("/")[0], n)
        text(root / f"dtd/dtd/labels/{split}1.txt", *keys)


def oxford_pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    for split, first in (("trainval", 0), ("test", 50)):
        lines = []
        for n in range(first, first + 15):
            save(base / f"images/big_{COLORS[n % 3]}_{n}.jpg", COLORS[n % 3], n % 20)
            lines.append(f"big_{COLORS[n % 3]}_{n} {n % 3 + 1} 1 1")
        text(base / f"annotations/{split}.txt", *lines)


def caltech101(root: Path) -> None:
    for color, name in zip(COLORS, ("BACKGROUND_Google", "crab", "yin_yang"), strict=True):
        for n in range(1, 36):
            folder = root / "caltech101/101_ObjectCategories" / name
            save(folder / f"image_{n:04d}.jpg", color, n % 20, 8)
    (folder / "tmp").write_text("as the archive has it")


def flowers102(root: Path) -> None:
    base, labels = root / "flowers-102", [n % 3 + 1 for n in range(30)]
    for n, label in enumerate(labels, start=1):
        save(base / f"jpg/image_{n:05d}.jpg", COLORS[label - 1], n % 20)
    mat(base / "imagelabels.mat", labels=np.array(labels))
    parts = {"trnid": range(16, 25), "valid": range(25, 31), "tstid": range(1, 16)}
    mat(base / "setid.mat", **{name: np.array(list(ids)) for name, ids in parts.items()})


def mnist(root: Path) -> None:
    (root / "MNIST/raw").mkdir(parents=True)
    for prefix, count in (("train", 18), ("t10k", 9)):
        pictures = np.stack([np.full((28, 28), 20 + 70 * (n % 3) + n, np.uint8) for n in range(count)])
        for kind, values in (("images-idx3", pictures), ("labels-idx1", np.arange(count) % 3)):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            data = head + values.astype(np.uint8).tobytes()
            (root / f"MNIST/raw/{prefix}-{kind}-ubyte").write_bytes(data)


def stl10(root: Path) -> None:
    base = root / "stl10_binary"
    text(base / "class_names.txt", *COLORS)
    for part, count in (("train", 18), ("test", 9)):
        pictures = np.stack([square(COLORS[n % 3], n, 96) for n in range(count)])
        pictures[:, :, 0, 1:] = 7  # a line at the top, which is at the left if columns are taken for rows
        (base / f"{part}_X.bin").write_bytes(pictures.transpose(0, 1, 3, 2).tobytes())
        (base / f"{part}_y.bin").write_bytes((np.arange(count, dtype=np.uint8) % 3 + 1).tobytes())
    folds = [np.random.default_rng(fold).permutation(18)[:14] for fold in range(3)]
    text(base / "fold_indices.txt", *(" ".join(map(str, rows)) for rows in folds))


def eurosat(root: Path) -> None:
    for color in COLORS:
        for n in range(1, 9):
            save(root / f"eurosat/2750/{color}/{color}_{n}.jpg", color, n)


def gtsrb(root: Path) -> None:
    for number, color in enumerate(COLORS):
        for n in range(PER_CLASS):
            save(root / f"gtsrb/GTSRB/Training/{number:05d}/00000_{n:05d}.ppm", color, n)
    names = [save(root / f"gtsrb/GTSRB/Final_Test/Images/{n:05d}.ppm", COLORS[n % 3], n) for n in range(9)]
    lines = [f"{name};20;20;0;0;19;19;{n % 3}" for n, name in enumerate(names)]
    head = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"
    text(root / "gtsrb/GT-final_test.csv", head, *lines)


def kitti(root: Path) -> None:
    """Forty pictures of ten films; green is a car near by, red one far away, blue none."""
    base, near = root / "Kitti/raw", {"green": "5.00", "red": "40.50"}
    for n in range(40):
        color = COLORS[n % 3]
        save(base / f"training/image_2/{n:06d}.png", color, n % 20)
        boxes = [
            "Pedestrian 0 0 0 1 1 2 2 1 1 1 0 0 1.00 0",
            "DontCare -1 -1 -10 1 1 2 2 -1 -1 -1 0 0 -1000 0",
        ]
        if color in near:
            boxes += [
                f"{kind} 0 0 0 1 1 2 2 1 1 1 0 0 {z} 0" for kind, z in (("Van", 60), ("Car", near[color]))
            ]
        text(base / f"training/label_2/{n:06d}.txt", *boxes)
    order = np.random.default_rng(0).permutation(40)  # picture n is line order[n] + 1 of the mapping
    films = [f"2011_09_26 2011_09_26_drive_{line // 4:04d}_sync {line:010d}" for line in range(40)]
    text(base / "mapping/train_mapping.txt", *films)
    text(base / "mapping/train_rand.txt", ",".join(str(line + 1) for line in order))


def pcam(root: Path) -> None:
    import h5py

    (root / "pcam").mkdir()
    for name, count in (("train", 16), ("valid", 8), ("test", 8)):
        pictures = np.stack([square(COLORS[n % 2], n, 96).transpose(1, 2, 0) for n in range(count)])
        for part, data in (("x", pictures), ("y", (np.arange(count) % 2).reshape(-1, 1, 1, 1))):
            with h5py.File(root / f"pcam/camelyonpatch_level_2_split_{name}_{part}.h5", "w") as file:
                file.create_dataset(part, data=data.astype(np.uint8), compression="gzip")


def ucf101(root: Path) -> None:
    base, films = root / "ucf101", {}
    for color in COLORS:
        films[color] = [f"{color}/v_{color}_g{n:02d}_c01" for n in range(9)]
        for n, film in enumerate(films[color]):
            save(base / f"frames/{film}.jpg", color, n)
    for number in (1, 2, 3):
        tested = {film for color in COLORS for film in films[color][3 * number - 3 : 3 * number]}
        learned = [(film, c) for c, color in enumerate(COLORS) for film in films[color] if film not in tested]
        lists = base / "ucfTrainTestlist"
        text(lists / f"trainlist{number:02d}.txt", *(f"{film}.avi {c + 1}" for film, c in learned))
        text(lists / f"testlist{number:02d}.txt", *(f"{film}.avi" for film in sorted(tested)))
    text(base / "ucfTrainTestlist/classInd.txt", *(f"{n} {color}" for n, color in enumerate(COLORS, 1)))


def clevr_counts(root: Path) -> None:
    base = root / "clevr/CLEVR_v1.0"
    for part, count in (("train", 18), ("val", 9)):
        scenes = [
            {
                "image_filename": save(base / f"images/{part}/CLEVR_{part}_{n:06d}.png", COLORS[n % 3], n),
                "objects": [{}] * (3 + n % 3),
            }
            for n in range(count)
        ]
        text(base / f"scenes/CLEVR_{part}_scenes.json", json.dumps({"info": {}, "scenes": scenes[::-1]}))


def fer2013(root: Path) -> None:
    (root / "fer2013").mkdir()
    with (root / "fer2013/icml_face_data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["emotion", " Usage", " pixels"])
        for n in range(30):
            usage = "Training" if n < 18 else "PublicTest" if n < 24 else "PrivateTest"
            rows.writerow([n % 3, usage, " ".join([str(20 + 100 * (n % 3) + n % 6)] * 48 * 48)])


def sun397(root: Path) -> None:
    classes = ["/a/abbey", "/b/beach", "/o/office/home"]
    text(root / "SUN397/ClassName.txt", *classes)
    keys = {c: [f"{c}/sun_{chr(97 + n)}.jpg" for n in range(10)] for c in classes}
    for color, name in zip(COLORS, classes, strict=True):
        for n, key in enumerate(keys[name]):
            save(root / f"SUN397{key}", color, n)
    for number in range(1, 11):
        for part, rows in (("Training", slice(0, 10, 2)), ("Testing", slice(1, 10, 2))):
            turned = [key for c in classes for key in np.roll(keys[c], number)[rows]]
            text(root / f"SUN397/Partitions/{part}_{number:02d}.txt", *turned)


def class_folders(root: Path, folders: dict[str, int], suffix: str = ".jpg") -> None:
    number = 0
    for folder, count in folders.items():
        for n in range(count):
            save(root / folder / f"{number}{suffix}", COLORS[list(folders).index(folder) % 3], n)
            number += 1


def rendered_sst2(root: Path) -> None:
    for split, count in (("train", PER_CLASS), ("valid", 3), ("test", 3)):
        folders = {f"rendered-sst2/{split}/{name}": count for name in ("negative", "positive")}
        class_folders(root, folders, ".png")


def country211(root: Path) -> None:
    for split, count in (("train", PER_CLASS), ("valid", 3), ("test", 3)):
        class_folders(root, {f"country211/{split}/{name}": count for name in ("AD", "ZA", "ZW")})


def imagenet(root: Path) -> None:
    """Validation pictures lie flat, with the devkit, which numbers the classes in another order."""
    wnids = ("n01440764", "n01443537", "n01484850")
    for wnid, color in zip(wnids, COLORS, strict=True):
        for n in range(PER_CLASS):
            save(root / f"imagenet/train/{wnid}/{wnid}_{n}.JPEG", color, n)
    for n in range(9):
        save(root / f"imagenet/val/ILSVRC2012_val_{n + 1:08d}.JPEG", COLORS[n % 3], n)
    rows = [(3, wnids[0], 0), (1, wnids[1], 0), (2, wnids[2], 0), (4, "n00001740", 3)]
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    data = root / "imagenet/ILSVRC2012_devkit_t12/data"
    mat(data / "meta.mat", synsets=np.array(rows, dtype=kind))
    text(data / "ILSVRC2012_validation_ground_truth.txt", *(str((3, 1, 2)[n % 3]) for n in range(9)))
    names = dict(zip(wnids, COLORS, strict=True))
    (root / "imagenet/classes.json").write_text(json.dumps(names))
    (root / "imagenet/templates.txt").write_text("a {} thing.\nthe {}.\n")


def winoground(root: Path) -> None:
    lines = []
    for n in range(4):
        colors = (COLORS[n % 3], COLORS[(n + 1) % 3])
        entry = {"id": n, "tag": "Object"}
        for place, color in enumerate(colors):
            save(root / f"winoground/data/images/ex_{n}_img_{place}.png", color, n)
            entry |= {f"image_{place}": f"ex_{n}_img_{place}", f"caption_{place}": f"the {color} one"}
        lines.append(json.dumps(entry))
    text(root / "winoground/data/examples.jsonl", *lines)


WRITERS = {
    write.__name__: write
    for write in (
        *(food101, cifar10, cifar100, stanford_cars, fgvc_aircraft, dtd, oxford_pets, caltech101),
        *(flowers102, mnist, stl10, eurosat, gtsrb, kitti, pcam, ucf101, clevr_counts, fer2013, sun397),
        *(rendered_sst2, country211, imagenet, winoground),
    )
}
