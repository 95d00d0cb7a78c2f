"""The hash of weights sees all that makes two models differ."""

import torch

from flava_ds.tensor_hash import hash_of_tensors


def test_values_names_dtypes_shapes_and_settings_are_seen_and_the_order_is_not():
    one = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(())}
    others = [
        ({**one, "b": torch.full((), 1 + 2**-23)}, ""),
        ({"a": one["a"], "c": one["b"]}, ""),
        ({**one, "b": torch.ones((), dtype=torch.bfloat16)}, ""),
        ({**one, "a": one["a"].view(3, 2)}, ""),
        (one, "mean 1"),
    ]
    hashes = {hash_of_tensors(*other) for other in others} | {hash_of_tensors(one)}
    assert len(hashes) == 1 + len(others)
    strided = {"b": one["b"], "a": one["a"].t().contiguous().t()}
    assert hash_of_tensors(strided) == hash_of_tensors(one)
