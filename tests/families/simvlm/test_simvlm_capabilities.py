"""What a trained SimVLM offers: likelihoods, log odds, greedy texts, features and states."""

import dataclasses

import numpy as np
import pytest
import torch
from families.bert.bert_peers import CLS, SEP, randomize
from families.family_checks import by_kind, check_image_states, numbered_words, texts_of, with_words
from families.simvlm.simvlm_toys import OBJECTIVES, make_batch, tiny_config
from sample_batches import denominators

from flava_ds.evaluation.protocols import (
    ImageFeatures,
    ImageStates,
    Matcher,
    PairStates,
    TextFeatures,
    TextStates,
    Writer,
)
from flava_ds.families.simvlm.capabilities import SimvlmWriter, offers
from flava_ds.families.simvlm.task import build_task
from flava_ds.training.batch_norms import STATE


@pytest.fixture(scope="module")
def task():
    own = randomize(build_task(tiny_config())).double().eval()
    for name, buffer in own.model.named_buffers():
        if "running_var" in name:
            buffer.uniform_(0.5, 2)
    return own


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return with_words(tiny_config(), tmp_path_factory.mktemp("words"), numbered_words())


def whole(batch):
    """The batch with the shortest prefixes, [CLS] alone."""
    starts = batch["cu_seqlens"].long()
    last = torch.zeros(int(starts[-1]), dtype=torch.bool).index_fill(0, starts[1:] - 1, True)
    bounds = (starts - torch.arange(len(starts))).int()
    rows = torch.arange(len(last))[~last]
    return batch.having(prefix_rows=starts[:-1], suffix_rows=rows, suffix_cu_seqlens=bounds)


@torch.inference_mode()
def log_likelihood(part, pixels, texts):
    """log p(text | image) of each pair: [b]."""
    return part.log_likelihoods(part.model.read(part.starts(texts), part.patches(pixels)), texts)


def test_likelihoods_are_those_of_the_losses(task, config):
    batch, (parts, lacks) = make_batch(), offers(task, config)
    matcher, writer = by_kind(parts, lacks)[Matcher], next(own for own in parts if isinstance(own, Writer))
    texts, pixels = texts_of(batch), batch["pixel_values"]
    beside = log_likelihood(writer, pixels, texts)
    expected = task.losses(whole(batch))["prefix_lm"].sum.detach()
    assert -float(beside.sum()) == pytest.approx(float(expected), rel=1e-9)
    alone = task.losses(whole(make_batch(kind="text")))["text_prefix_lm"].sum.detach()
    one, other = matcher.log_odds(pixels, [texts, texts[::-1]])
    assert float(one.sum()) == pytest.approx(float(alone - expected), rel=1e-7)
    swapped = log_likelihood(writer, pixels, texts[::-1]) - log_likelihood(writer, pixels, texts)
    log_of_texts = (beside - one).flip(0) - (beside - one)
    torch.testing.assert_close(other - one, swapped - log_of_texts)
    [same] = matcher.log_odds(pixels, [[texts[1]] * 4])
    torch.testing.assert_close(same[1], one[1])


def test_greedy_texts_are_the_likeliest_next_tokens_up_to_the_end(task, config):
    """Against the likelihood of every next token, one by one; special tokens but [SEP] are never written."""
    pixels = make_batch()["pixel_values"]
    model = randomize(build_task(config), seed=3).double().eval().model
    writer = SimvlmWriter(model, config.model.load_tokenizer(config))
    found = writer.write(pixels, words=5)
    allowed = [SEP, *(own for own in range(200) if own not in (0, 100, 101, 102, 103))]
    for row, text in enumerate(found):
        assert len(text) <= 5 and not {0, 100, 101, 102, 103} & set(text)
        for place in range(min(len(text) + 1, 5)):
            tried = [np.array([CLS, *text[:place], token]) for token in allowed]
            image = pixels[row : row + 1].expand(len(tried), -1, -1, -1)
            best = allowed[int(log_likelihood(writer, image, tried).argmax())]
            assert best == (text[place] if place < len(text) else SEP)


def test_a_text_ends_at_its_first_end(task, config):
    model = build_task(tiny_config()).eval().model
    with torch.no_grad():
        model.words.weight.zero_()
        model.words.weight[SEP] = 1.0
        model.decoder_norm.weight.zero_()
        model.decoder_norm.bias.fill_(1.0)
    writer = SimvlmWriter(model, config.model.load_tokenizer(config))
    assert writer.write(make_batch()["pixel_values"], words=3) == [[]] * 4


def test_it_learns_to_name_pictures(config):
    """Eight pictures by heart, in training by their own group's moments, afterwards by the running ones."""
    image = dataclasses.replace(config.model.image, norm_group=8, norm_momentum=0.9)
    own = build_task(dataclasses.replace(config, model=dataclasses.replace(config.model, image=image)))
    optimizer, batch = torch.optim.Adam(own.parameters(), lr=3e-3), whole(make_batch((5,) * 8))
    for step in range(250):
        output = own("step", batch, denominators(own, batch))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        with torch.no_grad():
            own.states[STATE].after_update(step, None, output.statistics)
    texts, pixels = texts_of(batch), batch["pixel_values"]
    writer = SimvlmWriter(own.model.eval(), config.model.load_tokenizer(config))
    assert writer.write(pixels, words=5) == [text[1:-1].tolist() for text in texts]
    assert float(log_likelihood(writer, pixels, texts).min()) > -1
    assert float(log_likelihood(writer, pixels, texts[1:] + texts[:1]).max()) < -5


def test_features_do_not_depend_on_the_rest_of_a_batch(task, config):
    batch, parts = make_batch(), by_kind(*offers(task, config))
    pixels, texts = batch["pixel_values"], texts_of(batch)
    images, words = parts[ImageFeatures].image_features(pixels), parts[TextFeatures].text_features(texts)
    assert images.shape == words.shape == (4, 24)
    torch.testing.assert_close(parts[ImageFeatures].image_features(pixels[2:3]), images[2:3])
    torch.testing.assert_close(parts[TextFeatures].text_features(texts[1:2]), words[1:2])
    memory = task.model.read(
        parts[ImageFeatures].starts([np.array([CLS])]), task.model.embed_images(pixels[:1])
    )
    torch.testing.assert_close(images[0], memory.hidden[:4].mean(0).detach())


def test_states_to_be_fine_tuned_have_a_graph_and_leave_the_norms(task, config):
    """Three samples are no whole groups of two."""
    batch, parts = make_batch((5, 7, 9)), by_kind(*offers(task, config))
    texts, pixels = texts_of(batch), batch["pixel_values"]
    check_image_states(parts[ImageFeatures], parts[ImageStates], pixels)
    of_texts, of_pairs = parts[TextStates].text_states(), parts[PairStates].pair_states(2.0)
    assert (of_texts.width, of_pairs.width, of_pairs.image_size) == (24, 24, 32)
    torch.testing.assert_close(of_texts(texts).detach(), parts[TextFeatures].text_features(texts))
    for states, inputs in ((of_texts.train(), (texts,)), (of_pairs.train(), (texts, pixels))):
        states(*inputs).square().sum().backward()
        trained = {name for name, own in states.named_parameters() if own.requires_grad}
        assert {name for name, own in states.named_parameters() if own.grad is not None} == trained
    assert not any("image_tower" in name for name, own in of_texts.named_parameters() if own.requires_grad)
    assert all(own.grad is None for own in task.model.parameters())
    torch.testing.assert_close(of_pairs(texts, pixels), of_pairs.eval()(texts, pixels))


def test_runs_of_one_kind_say_what_they_lack(task, config):
    for name, message in (("prefix_lm", "no texts alone"), ("text_prefix_lm", "no pairs")):
        own = dataclasses.replace(config, objectives={name: OBJECTIVES[name]})
        parts, lacks = offers(build_task(own), own)
        assert message in lacks["Matcher"]
        assert any(isinstance(own, Writer) for own in parts) == (name == "prefix_lm")
