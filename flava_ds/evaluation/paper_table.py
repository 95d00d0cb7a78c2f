"""The paper's table of all tasks, and of which of our numbers each row is.

Source: FLAVA, Table C.1.
"""

from __future__ import annotations

from dataclasses import dataclass

PAPER = "FLAVA, Table C.1"
COLUMNS = (
    *("MIM", "MLM", "FLAVA_C local", "FLAVA_C", "FLAVA_C BEiT", "FLAVA_C DINO", "FLAVA_MM", "FLAVA_MM BEiT"),
    *("FLAVA_MM DINO", "FLAVA no init", "FLAVA BEiT", "FLAVA", "CLIP on PMD", "CLIP-400M"),
)
"""Columns 1 to 14. FLAVA's own is 12, whose image encoder began as DINO's."""
DOMAINS = {"vision": "Vision", "text": "NLP", "pairs": "Multimodal"}
"""In the order of the paper's summary; each domain's tasks are averaged, then the domains."""


@dataclass(frozen=True)
class Row:
    """One row: a number of a task, and what the paper has in each column, a share like ours."""

    domain: str
    title: str
    task: str
    number: str
    values: dict[str, float | None]


_VISION = """
ImageNet 41.79 - 70.64 74.09 74.07 75.87 74.34 74.37 76.23 73.49 74.59 75.54 72.95 80.20
Food101 53.30 - 85.02 87.77 88.04 88.94 87.53 87.82 88.88 87.39 88.02 88.51 85.49 91.56
CIFAR10 76.20 - 91.74 93.44 91.65 92.49 92.37 91.17 92.29 92.63 91.91 92.87 91.25 94.93
CIFAR100 55.57 - 73.54 78.37 74.58 76.32 78.01 74.76 76.97 76.49 75.29 77.68 74.40 81.10
Cars 14.71 - 60.86 72.12 69.92 71.83 72.07 69.44 71.84 66.81 69.44 70.87 62.84 85.92
Aircraft 13.83 - 42.96 49.74 46.11 49.17 48.90 44.73 48.63 44.73 45.81 47.31 40.02 51.40
DTD 55.53 - 73.51 76.86 76.97 77.77 76.91 75.80 77.18 75.80 76.54 77.29 73.40 78.46
Pets 34.48 - 80.10 84.98 84.63 86.26 84.93 84.55 86.75 82.77 84.60 84.82 79.61 91.66
Caltech101 67.36 - 92.98 94.91 94.95 95.94 95.32 95.46 95.45 94.95 94.89 95.74 93.76 95.51
Flowers102 67.23 - 94.42 96.36 96.08 96.86 96.39 96.03 96.49 95.58 96.34 96.37 94.94 97.12
MNIST 96.40 - 97.75 98.39 98.28 98.49 98.58 97.94 98.38 98.70 98.38 98.42 97.38 99.01
STL10 80.12 - 97.52 98.06 98.71 98.75 98.31 98.50 98.94 98.32 98.55 98.89 97.29 99.09
EuroSAT 95.48 - 95.76 97.00 97.04 97.24 96.98 97.36 96.72 97.04 97.40 97.26 95.70 95.38
GTSRB 63.14 - 73.81 78.92 74.76 79.27 77.93 76.13 79.01 77.71 76.96 79.46 76.34 88.61
KITTI 86.03 - 87.77 87.83 89.04 88.03 88.84 89.77 89.71 88.70 88.57 89.04 84.89 86.56
PCAM 85.10 - 86.04 85.02 85.09 85.25 85.51 85.29 85.27 85.72 84.84 85.31 83.99 83.72
UCF101 46.34 - 77.82 82.69 80.60 82.90 82.90 81.52 83.40 81.42 81.60 83.32 77.85 85.17
CLEVR 61.51 - 73.86 79.35 80.24 79.84 81.66 80.96 79.81 80.62 80.88 79.66 73.64 75.89
FER2013 50.98 - 57.40 59.96 60.91 60.30 60.87 60.34 61.12 58.99 60.43 61.12 57.04 68.36
SUN397 52.45 - 79.43 81.27 81.96 82.75 81.41 81.99 82.16 81.05 81.76 82.17 79.96 82.05
SST-image 57.77 - 58.65 56.67 58.05 58.98 59.25 56.29 57.17 56.40 56.12 57.11 56.84 74.68
Country211 8.87 - 22.98 27.27 26.87 27.84 26.75 26.64 27.69 27.01 27.28 28.92 25.12 30.10
"""
_TEXT = """
MNLI - 73.22 70.65 70.99 74.12 74.23 76.82 78.59 78.74 78.06 80.96 80.32 32.84 33.52
CoLA - 39.55 9.76 17.58 15.30 14.92 38.97 39.41 45.04 44.22 44.52 50.65 11.02 25.37
MRPC - 73.24 73.20 76.31 74.28 73.50 79.14 79.30 80.66 78.90 85.96 84.16 68.74 69.91
QQP - 86.68 85.08 85.94 87.29 87.02 88.48 88.52 88.82 88.60 89.27 88.74 59.16 65.33
SST-2 - 87.96 85.78 86.47 88.30 89.22 89.33 91.51 90.02 90.14 91.74 90.94 83.49 88.19
QNLI - 82.32 70.25 71.85 80.67 80.93 84.77 86.05 86.23 86.40 88.52 87.31 49.46 50.54
RTE - 50.54 49.10 51.99 52.71 49.82 51.99 57.76 50.90 54.87 51.62 57.76 53.07 55.23
STS-B - 78.89 60.08 57.28 76.93 76.17 84.29 86.70 85.86 83.21 86.64 85.67 13.70 15.98
"""
_PAIRS = """
VQAv2 - - 65.82 67.13 66.98 68.34 71.69 73.14 73.75 71.29 72.23 72.49 59.81 54.83
SNLI-VE - - 74.03 73.27 74.37 73.59 78.36 79.05 79.01 78.14 78.49 78.89 73.53 74.27
HatefulMemes - - 59.31 55.58 63.20 59.65 70.72 69.61 79.69 77.45 74.10 76.09 56.59 63.93
F30K-TR@1 - - 68.80 68.30 64.90 70.80 69.30 71.00 69.80 64.50 69.50 67.70 60.90 82.20
F30K-TR@5 - - 91.80 93.50 92.20 92.90 92.90 91.80 92.00 90.30 93.00 94.00 88.90 96.60
F30K-IR@1 - - 59.24 60.56 63.14 65.06 63.16 64.60 64.84 60.04 63.78 65.22 56.48 62.08
F30K-IR@5 - - 84.58 86.68 87.94 89.32 87.70 87.98 88.94 86.46 87.94 89.38 83.60 85.68
COCO-TR@1 - - 48.28 43.08 44.00 45.06 43.48 42.44 44.62 39.88 42.24 42.74 37.12 52.48
COCO-TR@5 - - 76.96 75.82 75.90 77.04 76.76 75.66 77.34 72.84 75.38 76.76 69.48 76.68
COCO-IR@1 - - 37.34 37.59 38.28 39.20 38.46 37.54 38.99 34.95 37.89 38.38 33.29 33.07
COCO-IR@5 - - 64.41 67.28 67.29 68.20 67.68 66.71 67.70 64.63 66.96 67.47 62.47 58.37
"""
_PROBES = {
    "ImageNet": "imagenet",
    "Food101": "food101",
    "CIFAR10": "cifar10",
    "CIFAR100": "cifar100",
    "Cars": "stanford_cars",
    "Aircraft": "fgvc_aircraft",
    "DTD": "dtd",
    "Pets": "oxford_pets",
    "Caltech101": "caltech101",
    "Flowers102": "flowers102",
    "MNIST": "mnist",
    "STL10": "stl10",
    "EuroSAT": "eurosat",
    "GTSRB": "gtsrb",
    "KITTI": "kitti",
    "PCAM": "pcam",
    "UCF101": "ucf101",
    "CLEVR": "clevr_counts",
    "FER2013": "fer2013",
    "SUN397": "sun397",
    "SST-image": "rendered_sst2",
    "Country211": "country211",
}
_OTHERS = {
    "MNLI": ("glue_mnli", "accuracy"),
    "CoLA": ("glue_cola", "matthews"),
    "MRPC": ("glue_mrpc", "accuracy_and_f1"),
    "QQP": ("glue_qqp", "accuracy_and_f1"),
    "SST-2": ("glue_sst2", "accuracy"),
    "QNLI": ("glue_qnli", "accuracy"),
    "RTE": ("glue_rte", "accuracy"),
    "STS-B": ("glue_stsb", "pearson"),
    "VQAv2": ("vqav2", "vqa_accuracy"),
    "SNLI-VE": ("snli_ve", "accuracy"),
    "HatefulMemes": ("hateful_memes", "roc_area"),
    "F30K-TR@1": ("flickr30k_retrieval", "image_to_text_recall_at_1"),
    "F30K-TR@5": ("flickr30k_retrieval", "image_to_text_recall_at_5"),
    "F30K-IR@1": ("flickr30k_retrieval", "text_to_image_recall_at_1"),
    "F30K-IR@5": ("flickr30k_retrieval", "text_to_image_recall_at_5"),
    "COCO-TR@1": ("coco_retrieval", "image_to_text_recall_at_1"),
    "COCO-TR@5": ("coco_retrieval", "image_to_text_recall_at_5"),
    "COCO-IR@1": ("coco_retrieval", "text_to_image_recall_at_1"),
    "COCO-IR@5": ("coco_retrieval", "text_to_image_recall_at_5"),
}
_MEASURED = {title: (f"{name}_probe", "accuracy") for title, name in _PROBES.items()} | _OTHERS

OTHER_SPLITS = {"vqav2": "test-dev"}
"""Task -> the split of its published numbers, where no other can be scored without the challenge's server."""


def on_its_split(of: str, task: str) -> str:
    """Names a system, with the split of its published number where that is another than ours."""
    return f"{of} ({OTHER_SPLITS[task]})" if task in OTHER_SPLITS else of


RIVALS, OWN_PAPERS = "FLAVA, Table 5", "the system's own paper, as recalled"
_RIVAL_COLUMNS = (
    *("VQAv2", "SNLI-VE", "HatefulMemes", "CoLA", "SST-2", "RTE", "MRPC", "QQP", "MNLI", "QNLI", "STS-B"),
    "ImageNet",
)
_RIVALS = """
bert BERT-base - - - 54.6 92.5 62.5 81.9/87.6 90.6/87.4 84.4 91.0 88.1 -
simvlm SimVLM-base 77.9 84.2 - - - - - - - - - 80.6
visualbert VisualBERT 70.8 77.3 74.1 38.6 89.4 56.6 71.9/82.1 89.4/86.0 81.6 87.0 81.8 -
uniter UNITER 72.7 78.3 - 37.4 89.7 55.6 69.3/80.3 89.2/85.7 80.9 86.0 75.3 -
vlbert VL-BERT 71.2 - - 38.7 89.8 55.7 70.6/81.8 89.0/85.4 81.2 86.3 82.9 -
vilbert ViLBERT 70.6 75.7 74.1 36.1 90.4 53.7 69.0/79.4 88.6/85.0 79.9 83.8 77.9 -
lxmert LXMERT 72.4 - - 39.0 90.2 57.2 69.7/80.4 75.3/75.3 80.4 84.2 75.3 -
unit UniT 67.0 73.1 - - 89.3 - - 90.6/- 81.5 88.0 - -
"""
"""Family, name, and its columns: accuracy and F1 of MRPC and QQP."""
_OWN = {
    ("vqav2", "vqa_accuracy", "vilt"): ("ViLT (test-dev)", 0.7126),
    ("vqav2", "vqa_accuracy", "albef"): ("ALBEF of 4 M images (test-dev)", 0.7454),
    ("snli_ve", "accuracy", "albef"): ("ALBEF of 4 M images", 0.8030),
    ("vqav2", "vqa_accuracy", "vinvl"): ("VinVL-base (test-std)", 0.7612),
}
"""Of systems that the paper's table does not have."""


def _read() -> tuple[Row, ...]:
    rows = []
    for domain, text in zip(DOMAINS, (_VISION, _TEXT, _PAIRS), strict=True):
        for line in text.split("\n")[1:-1]:
            title, *values = line.split()
            shares = [None if value == "-" else float(value) / 100 for value in values]
            columns = dict(zip(COLUMNS, shares, strict=True))
            rows.append(Row(domain, title, *_MEASURED[title], columns))
    return tuple(rows)


ROWS = _read()
"""In the paper's order."""


def _read_rivals() -> dict[tuple[str, str, str], tuple[str, float, str]]:
    found = {key: (*known, OWN_PAPERS) for key, known in _OWN.items()}
    for line in _RIVALS.split("\n")[1:-1]:
        family, name, *cells = line.split()
        for title, cell in zip(_RIVAL_COLUMNS, cells, strict=True):
            task, number = _MEASURED[title]
            both = ("accuracy", "f1") if "/" in cell else (number,)
            for number, value in zip(both, cell.split("/"), strict=True):
                if value != "-":
                    found[task, number, family] = on_its_split(name, task), float(value) / 100, RIVALS
    return found


RIVAL_NUMBERS = _read_rivals()
"""(task, number, family) -> the system, its published share, and where that stands. In GLUE, those of the
models that read regions are of a study that trained them again (Iki and Aizawa 2021).
"""
