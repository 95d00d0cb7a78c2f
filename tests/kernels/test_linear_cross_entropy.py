"""Summed cross-entropy of a linear classifier against torch in fp64."""

import kernel_checks
import pytest
import torch
import torch.nn.functional as F
from flava_kernels import dispatch
from flava_kernels import linear_cross_entropy as module
from flava_kernels.linear_cross_entropy import linear_cross_entropy
from flava_kernels.op import DTYPES

BOTH = pytest.mark.parametrize("implementation", ["torch", pytest.param("triton", marks=pytest.mark.triton)])


def example(rows: int = 5, of: int | None = None) -> list[torch.Tensor]:
    """hidden, weight, bias with gradient, and labels."""
    torch.manual_seed(0)
    inputs = [torch.randn(*shape, requires_grad=True) for shape in ((of or rows, 12), (97, 12), (97,))]
    return [*inputs, torch.randint(97, (rows,))]


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_equals_cross_entropy(rows):
    torch.manual_seed(0)
    inputs = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True)
        for shape in ((rows, 12), (97, 12), (97,))
    ]
    copies = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    labels = torch.randint(97, (rows,))
    loss, correct = linear_cross_entropy(*inputs, labels)
    logits = F.linear(*copies)
    expected = F.cross_entropy(logits, labels, reduction="sum")
    assert float(correct) == (logits.argmax(-1) == labels).sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for ours, theirs in zip(inputs, copies, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_kernel_s_losses_are_exact_given_the_logits(dtype):
    kernel_checks.cross_entropy_of_given_logits(dtype)


def test_no_rows_give_zero_and_zero_gradients():
    inputs = [torch.randn(*shape, requires_grad=True) for shape in ((0, 12), (97, 12), (97,))]
    loss, correct = linear_cross_entropy(*inputs, torch.zeros(0, dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == float(correct) == 0.0
    assert all(float(tensor.grad.abs().sum()) == 0.0 for tensor in inputs)


def test_gradcheck():
    torch.manual_seed(0)
    inputs = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((5, 4), (7, 4), (7,))
    ]
    labels = torch.randint(7, (5,))
    assert torch.autograd.gradcheck(lambda h, w, b: linear_cross_entropy(h, w, b, labels)[0], inputs)


@pytest.mark.parametrize(("rows", "kept"), [(12, (12, 97)), (13, (97, 12))])
def test_keeps_the_smaller_of_g_and_dw_and_can_go_back_twice(rows, kept):
    """On a CPU, with hidden states of width 12."""
    *inputs, labels = example(rows)
    saved = []

    def note(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss, _ = linear_cross_entropy(*inputs, labels)
    assert saved[0 if rows == 12 else 1] == kept and len(saved) == 3
    once = torch.autograd.grad(loss, inputs, torch.tensor(3.0), retain_graph=True)
    for first, second in zip(once, torch.autograd.grad(loss, inputs, torch.tensor(6.0)), strict=True):
        torch.testing.assert_close(2 * first, second)


def test_a_loss_scale_overflows_in_fp16_only_where_a_gradient_does():
    """A well trained head: hidden states are large, and G, with it dW, is small. Their product with a loss
    scale of 2^13 would leave fp16's range.
    """
    torch.manual_seed(0)
    labels, hidden = torch.arange(8), torch.randn(8, 64).mul_(4).half()
    weight = torch.zeros(97, 64).index_copy_(
        0, labels, 9 * hidden.float() / hidden.float().square().sum(1, keepdim=True)
    )
    inputs = [tensor.half().requires_grad_() for tensor in (hidden, weight, torch.zeros(97))]
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    for function, tensors in ((linear_cross_entropy, inputs), (module.definition, exact)):
        loss, _ = function(*tensors, labels)
        loss.backward(torch.tensor(2.0**13, dtype=loss.dtype))
    for ours, theirs in zip(inputs, exact, strict=True):
        torch.testing.assert_close(
            ours.grad.double(), theirs.grad, rtol=5e-3, atol=5e-3 * float(theirs.grad.abs().max())
        )


@pytest.mark.parametrize("custom", [False, True], ids=["function", "custom operator"])
@pytest.mark.parametrize("budget", [10**9, 4000], ids=["one chunk", "several"])
def test_a_sum_over_rows_may_leave_fp16_s_range_before_it_is_divided(monkeypatch, custom, budget):
    """The loss is a sum: its gradients reach 130,000 here, the mean's 66."""
    monkeypatch.setattr(dispatch, "needs_custom_operator", lambda example: custom)
    rows = 2000
    inputs = [torch.full((rows, 4), 100.0).half(), torch.zeros(3, 4).half(), torch.zeros(3).half()]
    exact = [tensor.double().requires_grad_() for tensor in inputs]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    labels = torch.zeros(rows, dtype=torch.int64)
    (linear_cross_entropy(*inputs, labels, budget_bytes=budget)[0] / rows).backward()
    (module.definition(*exact, labels)[0] / rows).backward()
    for ours, theirs in zip(inputs, exact, strict=True):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=2e-3, atol=1e-6)


def test_half_precision_keeps_the_softmax_in_fp32():
    torch.manual_seed(0)
    inputs = [torch.randn(*shape).bfloat16().requires_grad_() for shape in ((16, 12), (300, 12), (300,))]
    copies = [tensor.detach().double().requires_grad_() for tensor in inputs]
    labels = torch.randint(300, (16,))
    loss, _ = linear_cross_entropy(*inputs, labels)
    expected = F.cross_entropy(F.linear(*copies), labels, reduction="sum")
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=4e-3, atol=0)
    loss.backward()
    expected.backward()
    for ours, theirs in zip(inputs, copies, strict=True):
        assert float((ours.grad.double() - theirs.grad).norm() / theirs.grad.norm()) < 6e-3


@BOTH
def test_rows_that_are_not_named_are_never_read(monkeypatch, implementation):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    hidden, weight, bias, labels = example(rows=3, of=6)
    rows = torch.tensor([4, 0, 3])
    with torch.no_grad():
        hidden[[1, 2, 5]] = torch.nan
    loss, correct = linear_cross_entropy(hidden, weight, bias, labels, rows)
    loss.backward()
    copies = [tensor.detach().clone().requires_grad_() for tensor in (hidden[rows], weight, bias)]
    expected, expected_correct = module.definition(*copies, labels)
    expected.backward()
    assert correct == expected_correct
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(hidden.grad[rows], copies[0].grad)
    assert hidden.grad[[1, 2, 5]].eq(0).all()
    torch.testing.assert_close((weight.grad, bias.grad), (copies[1].grad, copies[2].grad))


@BOTH
def test_the_first_of_several_largest_logits_is_the_prediction(monkeypatch, implementation):
    monkeypatch.setenv("FLAVA_KERNELS", implementation)
    bias = torch.tensor([0.0, 2.0, 1.0, 2.0, 2.0])
    _, correct = linear_cross_entropy(torch.zeros(5, 3), torch.zeros(5, 3), bias, torch.arange(5))
    assert correct == 1
    _, correct = linear_cross_entropy(torch.zeros(1, 3), torch.zeros(5, 3), bias, torch.tensor([3]))
    assert correct == 0


@pytest.mark.parametrize(
    ("budget", "pieces"), [(10**9, 1), (97 * 4 * 4, 2), (97 * 4 * 2, 3), (97 * 4, 5), (1, 5)]
)
def test_logits_stay_within_the_budget(monkeypatch, budget, pieces):
    made = []

    def watched(hidden, *rest):
        made.append(hidden.shape[0])
        return reference(hidden, *rest)

    reference = module.forward_reference
    monkeypatch.setattr(module, "forward_reference", watched)
    inputs = example(rows=5)
    linear_cross_entropy(*inputs, budget_bytes=budget)[0].backward()
    assert len(made) == pieces and sum(made) == 5
    assert max(made) * 97 * 4 <= max(budget, 97 * 4)


def test_without_gradients_only_the_loss_is_computed():
    hidden, weight, bias, labels = example()
    with torch.no_grad():
        output = module._in_chunks(
            module.forward_reference, hidden, weight, bias, labels, None, [False] * 3, 10**9
        )
        loss, _ = linear_cross_entropy(hidden, weight, bias, labels)
    assert [tensor.numel() for tensor in output[2:]] == [0, 0, 0]
    assert not loss.requires_grad
    torch.testing.assert_close(loss, linear_cross_entropy(hidden, weight, bias, labels)[0].detach())


def test_a_second_backward_pass_gives_the_same():
    inputs = example()
    loss, _ = linear_cross_entropy(*inputs)
    first = torch.autograd.grad(loss, inputs[:3], retain_graph=True)
    second = torch.autograd.grad(loss * 2, inputs[:3])
    for one, two in zip(first, second, strict=True):
        torch.testing.assert_close(2 * one, two)


def test_opcheck():
    *inputs, labels = example(rows=3, of=6)
    operator = torch.ops.flava_kernels.linear_cross_entropy.default
    rows = torch.tensor([4, 0, 3])
    for gradients in ([True, True, True], [True, False, False], [False, False, False]):
        chosen = [
            tensor.detach().requires_grad_(want) for tensor, want in zip(inputs, gradients, strict=True)
        ]
        torch.library.opcheck(operator, (*chosen, labels, rows, gradients, 10**9))
    plain = [tensor.detach() for tensor in inputs]
    backward = torch.ops.flava_kernels.linear_cross_entropy_backward.default
    torch.library.opcheck(
        backward,
        (torch.tensor(2.0), plain[0][:3].clone(), *plain[1:], rows, 6, torch.float32, [True, True, True]),
    )


def test_compiles_into_one_graph():
    ours, theirs = example(rows=3, of=6), example(rows=3, of=6)
    rows = torch.tensor([4, 0, 3])
    loss, correct = torch.compile(
        lambda *inputs: linear_cross_entropy(*inputs, rows), fullgraph=True, backend="aot_eager"
    )(*ours)
    expected, expected_correct = module.definition(*theirs, rows)
    assert correct == expected_correct
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for mine, reference in zip(ours[:3], theirs[:3], strict=True):
        torch.testing.assert_close(mine.grad, reference.grad)


def test_says_what_the_kernels_do_not_take():
    hidden, weight, bias, labels = (tensor.detach() for tensor in example())
    assert module.supports(hidden, weight, bias, labels) is None
    assert "float64" in module.supports(hidden.double(), weight, bias, labels)
    assert "bfloat16" in module.supports(hidden, weight.bfloat16(), bias, labels)
    assert "contiguous" in module.supports(hidden, weight, torch.zeros(194)[::2], labels)
