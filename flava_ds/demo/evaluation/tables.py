"""The demo's numbers on a run's page: which ones, their references, and their labels."""

from __future__ import annotations

from dataclasses import dataclass

from flava_ds.demo.evaluation.base import CHANCE, PIXELS
from flava_ds.demo.evaluation.summary import CONTRAST, FLAT
from flava_ds.evaluation.table import percent

SETS = {
    FLAT: "unseen style, flat",
    CONTRAST: "unseen style, high contrast",
    "unseen_style": "unseen style, both",
    "unseen_concepts": "unseen concepts",
    "random": "random mismatch",
    "same_subgroup": "near mismatch",
    "mlm": "MLM, glosses",
    "mim": "MIM, unseen style",
    "mmm_text": "MMM text, unseen style",
    "mmm_image": "MMM image, unseen style",
    "drawn": "drawn from the caption",
    "codes": "the picture as its codes",
    "picture": "the picture",
    "written": "the caption written about it",
    "caption": "the true caption",
}
WHAT = {
    "top1_accuracy": "top-1",
    "top5_accuracy": "top-5",
    "all_concepts_top1_accuracy": "top-1 of all concepts",
    "all_concepts_top5_accuracy": "top-5 of all concepts",
    "text_to_image_recall_at_1": "caption to image, R@1",
    "text_to_image_recall_at_5": "caption to image, R@5",
    "image_to_text_recall_at_1": "image to caption, R@1",
    "image_to_text_recall_at_5": "image to caption, R@5",
    "names_the_concept": "names the concept",
    "group_accuracy": "group (9)",
    "subgroup_accuracy": "subgroup (97)",
    "accuracy": "accuracy",
    "auroc": "area under ROC",
    "loss_nats": "loss, nats",
}
EVALUATIONS = {
    "zero_shot": (
        "Zero-shot concepts",
        "The image embedding against prompts made from labels. No classifier was trained.",
    ),
    "retrieval": (
        "Retrieval",
        "One caption per image; any image or caption of the same concept counts as right.",
    ),
    "linear_probe": (
        "Linear probe",
        (
            "Logistic regression on the frozen image CLS, trained on the training styles. Chance is the most "
            "frequent class."
        ),
    ),
    "masked": (
        "Masked prediction",
        "With the run's own masking and fixed seeds. Chance is the most frequent target.",
    ),
    "drawing": (
        "Pictures drawn from captions",
        (
            "Whether the model finds the caption again, among 128, by what it drew, by what the codebook "
            "makes of the true picture, and by that picture, which is in a style never seen."
        ),
    ),
    "writing": (
        "Captions written about pictures",
        (
            "Whether the model finds the picture again, among 128 in a style never seen, by the caption that "
            "it wrote, and by the true one, which is the most to ask for."
        ),
    ),
    "matching": ("Image-text matching", "As many matches as mismatches; the decision is moved to even odds."),
}
HEADLINES = (
    (f"zero_shot/{FLAT}/top5_accuracy", "Zero-shot concept, top-5", "colour drawings in a style never seen"),
    (
        f"zero_shot/{CONTRAST}/top5_accuracy",
        "Zero-shot concept, top-5",
        "black outlines in a style never seen",
    ),
    ("retrieval/unseen_style/text_to_image_recall_at_5", "Caption to image, R@5", "both unseen styles"),
    (f"linear_probe/{FLAT}/group_accuracy", "Group by linear probe", "unseen flat style, 9 groups"),
    ("masked/mmm_text/accuracy", "Masked words of captions", "beside the picture, unseen style"),
    ("matching/random/accuracy", "Image-text matching", "match or random mismatch"),
)


@dataclass(frozen=True)
class Measure:
    """One number and its references; shares are in [0, 1]."""

    set: str
    what: str
    value: float
    chance: float | None
    pixels: float | None
    share: bool

    @property
    def text(self) -> str:
        """The value, formatted."""
        return percent(self.value) if self.share else f"{self.value:.3f}"

    @property
    def chance_text(self) -> str:
        """Chance, formatted; empty if there is none."""
        return percent(self.chance)

    @property
    def pixels_text(self) -> str:
        """The pixel baseline, formatted; empty if there is none."""
        return percent(self.pixels)


@dataclass(frozen=True)
class Section:
    """The measures of one evaluator."""

    title: str
    about: str
    measures: list[Measure]


def measure(metrics: dict[str, float], name: str, set_words: str, what: str) -> Measure:
    """Collects a metric and its references."""
    return Measure(
        set_words,
        what,
        metrics[name],
        metrics.get(name + CHANCE),
        metrics.get(name + PIXELS),
        not name.endswith("_nats"),
    )


def headlines(metrics: dict[str, float]) -> list[Measure]:
    """Returns the few numbers at the top."""
    return [measure(metrics, name, about, title) for name, title, about in HEADLINES if name in metrics]


def sections(metrics: dict[str, float]) -> list[Section]:
    """Returns every metric, by evaluator and held-out set, in the order of first measurement."""
    found: dict[str, list[Measure]] = {}
    for name in metrics:
        evaluator, *rest = name.split("/")
        if len(rest) == 2 and f"/{rest[1]}" not in (CHANCE, PIXELS):
            words = SETS.get(rest[0], rest[0]), WHAT.get(rest[1], rest[1].replace("_", " "))
            found.setdefault(evaluator, []).append(measure(metrics, name, *words))
    known = [name for name in EVALUATIONS if name in found] + [
        name for name in found if name not in EVALUATIONS
    ]
    return [
        Section(*EVALUATIONS.get(name, (name.replace("_", " "), "")), by_set(found[name])) for name in known
    ]


def by_set(measures: list[Measure]) -> list[Measure]:
    """Groups the measures by held-out set."""
    order = list(dict.fromkeys(measure.set for measure in measures))
    return sorted(measures, key=lambda measure: order.index(measure.set))
