"""Pictures drawn from held-out captions, judged by whether the model finds the caption again."""

from __future__ import annotations

import torch
from torch import Tensor

from flava_ds.codebook.image_codebook import ImageCodebook
from flava_ds.demo.evaluation.inputs import Inputs
from flava_ds.demo.evaluation.retrieval import recalls
from flava_ds.evaluation.frozen_model import FrozenModel, Lacking
from flava_ds.evaluation.labelled import spaced
from flava_ds.evaluation.protocols import Embedder, Scorer
from flava_ds.evaluation.samples import Samples
from flava_ds.generation import Drawing, decoded, draw

MOST_SAMPLES = 128
DRAWS = "image of a pair"
"""What a Scorer must predict to draw."""
HOW = Drawing(steps=8, guidance=1.0)
ASKED_BY = "the demo's drawing"


def measure(model: FrozenModel, inputs: Inputs) -> dict[str, float]:
    """Returns recall at 1 and 5 of the caption, among those of all the pictures, by a picture drawn from it,
    and that of a random order.

    Beside it the same for what the codebook makes of the true picture, and for the true picture. The judge is
    the model itself: a drawing may fit its caption better than a picture in a style never seen does.
    """
    embedder, codebook = model.need(Embedder, ASKED_BY), drawing_codebook(inputs)
    if DRAWS not in model.need(Scorer, ASKED_BY).predicts:
        raise Lacking("the run does not train the codes of masked patches beside a caption")
    every = inputs.unseen_style
    samples = every.select(spaced(len(every), MOST_SAMPLES), "captions to draw")
    size = model.image_size
    sets = {
        "drawn": draw_captions(model, inputs, codebook, samples),
        "codes": decoded(codebook, inputs.codes(samples, len(samples)).to(model.device), size),
        "picture": samples.pixels(size),
    }
    texts = model.text_embeddings(samples.captions, ASKED_BY)
    metrics: dict[str, float] = {}
    for name, pictures in sets.items():
        images = embedder.project_images(embedder.image_features(pictures.to(model.device)))
        what = f"drawing/{name}/image_to_text_recall_at_"
        metrics |= recalls(what, images, texts, samples.column("concept"))
    return metrics


def drawing_codebook(inputs: Inputs) -> ImageCodebook:
    """Returns the run's codebook. Raises: Lacking if there is none that can draw codes."""
    if inputs.codebook is None:
        raise Lacking(inputs.codebook_problem)
    if inputs.codebook.decoder is None:
        raise Lacking("the codebook was loaded without a decoder, so codes cannot be drawn")
    return inputs.codebook


@torch.inference_mode()
def draw_captions(model: FrozenModel, inputs: Inputs, codebook: ImageCodebook, samples: Samples) -> Tensor:
    """Draws a picture from each sample's caption: [N 3 H W] uint8."""
    most, size, patches = model.most_tokens["pair"], model.image_size, inputs.config.model.num_patches
    captions, [empty] = (model.tokenizer.encode_batch(texts, most) for texts in (samples.captions, [""]))
    scorer = model.need(Scorer, "drawing")
    codebook.to(model.device)
    codes = draw(scorer, codebook, captions, empty, HOW, image_size=size, num_patches=patches)
    return decoded(codebook, codes.to(model.device), size)
