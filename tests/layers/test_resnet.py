"""The stages against torchvision's ResNet with the same weights, and their work."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import Bottleneck, ResNet

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
