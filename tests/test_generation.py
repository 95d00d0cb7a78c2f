"""Drawing and writing by filling masks, with an oracle that knows what belongs beside what."""

import math

import numpy as np
import pytest
import torch
from sample_runs import frozen, world

from flava_ds.evaluation.protocols import Scorer
from flava_ds.generation import Drawing, decoded, draw, write, write_best

PATCHES, CODES, SIZE = 16, 8, 12


class Oracle:
    """Scores as if each caption had a picture of codes, and each picture a text; keeps what it was shown."""

    predicts = frozenset({"image of a pair", "text of a pair"})

    def __init__(self, scores):
        self.scores, self.seen = scores, []

    def read(self, texts=None, pixels=None, patches=None):
        self.seen.append(
            (np.stack(texts).copy(), pixels.clone(), None if patches is None else patches.clone())
        )
        return Asked(self.scores(texts, pixels))


class Asked:
    def __init__(self, scores):
        self.scores = scores

    def codes(self, rows):
        return Given(self.scores.flatten(0, 1)[rows])

    tokens = codes


class Given:
    def __init__(self, scores):
        self.scores = scores

    def logits(self):
        return self.scores.clone()


class Paint(torch.nn.Module):
    """A codebook whose code c is a grey of brightness c, for a grid of 4 x 4."""

    def __init__(self):
        super().__init__()
        self.place = torch.nn.Parameter(torch.zeros(()))

    def decode(self, codes):
        return (codes.view(-1, 1, 4, 4) / 255).expand(-1, 3, -1, -1)


def wanted(caption: int) -> torch.Tensor:
    return (torch.arange(PATCHES) * caption) % CODES


def by_caption(texts, pixels):
    """Sure of the caption's codes; the caption 0, of no words, says code 0 is likeliest of all."""
    scores = torch.zeros(len(texts), PATCHES, CODES)
    for row, text in enumerate(texts):
        scores[row, torch.arange(PATCHES), wanted(int(text[0]))] = 30.0 if text[0] else 90.0
    return scores


def drawn(how: Drawing, captions=(3, 5), scores=by_caption):
    oracle, texts = Oracle(scores), [np.array([caption]) for caption in captions]
    codes = draw(oracle, Paint(), texts, np.array([0]), how, image_size=SIZE, num_patches=PATCHES)
    return codes, oracle


@pytest.mark.parametrize("steps", [1, 4, 16])
def test_a_picture_becomes_what_the_model_is_sure_of(steps):
    codes, oracle = drawn(Drawing(steps=steps, guidance=0))
    assert torch.equal(codes, torch.stack([wanted(3), wanted(5)]))
    still_open = [patches.sum(1).tolist() for _, _, patches in oracle.seen]
    expected = [math.floor(PATCHES * math.cos(math.pi / 2 * turn / steps)) for turn in range(steps)]
    assert still_open == [[count] * 2 for count in expected] and expected[0] == PATCHES


def test_what_is_fixed_stays_and_is_shown():
    """Every turn would change its mind about all codes, but may only about those still masked."""
    turns = iter(range(100))

    def fickle(texts, pixels):
        scores = torch.zeros(len(texts), PATCHES, CODES)
        scores[:, :, next(turns) % CODES] = 30.0
        return scores

    codes, oracle = drawn(Drawing(steps=4, guidance=0), scores=fickle)
    for turn, (_, pixels, patches) in enumerate(oracle.seen[1:], start=1):
        fixed = decoded(Paint(), codes, 4)[:, 0].flatten(1)[~patches]
        assert fixed.max() < turn, "codes of earlier turns"
        shown = decoded(Paint(), codes, SIZE).view(2, 3, 4, 3, 4, 3)[:, 0, :, 1, :, 1].flatten(1)
        now = pixels.view(2, 3, 4, 3, 4, 3)[:, 0, :, 1, :, 1].flatten(1)
        assert torch.equal(now[~patches], shown[~patches])
    assert codes.unique().tolist() == [0, 1, 2, 3]


def test_guidance_moves_away_from_the_empty_caption():
    """(1 + g) * 30 for the wanted code against -g * 90 for what the empty caption says."""
    unguided, _ = drawn(Drawing(steps=1, guidance=0, temperature=0))
    guided, oracle = drawn(Drawing(steps=1, guidance=1, temperature=0))
    same = unguided == wanted(0)
    assert torch.equal(guided[~same], unguided[~same]) and (guided[same] != 0).all() and same.any()
    assert [text[0, 0] for text, _, _ in oracle.seen] == [3, 0]


def test_the_seed_decides_what_chance_does():
    def unsure(texts, pixels):
        return torch.zeros(len(texts), PATCHES, CODES)

    first, second, other = (drawn(Drawing(seed=seed), scores=unsure)[0] for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert not drawn(Drawing(temperature=0), scores=unsure)[0].any(), "the likeliest, the first of equals"


def test_a_text_gets_its_surest_word_first(tmp_path):
    inputs, module = world(tmp_path)
    model = frozen(inputs, module)
    tokenizer = model.tokenizer
    said = tokenizer.encode_batch(["kite flies owl"], 9)[0][1:-1]

    def likes(texts, pixels):
        scores = torch.zeros(len(texts), len(texts[0]), tokenizer.vocab_size + 3)
        scores[:, :, tokenizer.mask_id] = 99.0  # never written
        scores[:, :, tokenizer.vocab_size] = 99.0  # no token
        for place, (word, sure) in enumerate(zip(said, (5.0, 9.0, 7.0), strict=True), start=1):
            scores[:, place, word] = sure
        return scores

    oracle = Oracle(likes)
    texts, surety = write(oracle, tokenizer, torch.zeros(2, 3, 4, 4, dtype=torch.uint8), words=3)
    assert texts == [said.tolist()] * 2 and surety[0] == surety[1] < 0
    open_places = [(text[0] == tokenizer.mask_id).nonzero()[0].tolist() for text, _, _ in oracle.seen]
    assert open_places == [[1, 2, 3], [1, 3], [1]]
    real = write(
        model.need(Scorer, "test"), tokenizer, inputs.unseen_style.pixels(SIZE)[:2], words=4, turns=2
    )
    assert all(len(text) == 4 and tokenizer.mask_id not in text for text in real[0])


def test_the_likeliest_length_is_kept_for_each_picture(tmp_path):
    inputs, module = world(tmp_path)
    tokenizer = frozen(inputs, module).tokenizer
    owl, kite = (int(tokenizer.encode_batch([word], 3)[0][1]) for word in ("owl", "kite"))

    def likes(texts, pixels):
        """One word about the first picture, two about the second, are sure."""
        scores = torch.zeros(len(texts), len(texts[0]), tokenizer.vocab_size)
        sure = torch.tensor([9.0, 1.0] if len(texts[0]) == 3 else [1.0, 9.0])
        scores[:, :, owl], scores[:, :, kite] = sure[:, None], 0.5
        return scores

    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert write_best(Oracle(likes), tokenizer, pixels, words=(1, 2), turns=4) == [[owl], [owl, owl]]
