"""What the trace counts of operators whose own formulas in torch are not enough."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.scaling.trace import trace_step


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("groups", [1, 4, 16])
def test_gradients_of_a_convolution_cost_what_it_costs(groups, transposed):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    net = nn.Sequential(kind(16, 32, 3, groups=groups, stride=2, device="meta"))
    pixels = torch.empty(2, 16, 9, 9, device="meta", requires_grad=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = net(pixels)
    forward = counter.get_total_flops()
    assert forward == 2 * (pixels if transposed else out).numel() * net[0].weight[0].numel()
    calls = [call for call in trace_step(net, lambda: net(pixels).sum(), [pixels], 0.0).calls if call.flops]
    assert [(call.phase, call.flops) for call in calls] == [("forward", forward), ("backward", 2 * forward)]
    rows, columns, inner = calls[0].product
    assert 2 * rows * columns * inner == forward
    first = torch.empty(2, 16, 9, 9, device="meta")  # pictures get no gradient
    calls = [call for call in trace_step(net, lambda: net(first).sum(), [first], 0.0).calls if call.flops]
    assert [call.flops for call in calls] == [forward, forward]
