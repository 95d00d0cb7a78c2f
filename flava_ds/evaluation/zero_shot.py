"""Zero-shot concept classification: the image embedding against the embeddings of prompts made from labels."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from flava_ds.evaluation.base import Evaluator
from flava_ds.evaluation.encoding import FrozenModel
from flava_ds.evaluation.nearest import recall, top_k
from flava_ds.evaluation.samples import Samples

TEMPLATES = ("{}", "a drawing of {}", "a picture of {}", "an emoji of {}", "a black and white icon of {}")
"""The same for every style: the classifier is not told which style it will see."""


class ZeroShot(Evaluator):
    """Tells the concept of images of a style never seen in training, and of concepts never seen at all.

    Source: paper, section 4 (prompts as in CLIP: averaged over templates, renormalised).
    """

    name = "zero_shot"

    def run(self, model: FrozenModel) -> dict[str, float]:
        """Returns top-1 and top-5 accuracy of every held-out set, beside chance."""
        labels = self.inputs.labels
        everything = sorted(labels)
        classifier = concept_classifier(model, [labels[concept] for concept in everything])
        metrics = {}
        for set_name, samples in self.held_out_sets().items():
            embeddings, right = model.images(samples).embeddings, samples.column("concept")
            present = np.isin(everything, np.unique(right))
            rows = torch.from_numpy(np.flatnonzero(present)).to(classifier.device)
            metrics |= classify(f"{self.name}/{set_name}/", embeddings, right, classifier[rows], np.array(everything)[present])
            metrics |= classify(f"{self.name}/{set_name}/all_concepts_", embeddings, right, classifier, np.array(everything))
        return metrics

    def held_out_sets(self) -> dict[str, Samples]:
        """The held-out styles one by one, then the concepts never seen."""
        return self.inputs.styles_of(self.inputs.unseen_style) | {"unseen_concepts": self.inputs.unseen_concepts}


def concept_classifier(model: FrozenModel, labels: list[str]) -> Tensor:
    """Embeds each label in every template, averages and renormalises: [len(labels) r]."""
    embedded = model.texts([template.format(label) for label in labels for template in TEMPLATES])
    return F.normalize(embedded.unflatten(0, (len(labels), len(TEMPLATES))).mean(dim=1), dim=-1)


def classify(prefix: str, images: Tensor, right: np.ndarray, classifier: Tensor, concepts: np.ndarray) -> dict[str, float]:
    """Returns top-1 and top-5 accuracy and their chance among these concepts, under names that begin with `prefix`.

    Shapes:
        images      [N r]
        right       [N]    concept names
        classifier  [C r]
        concepts    [C]    concept names
    """
    found = concepts[top_k(images, classifier, 5).cpu().numpy()]
    metrics = {}
    for k in (1, 5):
        metrics[f"{prefix}top{k}_accuracy"] = recall(found, right, k)
        metrics[f"{prefix}top{k}_accuracy/chance"] = min(k, len(concepts)) / len(concepts)
    return metrics
