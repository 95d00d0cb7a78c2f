"""Miniatures of the language and multimodal data sets in exactly their published layouts, with labels that a
word or a picture gives away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from evaluation.color_world import png

GIVEN_AWAY = ("apple", "bear", "cloud")
"""Which word stands in a sample of class 0, 1, 2."""
COLOR_OF = ("red", "green", "blue")


def word(label: int) -> str:
    """The word that gives a class away, among others and with a quotation mark that is none."""
    return f'a "{GIVEN_AWAY[label]} of moon'


def write_tsv(file: Path, header: str | None, rows: list[list[object]]) -> None:
    """Writes columns without quoting, a line of names first where there is one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(map(str, row)) for row in rows]
    file.write_text("\n".join([*([header.replace(" ", "\t")] if header else []), *lines]) + "\n", "utf-8")


def two_splits(write: Callable[[Path, int], None], folder: Path, train: int, dev: int) -> None:
    """Writes train.tsv and dev.tsv of so many lines."""
    write(folder / "train.tsv", train)
    write(folder / "dev.tsv", dev)


def write_cola(root: Path, train: int = 16, dev: int = 8) -> None:
    """No line of names; source, label, the author's mark, sentence."""
    two_splits(
        lambda f, n: write_tsv(
            f, None, [["gj04", i % 2, "*" if i % 2 == 0 else "", word(i % 2)] for i in range(n)]
        ),
        root / "CoLA",
        train,
        dev,
    )


def write_sst2(root: Path, train: int = 16, dev: int = 8) -> None:
    """sentence, label."""
    two_splits(
        lambda f, n: write_tsv(f, "sentence label", [[word(i % 2), i % 2] for i in range(n)]),
        root / "SST-2",
        train,
        dev,
    )


def write_mrpc(root: Path) -> None:
    """The first line begins with a byte-order mark, as in Microsoft's file."""
    header = "\ufeffQuality #1_ID #2_ID #1_String #2_String"
    for split, count in {"train": 16, "dev": 8}.items():
        file = root / "MRPC" / f"{split}.tsv"
        write_tsv(file, header, [[i % 2, 100 + i, 200 + i, "the moon", word(i % 2)] for i in range(count)])
        file.write_text(file.read_text("utf-8").replace("_ID", " ID").replace("_String", " String"), "utf-8")


def write_qqp(root: Path) -> None:
    """One line is cut in two, as some are in the published file."""
    header = "id qid1 qid2 question1 question2 is_duplicate"
    two_splits(
        lambda f, n: write_tsv(
            f, header, [*([i, i, i, "the kite", word(i % 2), i % 2] for i in range(n)), ["99", "half a line"]]
        ),
        root / "QQP",
        16,
        8,
    )


def write_stsb(root: Path) -> None:
    """Ten columns, the score last."""
    header = "index genre filename year old_index source1 source2 sentence1 sentence2 score"
    two_splits(
        lambda f, n: write_tsv(
            f,
            header,
            [[i, *"gfyoab", "the moon", word(i % 3), f"{(0, 2.5, 5)[i % 3]:.3f}"] for i in range(n)],
        ),
        root / "STS-B",
        18,
        9,
    )


def write_mnli(root: Path) -> None:
    """Twelve columns in train, sixteen in the two dev files, the label last."""
    parses = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse"
    header = f"{parses} sentence2_parse sentence1 sentence2"
    labels = ("contradiction", "neutral", "entailment")
    for split, count in {"train": 18, "dev_matched": 9, "dev_mismatched": 6}.items():
        judges = ["label1"] if split == "train" else [f"label{n}" for n in range(1, 6)]
        rows = [
            [i, *"abcdefg", "the moon", word(i % 3), *["neutral"] * len(judges), labels[i % 3]]
            for i in range(count)
        ]
        write_tsv(root / "MNLI" / f"{split}.tsv", f"{header} {' '.join(judges)} gold_label", rows)


def write_qnli(root: Path) -> None:
    """index, question, sentence, label."""
    write_inference(root / "QNLI", "index question sentence label")


def write_rte(root: Path) -> None:
    """index, sentence1, sentence2, label."""
    write_inference(root / "RTE", "index sentence1 sentence2 label")


def write_inference(folder: Path, header: str) -> None:
    """Two texts and a class by name."""
    labels = ("entailment", "not_entailment")
    two_splits(
        lambda f, n: write_tsv(
            f, header, [[i, "the moon grows", word(i % 2), labels[i % 2]] for i in range(n)]
        ),
        folder,
        16,
        8,
    )


def write_vqav2(root: Path) -> None:
    """Questions and annotations of two splits; three answers are frequent, one is not."""
    folder, answers, number = root / "vqav2", ("red", "2", "don't know"), 0
    for split, count in {"train": 24, "val": 9}.items():
        questions, annotations = [], []
        (folder / f"{split}2014").mkdir(parents=True)
        for i in range(count):
            number += 1
            best = answers[i % 3]
            said = [best] * 7 + ["two" if best == "2" else best, "rare", "kite"]
            questions.append({"image_id": number, "question": "a kite ?", "question_id": 10 * number})
            annotations.append(
                {
                    "question_id": 10 * number,
                    "image_id": number,
                    "multiple_choice_answer": best,
                    "answers": [{"answer": s, "answer_id": n + 1} for n, s in enumerate(said)],
                }
            )
            picture = folder / f"{split}2014" / f"COCO_{split}2014_{number:012d}.jpg"
            picture.write_bytes(png(COLOR_OF[i % 3], i))
        write_json(folder / f"v2_OpenEnded_mscoco_{split}2014_questions.json", {"questions": questions})
        write_json(folder / f"v2_mscoco_{split}2014_annotations.json", {"annotations": annotations})


def write_json(file: Path, value: object) -> None:
    """Writes one JSON value."""
    file.write_text(json.dumps(value))


def write_snli_ve(root: Path, train: int = 18) -> None:
    """Pictures of Flickr30K and sentences; the train file has the older name of the picture's field."""
    labels = ("contradiction", "neutral", "entailment")
    pictures = root / "snli_ve" / "flickr30k-images"
    pictures.mkdir(parents=True)
    for number in range(6):
        (pictures / f"{4000 + number}.jpg").write_bytes(png(COLOR_OF[number % 3], number))
    for split, count in {"train": train, "dev": 6, "test": 9}.items():
        named = ("Flikr30kID", ".jpg") if split == "train" else ("Flickr30K_ID", "")
        lines = [
            {
                named[0]: f"{4000 + i % 6}{named[1]}",
                "sentence1": "not used",
                "sentence2": "a kite flies",
                "gold_label": labels[i % 3],
            }
            for i in range(count)
        ]
        file = root / "snli_ve" / f"snli_ve_{split}.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_hateful_memes(root: Path) -> None:
    """SPLIT.jsonl and img/; there is no unseen split, as in the first release's labelled part."""
    folder, number = root / "hateful_memes", 0
    (folder / "img").mkdir(parents=True)
    for split, count in {"train": 16, "dev_seen": 8, "test_seen": 10}.items():
        lines = []
        for i in range(count):
            number += 1
            (folder / "img" / f"{number:05d}.png").write_bytes(png(COLOR_OF[i % 2], i))
            meme = {"id": number, "img": f"img/{number:05d}.png", "label": i % 2, "text": word(i % 2)}
            lines.append(json.dumps(meme) + "\n")
        (folder / f"{split}.jsonl").write_text("".join(lines))


WRITERS = {
    "glue_cola": write_cola,
    "glue_sst2": write_sst2,
    "glue_mrpc": write_mrpc,
    "glue_qqp": write_qqp,
    "glue_stsb": write_stsb,
    "glue_mnli": write_mnli,
    "glue_qnli": write_qnli,
    "glue_rte": write_rte,
    "vqav2": write_vqav2,
    "snli_ve": write_snli_ve,
    "hateful_memes": write_hateful_memes,
}
"""What writes a task's data set under a root."""
