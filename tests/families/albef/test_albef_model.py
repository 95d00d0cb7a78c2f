"""ALBEF against transformers' BERT and BLIP on random weights, its views, and its counts of parameters and
work.
"""

import dataclasses

import flava_kernels.flops  # noqa: F401  registers the formulas
import pytest
import torch
from families.albef.albef_peers import by_our_names, completed, make_batch, their_parts, tiny_config
from families.bert.bert_peers import difference, padded
from families.family_checks import check_recomputation, step
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.families.albef.config import AlbefConfig
from flava_ds.families.albef.task import AlbefTask, build_task
from flava_ds.layers.words import PackedIds
from flava_ds.objectives.hard_matching import with_negatives


@pytest.mark.parametrize(
    ("dtype", "states", "gradients"), [(torch.float32, 1e-5, 3e-5), (torch.float64, 1e-12, 1e-12)]
)
def test_transformers_agree(dtype, states, gradients, told):
    """BERT's first layers, whose output goes into BLIP's text model with an image, without a causal mask."""
    config, batch = tiny_config(), make_batch()
    told.parity("albef", "BertModel, BlipTextModel", dtype, states, gradients)
    bert, blip = (part.to(dtype) for part in their_parts(config.model))
    model = build_task(config).model.to(dtype)
    weights = by_our_names(dict(bert.state_dict()), dict(blip.state_dict()))
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and not any(name.startswith(("text_encoder", "fusion")) for name in missing)
    torch.manual_seed(0)
    image = model.image_states(batch["pixel_values"])
    image = dataclasses.replace(image, hidden=torch.randn_like(image.hidden).requires_grad_())
    ids, mask = (padded(batch, own, 0) for own in (batch["input_ids"], torch.ones_like(batch["input_ids"])))
    alone = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    other_image = image.hidden.detach().unflatten(0, (batch.size, -1)).requires_grad_()
    theirs = blip(
        encoder_embeds=alone, attention_mask=mask, encoder_hidden_states=other_image, is_decoder=False
    ).last_hidden_state[mask.bool()]
    text = model.text_encoder.encode_texts(PackedIds.of(batch))
    assert told.output(difference(text.last_hidden_state(), alone[mask.bool()])) <= states
    ours = model.fusion(text.packed, image).last_hidden_state()
    assert told.output(difference(ours, theirs)) <= states
    rows = torch.tensor([0, 3, 7, 12, 17, 20])
    few = model.fusion(text.packed, image, rows).rows(rows)
    assert told.output(difference(few, theirs[rows])) <= states, "the last layer, for some rows only"
    upstream = torch.randn_like(theirs)
    (theirs * upstream).sum().backward()
    (ours * upstream).sum().backward()
    assert told.gradient(difference(image.hidden.grad, other_image.grad.flatten(0, 1))) <= gradients
    expected = by_our_names(
        *(
            {name: p.grad for name, p in part.named_parameters() if p.grad is not None}
            for part in (bert, blip)
        )
    )
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    apart = {name: difference(found[name], expected[name]) for name in found}
    told.gradients(apart, gradients)


def test_parameter_counts_are_the_published_ones():
    """The published teacher lacks the temperature."""
    config = dataclasses.replace(tiny_config(), model=AlbefConfig())
    with torch.device("meta"):
        task = AlbefTask(config)
        task.follow()
    counts = [sum(p.numel() for p in own.parameters()) for own in (task, task.states["teacher"].network)]
    assert counts == [209_937_725, 209_936_186 + 1]


def test_views_are_the_same_alone_and_together():
    """Three texts with an image for each sample: its own pair, another image, another text."""
    task = build_task(tiny_config()).double()
    task.states["teacher"].network.double()
    (batch,) = completed(task, make_batch())
    model, views = task.model, ("image", "text", "multimodal_masked", "multimodal")
    together = {name: own.last_hidden_state() for name, own in model.encode(batch, views).items()}
    for view in views:
        alone = model.encode(batch, {view})[view].last_hidden_state()
        torch.testing.assert_close(alone, together[view], rtol=1e-12, atol=1e-12)
    first = together["multimodal"][model.first_rows("multimodal", batch)]
    texts = PackedIds.of(batch), PackedIds.of(batch, "negative_input_ids", "negative_")
    text, other = (model.text_encoder.encode_texts(own).packed for own in texts)
    image, other_image = (model.image_states(batch[f"{prefix}pixel_values"]) for prefix in ("", "negative_"))
    pairs = (text, image), (text, other_image), (other, image)
    expected = torch.cat([model.fusion(*pair).first() for pair in pairs])
    torch.testing.assert_close(first, expected, rtol=1e-12, atol=1e-12)
    kept = model.encode(batch, {"multimodal"}, {"multimodal": model.first_rows("multimodal", batch)})
    few = kept["multimodal"].rows(model.first_rows("multimodal", batch))
    torch.testing.assert_close(few, expected, rtol=1e-12, atol=1e-12)


def test_every_parameter_gets_a_gradient_from_the_objective_that_says_so():
    config = tiny_config()
    task = build_task(config)
    (batch,) = completed(task, make_batch())
    for name in config.objectives:
        task.zero_grad()
        task.losses(batch, only={name})[name].sum.backward()
        own, objective = {f"objectives.{name}."}, task.objectives[name]
        own |= {f"model.{parameter}" for parameter in objective.model_parameters(task.model)}
        for parameter, tensor in task.named_parameters():
            used = parameter.startswith(tuple(own))
            got = tensor.grad is not None and bool(tensor.grad.abs().max() > 0)
            assert got == used, (name, parameter)


def test_activation_checkpointing_changes_no_gradient():
    check_recomputation(build_task, tiny_config(), lambda task: step(task, *completed(task, make_batch())))


def test_closed_form_matches_the_flop_counter():
    """Texts of one length, so that another sample's are as long. In the last layer the reference attends for
    every token, since it pads, and the closed form for those that are read.
    """
    config, batch = tiny_config(), make_batch((8,) * 4)
    task = build_task(config)
    tokens, masked, rows = 4 * 8, batch["mlm_rows"].shape[0], 1 + config.model.image.num_patches
    padded_rows = 4 * config.model.fusion.hidden_size * rows
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        done = task.complete(batch)
    counted = counter.get_total_flops() - padded_rows * (tokens - masked)
    assert task.target_flops(batch) == pytest.approx(counted, rel=2e-3)
    with torch.no_grad():
        for state in task.states.values():
            (done,) = state.complete_step([done])
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        step(task, done)
    counted = counter.get_total_flops() - padded_rows * (tokens - masked + 3 * tokens - 3 * batch.size)
    # of the similarities, the teacher's have no backward pass and count as a third
    itc = task.objectives["itc"].flops(task.model, batch) * 2 / (1 + 1 / 3)
    assert sum(part.flops for part in task.passes(batch)) + itc == pytest.approx(counted, rel=2e-3)


def test_a_layer_that_fuses_without_an_image_says_so():
    model = build_task(tiny_config()).model
    text = model.text_encoder.encode_texts(PackedIds.of(make_batch())).packed
    with pytest.raises(ValueError, match="a CrossBlock needs `memory`"):
        model.fusion.transformer(text)


def test_each_text_of_a_sample_and_the_teacher_have_dropout_of_their_own():
    """The same pair three times differs; so do student and teacher, whose weights are equal, but not without
    dropout. An evaluation drops nothing.
    """
    states = {}
    for p in (0.0, 0.3):
        config = tiny_config()
        text = dataclasses.replace(config.model.text, hidden_dropout=p)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, text=text))
        task, batch = build_task(config), make_batch().having(sample_seeds=torch.arange(4))
        (done, again), pixels = (task.complete(batch) for _ in range(2)), batch["pixel_values"]
        assert torch.equal(done["teacher_text"], again["teacher_text"])
        same = (batch["input_ids"], batch["cu_seqlens"], batch.numbers["max_seqlen"])
        own = with_negatives(done, pixels, *same)
        for training in (True, False):
            found = task.train(training).model.encode(own, ("text", "multimodal"))
            thirds = found["multimodal"].last_hidden_state().chunk(3)
            students = task.model.text_embeddings(found["text"].first())
            states[p, training] = thirds, students, done["teacher_text"], done["teacher_logits"]
    plain = states[0.0, False]
    for (p, training), (thirds, students, teachers, logits) in states.items():
        apart = [not torch.allclose(thirds[a], thirds[b], atol=1e-3) for a, b in ((0, 1), (0, 2), (1, 2))]
        assert apart == [p > 0 and training] * 3
        assert torch.allclose(students, plain[1], atol=1e-5) == (not (p and training))
        assert torch.allclose(teachers, plain[1], atol=1e-5) == (p == 0)
        assert torch.allclose(logits, plain[3], atol=1e-5) == (p == 0)
    assert not torch.allclose(states[0.3, True][1], states[0.3, True][2], atol=1e-3)
