"""The stages against torchvision's ResNet with the same weights, and their work."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from flava_ds.config.encoders import ConvStemConfig
from flava_ds.layers.resnet import ResNetStages, initialize_as_resnet

BLOCKS = (2, 1, 2)
LATER = ("layer4.", "fc.")


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    theirs = ResNet(Bottleneck, [*BLOCKS, 1])
    for name, buffer in theirs.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    ours = ResNetStages(ConvStemConfig(blocks=BLOCKS, norm_group=4))
    weights = {
        name: own
        for name, own in theirs.state_dict().items()
        if not name.startswith(LATER) and "num_batches" not in name
    }
    ours.load_state_dict(weights)
    return ours, theirs


def their_stages(theirs, pixels):
    hidden = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(pixels))))
    return theirs.layer3(theirs.layer2(theirs.layer1(hidden)))


@pytest.mark.parametrize("training", [False, True])
def test_torchvision_agrees(pair, training):
    """In training, one group is a batch of torch's."""
    ours, theirs = (own.train(training) for own in pair)
    pixels = torch.randint(0, 256, (4, 3, 32, 48), dtype=torch.uint8)
    found, expected = ours(pixels), their_stages(theirs, pixels.float() / 127.5 - 1)
    assert found.shape == (4, ours.channels, 2, 3) and ours.channels == 1024
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


def test_work_is_that_of_its_convolutions(pair):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pair[0].eval()(torch.zeros(2, 3, 64, 64))
    assert 2 * pair[0].flops(64) == counter.get_total_flops()


def test_initial_deviations_are_torchvisions(pair):
    ours = ResNetStages(ConvStemConfig(blocks=BLOCKS, norm_group=4))
    theirs = ResNet(Bottleneck, [*BLOCKS, 1])
    initialize_as_resnet(ours)
    for name, own in ours.named_parameters():
        if own.ndim == 4:
            assert float(own.std()) == pytest.approx(float(theirs.get_parameter(name).std()), rel=0.05), name


def test_a_dilated_tower_with_frozen_norms_is_torchvisions():
    """Stage 5 of a ResNet-DC5 as DETR has it: features, the work, and what is frozen."""
    torch.manual_seed(1)
    blocks = [1, 1, 1, 3]
    theirs = ResNet(
        Bottleneck,
        blocks,
        replace_stride_with_dilation=[False, False, True],
        norm_layer=FrozenBatchNorm2d,
    )
    shape = ConvStemConfig(blocks=tuple(blocks), dilated=True, norm_group=None, frozen_stages=1)
    ours = ResNetStages(shape)
    with torch.no_grad():
        for name, buffer in theirs.named_buffers():
            if "weight" in name or "running_var" in name:
                buffer.uniform_(0.5, 1)
            else:
                buffer.normal_(std=0.1)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    expected = theirs.layer4(their_stages(theirs, pixels.float() / 127.5 - 1))
    found, scale = ours(pixels), float(expected.detach().abs().max())
    assert found.shape == (2, 2048, 4, 6) and shape.patch_size == 16
    torch.testing.assert_close(found, expected, atol=1e-5 * scale, rtol=1e-5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ours(torch.zeros(2, 3, 64, 64))
    assert 2 * ours.flops(64) == counter.get_total_flops()
    frozen = {name.split(".")[0] for name, own in ours.named_parameters() if not own.requires_grad}
    assert frozen == {"conv1", "layer1"}


def test_frozen_moments_stay_in_fp32():
    ours = ResNetStages(ConvStemConfig(width=4, blocks=(1,), norm_group=None)).bfloat16()
    assert {own.dtype for name, own in ours.named_buffers() if "bn" in name} == {torch.float32}
    assert ours(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).dtype == torch.bfloat16
