"""The examples on the page are the model's own answers, marked right where they are."""

import pytest
import torch
from evaluation.known_answers import KnownAnswers
from sample_runs import SEEN, UNSEEN_STYLES, world

from flava_ds.evaluation.encoding import FrozenModel
from flava_ds.evaluation.masked import masked_batches
from flava_ds.families.flava.views import Kind
from flava_ds.report import examples
from flava_ds.report.examples import Blank, Missing
from flava_ds.report.pictures import uri_of_bytes, uri_of_pixels


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    inputs, module = world(tmp_path_factory.mktemp("world"))
    return FrozenModel(module, inputs)


class Knows(KnownAnswers):
    device = torch.device("cpu")


def test_right_images_and_captions_are_marked(model):
    knows = Knows(lambda concept: concept)
    for caption, found in examples.retrieve_images(knows, model.inputs):
        word = caption.split()[-1]
        assert [picture.right for picture in found] == [True, True, False, False, False]  # a concept has two pictures
        assert [picture.alt.split(",")[0] == word for picture in found] == [picture.right for picture in found]
    for picture, found in examples.retrieve_captions(knows, model.inputs):
        assert [caption.right for caption in found] == [True] + 4 * [False]
        assert found[0].text.split()[-1] == picture.alt.split(",")[0]


def test_a_model_that_confuses_concepts_is_shown_to(model):
    found = dict(examples.retrieve_images(Knows(lambda concept: SEEN[(SEEN.index(concept) + 1) % len(SEEN)]), model.inputs))
    assert not any(picture.right for picture in found[f"a drawing of {SEEN[0]}"][:2])


def test_masked_pictures_differ_from_the_codebooks_drawing_under_the_mask_only(model):
    rows = examples.reconstruct(model, model.inputs)
    samples = model.inputs.unseen_style.select(examples.spaced(24, examples.MASKED_PICTURES), "masked examples")
    [batch] = masked_batches(model.inputs, Kind.IMAGE, samples, 8)
    own = model.inputs.codebook.decode(batch["image_codes"])
    assert len(rows) == 8 and all(len(row) == 4 for row in rows)
    for number, (original, masked, _, codebook) in enumerate(rows):
        assert original.uri == uri_of_pixels(batch["pixel_values"][number])
        assert masked.uri != original.uri and codebook.uri == uri_of_pixels(own[number])
    objective = model.module.objectives["mim"]
    with torch.no_grad():
        encoded = model.model.encode(batch, objective.needs)
        guesses = objective.head.logits(encoded[objective.view].rows(objective.reads(model.model, batch)[objective.view])).argmax(-1)
    codes = batch["image_codes"].clone()
    codes.view(-1)[batch["mim_rows"]] = guesses
    assert rows[3][2].uri == uri_of_pixels(model.inputs.codebook.decode(codes)[3])


def test_blanks_hold_the_answer_and_guesses_that_are_probabilities(model):
    for name in ("mlm", "mmm_text"):
        for text in examples.fill_texts(model, model.inputs, name):
            blanks = [piece for piece in text.pieces if isinstance(piece, Blank)]
            assert blanks and (text.picture is None) == (name == "mlm")
            for blank in blanks:
                shares = [share for _, share in blank.guesses]
                assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
    [caption, *_] = examples.fill_texts(model, model.inputs, "mmm_text")
    words = [piece.answer if isinstance(piece, Blank) else piece for piece in caption.pieces]
    assert words == model.inputs.unseen_style.captions[0].split()
    assert caption.picture.uri == uri_of_bytes(model.inputs.unseen_style.encoded_images[0]) and caption.picture.alt.endswith(UNSEEN_STYLES[0])


def test_pieces_of_words_and_closing_punctuation_are_glued():
    blank = Blank("x", [])
    assert examples.join_pieces(["shin", "##es", ",", blank, "##es", "!"]) == ["shines,", blank, "##es!"]


def test_what_is_lacking_is_named(tmp_path):
    inputs, module = world(tmp_path, codebook_weights=None)
    with pytest.raises(Missing, match="codebook_weights"):
        examples.reconstruct(FrozenModel(module, inputs), inputs)
    del module.objectives["mlm"]
    with pytest.raises(Missing, match="objectives.mlm.weight"):
        examples.fill_texts(FrozenModel(module, inputs), inputs, "mlm")


def test_rows_are_spaced_evenly():
    assert examples.spaced(10, 4).tolist() == [0, 3, 6, 9] and examples.spaced(2, 5).tolist() == [0, 1]
