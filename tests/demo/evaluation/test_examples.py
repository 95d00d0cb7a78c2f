"""The examples on the page are the model's own answers, marked right where they are."""

import pytest
import torch
from sample_runs import SEEN, UNSEEN_STYLES, frozen, world

from demo.evaluation.known_answers import KnownAnswers
from flava_ds.demo.evaluation import examples
from flava_ds.demo.evaluation.examples import Blank
from flava_ds.demo.evaluation.masked import masked_inputs
from flava_ds.evaluation.frozen_model import Lacking
from flava_ds.report.pictures import uri_of_bytes, uri_of_pixels


@pytest.fixture(scope="module")
def inputs_and_module(tmp_path_factory):
    return world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def inputs(inputs_and_module):
    return inputs_and_module[0]


@pytest.fixture(scope="module")
def model(inputs_and_module):
    return frozen(*inputs_and_module)


def test_right_images_and_captions_are_marked(model, inputs):
    knows = KnownAnswers(lambda concept: concept)
    for caption, found in examples.retrieve_images(knows, inputs):
        word = caption.split()[-1]
        # a concept has two pictures
        assert [picture.right for picture in found] == [True, True, False, False, False]
        assert [picture.alt.split(",")[0] == word for picture in found] == [
            picture.right for picture in found
        ]
    for picture, found in examples.retrieve_captions(knows, inputs):
        assert [caption.right for caption in found] == [True] + 4 * [False]
        assert found[0].text.split()[-1] == picture.alt.split(",")[0]


def test_a_model_that_confuses_concepts_is_shown_to(model, inputs):
    found = dict(
        examples.retrieve_images(
            KnownAnswers(lambda concept: SEEN[(SEEN.index(concept) + 1) % len(SEEN)]), inputs
        )
    )
    assert not any(picture.right for picture in found[f"a drawing of {SEEN[0]}"][:2])


def test_masked_pictures_differ_from_the_codebooks_drawing_under_the_mask_only(
    model, inputs, inputs_and_module
):
    rows = examples.reconstruct(model, inputs)
    samples = inputs.unseen_style.select(examples.spaced(24, examples.MASKED_PICTURES), "masked examples")
    [batch] = masked_inputs(model, inputs, "image", samples, 8)
    own = inputs.codebook.decode(batch.codes)
    assert len(rows) == 8 and all(len(row) == 4 for row in rows)
    for number, (original, masked, _, codebook) in enumerate(rows):
        assert original.uri == uri_of_pixels(batch.pixels[number])
        assert masked.uri != original.uri and codebook.uri == uri_of_pixels(own[number])
    module = inputs_and_module[1]
    with torch.no_grad():
        [encoded] = module.model.image_encoder(batch.pixels, batch.patches, clean=False)
        states = encoded.last_hidden_state().unflatten(0, (8, -1))[:, 1:][batch.patches]
        guesses = module.objectives["mim"].head.logits(states).argmax(-1)
    codes = batch.codes.clone()
    codes.view(-1)[batch.patch_rows] = guesses
    assert rows[3][2].uri == uri_of_pixels(inputs.codebook.decode(codes)[3])


def test_captions_are_drawn_beside_the_codebooks_limit(model, inputs):
    rows = examples.draw(model, inputs)
    assert len(rows) == examples.QUERIES
    for caption, (drawn, own, true) in rows:
        assert true.alt.split(",")[0] == caption.split()[-1] and len({drawn.uri, own.uri, true.uri}) == 3
    assert [row[1][0].uri for row in examples.draw(model, inputs)] == [row[1][0].uri for row in rows]


def test_blanks_hold_the_answer_and_guesses_that_are_probabilities(model, inputs):
    for name in ("mlm", "mmm_text"):
        for text in examples.fill_texts(model, inputs, name):
            blanks = [piece for piece in text.pieces if isinstance(piece, Blank)]
            assert blanks and (text.picture is None) == (name == "mlm")
            for blank in blanks:
                shares = [share for _, share in blank.guesses]
                assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1
    [caption, *_] = examples.fill_texts(model, inputs, "mmm_text")
    words = [piece.answer if isinstance(piece, Blank) else piece for piece in caption.pieces]
    assert words == inputs.unseen_style.captions[0].split()
    assert caption.picture.uri == uri_of_bytes(
        inputs.unseen_style.encoded_images[0]
    ) and caption.picture.alt.endswith(UNSEEN_STYLES[0])


def test_pieces_of_words_and_closing_punctuation_are_glued():
    blank = Blank("x", [])
    assert examples.join_pieces(["shin", "##es", ",", blank, "##es", "!"]) == ["shines,", blank, "##es!"]


def test_what_is_lacking_is_named(tmp_path):
    inputs, module = world(tmp_path, codebook_weights=None)
    with pytest.raises(Lacking, match="codebook_weights"):
        examples.reconstruct(frozen(inputs, module), inputs)
    with pytest.raises(Lacking, match="codebook_weights"):
        examples.draw(frozen(inputs, module), inputs)
    del module.objectives["mlm"]
    with pytest.raises(Lacking, match="objectives.mlm.weight"):
        examples.fill_texts(frozen(inputs, module), inputs, "mlm")
