"""BERT against transformers' BertForPreTraining on random weights, and its counts of parameters and work."""

import dataclasses

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
from families.bert.bert_peers import (
    difference,
    inputs_of,
    make_batch,
    our_model,
    own_tensors,
    randomize,
    their_bert,
    tiny_config,
)
from families.family_checks import (
    check_decay,
    check_recomputation,
    check_users,
    numbered_words,
    step,
    texts_of,
    with_words,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.config import Config
from flava_ds.errors import ConfigError
from flava_ds.families.bert.capabilities import offers
from flava_ds.families.bert.config import BertConfig
from flava_ds.families.bert.hf import LAYOUTS
from flava_ds.families.bert.task import BertTask, build_task
from flava_ds.layouts import to_ours
from flava_ds.objectives.global_contrastive import GlobalContrastiveConfig
from flava_ds.objectives.itm import ImageTextMatchingConfig
from flava_ds.optimizers.adamw import AdamWConfig


@pytest.mark.parametrize(
    ("dtype", "states", "gradients"), [(torch.float32, 1e-5, 3e-5), (torch.float64, 1e-12, 1e-12)]
)
@pytest.mark.parametrize("segments", [((3, 4), (7, 1), (5, 0), (2, 6)), ((4, 4), (4, 4))])
def test_transformers_agree(dtype, states, gradients, segments, told):
    config, batch = tiny_config(), make_batch(segments)
    told.parity("bert", "BertForPreTraining", dtype, states, gradients)
    theirs = their_bert(config).to(dtype)
    task = our_model(config, theirs)
    output = theirs(**inputs_of(batch), output_hidden_states=True)
    hidden = task.model.encode(batch, {"text_masked"})["text_masked"].last_hidden_state()
    mask = inputs_of(batch)["attention_mask"].bool()
    assert told.output(difference(hidden, output.hidden_states[-1][mask])) <= states
    loss = step(task, batch)
    assert told.output(difference(loss, output.loss)) <= states
    loss.backward()
    output.loss.backward()
    found = own_tensors(theirs, {name: parameter.grad for name, parameter in theirs.named_parameters()})
    expected = to_ours(found, LAYOUTS.entries(config.model, heads=True), "their gradients")
    ours = {name: parameter.grad for name, parameter in task.named_parameters()}
    assert ours.keys() == expected.keys()
    apart = {name: difference(ours[name], expected[name]) for name in ours}
    told.gradients(apart, gradients)


def test_parameter_counts_are_the_published_ones():
    config = dataclasses.replace(tiny_config(), model=BertConfig())
    with torch.device("meta"):
        task = BertTask(config)
    counts = [sum(parameter.numel() for parameter in own.parameters()) for own in (task.model, task)]
    assert counts == [109_482_240, 110_106_428]


def test_every_parameter_gets_a_gradient_from_the_objective_that_says_so():
    check_users(build_task, tiny_config(), make_batch())


def test_activation_checkpointing_changes_no_gradient():
    check_recomputation(build_task, tiny_config(), lambda task: step(task, make_batch()))


def test_closed_form_matches_the_flop_counter():
    config, batch = tiny_config(), make_batch(((4, 4),) * 6)
    task = build_task(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        step(task, batch)
    assert sum(part.flops for part in task.passes(batch)) == pytest.approx(
        counter.get_total_flops(), rel=2e-3
    )


def test_only_gains_and_biases_are_exempt_from_decay():
    optimizer = AdamWConfig(weight_decay=0.01, decay_norm_and_bias=False)
    check_decay(build_task(tiny_config()), optimizer, lambda name, _: name.endswith(("bias", "norm.weight")))


def test_capabilities_are_those_of_the_training_model(tmp_path):
    batch = make_batch(((4, 3), (2, 0), (6, 1)))
    config = with_words(tiny_config(), tmp_path, numbered_words())
    task = randomize(build_task(config)).double()
    (reader, scorer), lacks = offers(task, config)
    texts = texts_of(batch, "input_ids_masked")
    hidden = task.model.encode(batch, {"text_masked"})["text_masked"].last_hidden_state()
    first = hidden[batch["cu_seqlens"][:-1].long()]
    torch.testing.assert_close(reader.text_features(texts), first, rtol=1e-9, atol=1e-12)
    tunable = reader.text_states()
    states = tunable(texts)
    torch.testing.assert_close(states, task.model.pooler(first), rtol=1e-9, atol=1e-12)
    states.square().sum().backward()
    assert all(own.grad is not None for own in tunable.parameters()) and tunable.width == 24
    assert all(own.grad is None for own in task.model.parameters())
    predicted = scorer.read(texts).tokens(batch["mlm_rows"])
    loss, _ = predicted.loss(batch["mlm_labels"])
    assert float(loss) == pytest.approx(float(task.losses(batch, only={"mlm"})["mlm"].sum.detach()), rel=1e-5)
    logits = torch.nn.functional.cross_entropy(predicted.logits(), batch["mlm_labels"], reduction="sum")
    assert float(loss) == pytest.approx(float(logits), rel=1e-5)
    assert {"Embedder", "Matcher"} <= lacks.keys()


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (ImageTextMatchingConfig(), "the view 'multimodal_masked', but the family 'bert' has only text"),
        (GlobalContrastiveConfig(), "objectives.other reads pair batches, which this model's family"),
    ],
)
def test_objectives_over_images_are_refused(objective, message):
    from flava_ds.config.checks import check_objectives

    config = tiny_config(objectives={"other": objective})
    with pytest.raises(ConfigError, match=message):
        build_task(config) if "view" in message else check_objectives(config)


@pytest.mark.parametrize(("name", "needs"), [("nsp", "pooled"), ("mlm", "word_table")])
def test_its_objectives_name_what_another_family_lacks(name, needs):
    config = Config(name="flava", objectives={name: tiny_config().objectives[name]})
    with pytest.raises(ConfigError, match=f"objectives.{name}.* needs a model with `{needs}`, .* 'flava'"):
        config.objectives[name].check(f"objectives.{name}", config)


def test_training_drops_by_the_samples_seeds_and_evaluation_nothing():
    """The same of a batch as of its parts, another part of each view and epoch; no FLOP is added."""
    config = tiny_config()
    dropping = dataclasses.replace(
        config, model=dataclasses.replace(config.model, text=dropped(config.model.text))
    )
    plain, task = build_task(config), build_task(dropping)
    segments, seeds = ((3, 4), (7, 1), (5, 0), (2, 6)), torch.tensor([5, -6, 7, 2**60])
    whole, part = make_batch(segments), make_batch(segments[:2])
    whole = whole.having(input_ids_masked=whole["input_ids"], sample_seeds=seeds)
    part = part.having(input_ids_masked=part["input_ids"], sample_seeds=seeds[:2])

    def states(task, batch, view="text"):
        return task.model.encode(batch, {view})[view].last_hidden_state().detach()

    first, again, masked = states(task, whole), states(task, whole), states(task, whole, "text_masked")
    assert torch.equal(first, again) and not torch.allclose(first, masked, atol=0.1)
    torch.testing.assert_close(states(task, part), first[: len(part["input_ids"])], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(first, states(task, whole.having(sample_seeds=seeds + 1)), atol=0.1)
    found = []
    for own in (plain, task):
        with FlopCounterMode(display=False) as counter:
            step(own, whole).backward()
        found.append(counter.get_total_flops())
    assert found[0] == found[1] and task.flops(whole) == plain.flops(whole)
    assert torch.equal(states(task.eval(), whole), states(plain, whole))


def dropped(shape):
    return dataclasses.replace(shape, hidden_dropout=0.3)
