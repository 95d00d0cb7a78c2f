"""BEiT's biases: of whose offset each is, images of another size, and a whole model that has them."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from sample_batches import make_batch, tiny_config
from transformers.models.beit.modeling_beit import BeitRelativePositionBias

from flava_ds.checkpoints.initial_weights import load_initial_weights
from flava_ds.errors import CheckpointError
from flava_ds.families.flava.capabilities import FlavaEmbedder
from flava_ds.families.flava.hf import LAYOUTS
from flava_ds.families.flava.task import build_task
from flava_ds.families.flava.views import Kind, View
from flava_ds.hf.files import write_tensors
from flava_ds.layers.relative_positions import RelativeAttention, offset_index
from flava_ds.training.compiling import compile_blocks


def relative(**overrides):
    config = tiny_config(**overrides)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, relative_positions=True))


@pytest.mark.parametrize("grid", [1, 2, 3, 7])
def test_each_bias_is_of_the_offset_that_transformers_gives_it(grid):
    expected = BeitRelativePositionBias.generate_relative_position_index((grid, grid))
    assert torch.equal(offset_index(grid), expected)


@pytest.mark.parametrize("grid", [2, 3, 5])
def test_the_table_is_interpolated_as_torch_does(grid):
    attention = RelativeAttention(tiny_config().model.image).double()
    with torch.no_grad():
        attention.offset_biases.normal_()
    table, edge = attention.offset_biases, 2 * grid - 1
    square = table[:-3].T.reshape(1, 3, 5, 5)
    between = F.interpolate(square, size=(edge, edge), mode="bilinear").flatten(2)[0].T
    expected = torch.cat([between, table[-3:]])[offset_index(grid)].permute(2, 0, 1)
    torch.testing.assert_close(attention.biases(grid), expected)


def test_biases_of_zero_change_nothing_and_others_do():
    plain, own = build_task(tiny_config()), build_task(relative())
    result = own.load_state_dict(plain.state_dict(), strict=False)
    assert all(name.endswith("offset_biases") for name in result.missing_keys) and result.missing_keys
    batch = make_batch(Kind.IMAGE, tiny_config())
    views = [View.IMAGE, View.IMAGE_MASKED]

    def states(task):
        return [encoded.last_hidden_state() for encoded in task.model.encode(batch, views).values()]

    blocks = own.model.image_encoder.transformer.blocks
    assert not any(block.attention.offset_biases.any() for block in blocks)  # as BEiT begins
    torch.testing.assert_close(states(own), states(plain), rtol=0, atol=1e-6)
    with torch.no_grad():
        blocks[0].attention.offset_biases[0] += 1
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(states(own), states(plain), strict=True))


def test_checkpointed_and_compiled_blocks_have_the_same_gradients():
    encoder = build_task(relative()).model.image_encoder
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))

    def gradients(run):
        encoder.zero_grad()
        run(pixels)[0].last_hidden_state().square().mean().backward()
        return [p.grad.clone() for p in encoder.parameters() if p.grad is not None]

    plain = gradients(encoder)
    encoder.transformer.activation_checkpointing = True
    torch.testing.assert_close(gradients(encoder.train()), plain)
    encoder.transformer.activation_checkpointing = False
    assert compile_blocks(encoder, zero_stage=1, backend="eager") == 2
    torch._dynamo.utils.counters.clear()
    torch.testing.assert_close(gradients(encoder), plain)
    assert not torch._dynamo.utils.counters["graph_break"]


def test_larger_images_are_fine_tuned_through_the_small_table():
    model = build_task(relative()).model
    pairs = FlavaEmbedder(model).pair_states(2.0)
    pixels = torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8)
    pairs([torch.tensor([2, 110, 3]).numpy()], pixels).square().sum().backward()
    tables = [block.attention.offset_biases for block in pairs.model.image_encoder.transformer.blocks]
    assert all(table.grad is not None and table.grad.abs().max() > 0 for table in tables)


def test_what_does_not_fit_is_said_in_one_line(tmp_path, caplog):
    config = relative()
    weights = build_task(config).state_dict()
    with pytest.raises(CheckpointError, match="model.relative_positions is true: transformers' FLAVA has no"):
        LAYOUTS.write(config, weights)
    encoder = {name: own for name, own in weights.items() if name.startswith("model.image_encoder.")}
    write_tensors(encoder, tmp_path)
    load_initial_weights(build_task(config), str(tmp_path), "flava")
    assert not caplog.records
    load_initial_weights(build_task(tiny_config()), str(tmp_path), "flava")
    (record,) = caplog.records
    assert (
        "0.attention.offset_biases' and 1 more: modules of that name are here, but without" in record.message
    )
