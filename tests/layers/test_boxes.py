"""Boxes against torchvision's functions."""

import torch
from torchvision.ops import box_convert, generalized_box_iou

from flava_ds.layers.boxes import generalized_iou, to_centres, to_corners


def random_boxes(count: int) -> torch.Tensor:
    corners = torch.rand(count, 2, 2, dtype=torch.float64).sort(dim=1).values
    return corners.flatten(1)


def test_notations_are_torchvisions():
    boxes = random_boxes(5)
    torch.testing.assert_close(to_centres(boxes), box_convert(boxes, "xyxy", "cxcywh"))
    torch.testing.assert_close(to_corners(to_centres(boxes)), boxes)


def test_overlaps_are_torchvisions_with_their_gradients():
    boxes, others = random_boxes(6).requires_grad_(), random_boxes(4)
    found, expected = generalized_iou(boxes[:, None], others), generalized_box_iou(boxes, others)
    torch.testing.assert_close(found, expected)
    weight = torch.randn(6, 4, dtype=torch.float64)
    grads = [torch.autograd.grad((own * weight).sum(), boxes)[0] for own in (found, expected)]
    torch.testing.assert_close(*grads)


def test_boxes_without_an_area_are_finite():
    point = torch.tensor([0.5, 0.5, 0.5, 0.5], requires_grad=True)
    for other in (point.detach(), torch.tensor([0.0, 0.0, 0.2, 0.2])):
        value = generalized_iou(point, other)
        value.backward()
        assert bool(value.isfinite()) and bool(point.grad.isfinite().all())
