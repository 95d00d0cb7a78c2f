"""The batched fit finds the minima that scikit-learn finds, with every penalty and number of classes."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from flava_ds.evaluation import batched_logistic
from flava_ds.evaluation.batched_logistic import fit_batched
from flava_ds.evaluation.logistic import all_at_once, fit_as_clip

PENALTIES = [1e-3, 1e-1, 1.0, 1e2, 1e4]


def samples(classes, count=400, width=10):
    draw = np.random.default_rng(classes)
    labels = draw.integers(0, classes, count)
    features = draw.normal(size=(count, width)) + np.eye(classes, width)[labels]
    return features, labels


def oracle(features, labels, penalty):
    settings = {"C": 1 / penalty, "tol": 1e-9, "max_iter": 10_000}
    return LogisticRegression(**settings).fit(features, labels)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_weights_are_scikit_learns(classes, monkeypatch):
    monkeypatch.setattr(batched_logistic, "CHUNK_ROWS", 90)  # 400 rows in five unequal chunks
    features, labels = samples(classes)
    x = torch.from_numpy(features)
    fitted = fit_batched(x, labels, PENALTIES, iterations=2000, tolerance=1e-10, dtype=torch.float64)
    for penalty, found in zip(PENALTIES, fitted, strict=True):
        theirs = oracle(features, labels, penalty)
        np.testing.assert_allclose(found.weights[:, :-1].numpy(), theirs.coef_, atol=2e-5, rtol=2e-5)
        bias = found.weights[:, -1].numpy()  # of more than two classes only differences count
        bias, want = (b - (b.mean() if classes > 2 else 0) for b in (bias, theirs.intercept_))
        np.testing.assert_allclose(bias, want, atol=2e-5, rtol=2e-5)
        np.testing.assert_array_equal(found.predict(x), theirs.predict(features))
        np.testing.assert_allclose(
            found.decision_function(x)
            - found.decision_function(x).mean(-1, keepdims=classes > 2) * (classes > 2),
            theirs.decision_function(features)
            - theirs.decision_function(features).mean(-1, keepdims=classes > 2) * (classes > 2),
            atol=1e-3,
        )


def test_a_penalty_is_fitted_as_if_it_were_alone():
    features, labels = samples(4)
    x, settings = torch.from_numpy(features), {"iterations": 500, "tolerance": 1e-9, "dtype": torch.float64}
    together = fit_batched(x, labels, PENALTIES[1:4], **settings)
    for penalty, among in zip(PENALTIES[1:4], together, strict=True):
        [alone] = fit_batched(x, labels, [penalty], **settings)
        torch.testing.assert_close(alone.weights, among.weights, rtol=1e-5, atol=1e-6)


def test_fp32_and_bf16_features_reach_scikit_learns_accuracy():
    features, labels = samples(6, count=600, width=12)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.from_numpy(features).to(dtype)
        for penalty, found in zip(PENALTIES[2:4], all_at_once(x, labels, PENALTIES[2:4]), strict=True):
            theirs = fit_as_clip(x.double().numpy(), labels, penalty).predict(x.double().numpy())
            assert (found.predict(x) == theirs).mean() > 0.998
            assert found.iterations < 1000


def test_classes_keep_their_numbers():
    features, labels = samples(3)
    [found] = fit_batched(torch.from_numpy(features), labels * 7 + 2, [1.0], iterations=200, tolerance=1e-6)
    assert set(found.predict(torch.from_numpy(features))) == {2, 9, 16}
