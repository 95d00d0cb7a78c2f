"""Tables whose rows are used thousands of times: their gradients in half precision, against fp64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from flava_ds.layers.embedding import Embedding
from flava_ds.layers.words import BertEmbeddings, PackedIds

USES = 16_000


def gradient(table: torch.nn.Embedding, ids: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    """The table's gradient, in fp64."""
    table(ids).backward(upstream.to(table.weight.dtype))
    return table.weight.grad.double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_row_used_thousands_of_times_has_the_sum_of_its_gradients(dtype):
    ids, upstream = torch.zeros(USES, dtype=torch.long), torch.rand(USES, 4).to(dtype) / 256
    exact = upstream.double().sum(0)
    own = gradient(Embedding(3, 4).to(dtype), ids, upstream)
    assert (own[0] / exact - 1).abs().max() < 0.005 and not own[1:].any()
    assert (gradient(torch.nn.Embedding(3, 4).to(dtype), ids, upstream)[0] / exact - 1).abs().max() > 0.5


def test_padding_has_no_gradient_and_fp32_is_torchs():
    ids, upstream = torch.randint(0, 5, (300,)), torch.randn(300, 4)
    for dtype in (torch.bfloat16, torch.float32):
        own, theirs = Embedding(5, 4, padding_idx=2).to(dtype), torch.nn.Embedding(5, 4, padding_idx=2)
        found, expected = gradient(own, ids, upstream), gradient(theirs, ids, upstream)
        assert not found[2].any()
        torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01 if dtype == torch.bfloat16 else 0.0)


def test_berts_segments_learn_from_every_token_in_half_precision():
    shape = dict(hidden_size=8, vocab_size=20, max_position_embeddings=8, type_vocab_size=2)
    texts = PackedIds(
        torch.randint(0, 20, (USES,)), torch.arange(0, USES + 1, 8, dtype=torch.int32), max_seqlen=8
    )
    found = []
    torch.manual_seed(0)
    upstream = torch.rand(USES, 8)
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        own = BertEmbeddings(SimpleNamespace(layer_norm_eps=1e-12, **shape)).to(dtype)
        own(texts).backward(upstream.to(dtype))
        found.append(own.token_types.weight.grad[0].double())
    assert (found[1] - found[0]).norm() < 0.05 * found[0].norm()
