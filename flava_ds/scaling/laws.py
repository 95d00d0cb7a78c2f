"""Scaling laws: how a loss falls with parameters, samples and batch, fitted to runs, with intervals.

Every form is a sum of terms that are linear in coefficients of at least 0, and not in one to three exponents.
The exponents are searched on a grid, the coefficients follow from them by non-negative least squares
(variable projection), and the best points are polished. The objective is the sum, not the mean, of Huber's
function of the error of the log of the loss, as in Hoffmann et al. (2022), appendix D.3: a mean is so small
that optimizers stop early (Besiroglu et al., 2024).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from flava_ds.errors import DataError

Columns = Mapping[str, np.ndarray]
"""What is known of the runs: parameters, samples, unique, batch, flops, each [k] fp64."""
Exponents = Sequence[float] | np.ndarray
DELTA = 1e-3
"""Error of the log of a loss from which on Huber's function is linear."""
R_STAR = 15.387756
"""Repetitions after which repeating data gains little. Source: Muennighoff et al. (2023), fit to text."""
POLISHED = 3
_RESIDUAL_STEPS = 25


@dataclass(frozen=True)
class Form:
    """A law's terms: `terms(columns, exponents)` returns [k c], one column for each coefficient."""

    title: str
    coefficients: tuple[str, ...]
    exponents: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...]
    """Of the exponents."""
    terms: Callable[[Columns, Exponents], np.ndarray]
    units: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    """Coefficient -> (unit, exponent) of the quantity in its term, which is fitted in units of its geometric
    mean; `Fit.named` returns coefficients for the quantity as it is counted.
    """
    points: int = 13
    """Of the grid, on each axis."""
    repeats: bool = False
    """Whether it tells repeated samples from new ones."""


@dataclass(frozen=True)
class Fit:
    """A form with its numbers."""

    form: Form
    numbers: np.ndarray
    """Exponents, then coefficients."""
    objective: float

    def named(self) -> dict[str, float]:
        """Returns every number by its name, coefficients for quantities as they are counted."""
        names = (*self.form.exponents, *self.form.coefficients)
        found = dict(zip(names, self.numbers.tolist(), strict=True))
        for name, (unit, exponent) in self.form.units.items():
            found[name] *= unit ** found[exponent]
        return found

    def predict(self, columns: Columns) -> np.ndarray:
        """Returns the loss of runs: [k]."""
        count = len(self.form.exponents)
        return self.form.terms(columns, self.numbers[:count]) @ self.numbers[count:]


def effective_samples(samples: np.ndarray, unique: np.ndarray, r_star: float = R_STAR) -> np.ndarray:
    """Returns how many fresh samples are worth as much as `samples` with repetitions: [k].

    D' = U + U R* (1 - exp(-R / R*)) with R = D / U - 1 repetitions. Source: Muennighoff et al. (2023).
    """
    seen = np.minimum(samples, unique)
    repetitions = samples / seen - 1
    return seen + seen * r_star * (1 - np.exp(-repetitions / r_star))


def _geometric_mean(values: np.ndarray) -> float:
    return float(np.exp(np.log(values).mean()))


def of_size_and_data(
    columns: Columns, *, floor: bool = True, repeated: bool = False, r_star: float | None = None
) -> Form:
    """Returns L = E + A N^-alpha + B D^-beta, without E unless `floor`.

    With `repeated`, D is the effective data; R* is `r_star`, or fitted when it is None.
    """
    n0, d0 = _geometric_mean(columns["parameters"]), _geometric_mean(columns["samples"])

    def terms(own: Columns, exponents: Exponents) -> np.ndarray:
        data = own["samples"]
        if repeated:
            star = np.exp(exponents[2]) if r_star is None else r_star
            data = effective_samples(data, own["unique"], star)
        found = [(own["parameters"] / n0) ** -exponents[0], (data / d0) ** -exponents[1]]
        return np.stack(([np.ones_like(data)] if floor else []) + found, axis=1)

    fits_star = repeated and r_star is None
    data = "D_eff" if repeated else "D"
    star = ", R* fitted" if fits_star else f", R* {r_star:.3g}" if r_star is not None else ""
    return Form(
        ("E + " if floor else "") + f"A N^-alpha + B {data}^-beta{star}",
        (*(("E",) if floor else ()), "A", "B"),
        ("alpha", "beta", *(("ln R*",) if fits_star else ())),
        ((0.01, 2.0), (0.01, 2.0), *(((0.0, 6.0),) if fits_star else ())),
        terms,
        {"A": (n0, "alpha"), "B": (d0, "beta")},
        7 if fits_star else 13,
        repeated,
    )


def of_batch(columns: Columns, kind: str, beta: float = 0.3) -> Form:
    """Returns how the loss on a fixed gallery depends on the batch, at a fixed number of samples.

    "negatives": L = E + K B^-gamma, more negatives teach more. "critical": L = E + J (1 + B / Bcrit)^beta,
    which is D^-beta with the samples that a large batch wastes, D / (1 + B / Bcrit); it is the same as
    S = Smin (1 + Bcrit / B) for the steps to a loss (McCandlish et al., 2018).
    """
    b0 = _geometric_mean(columns["batch"])

    def negatives(own: Columns, exponents: Exponents) -> np.ndarray:
        return np.stack([np.ones_like(own["batch"]), (own["batch"] / b0) ** -exponents[0]], axis=1)

    def critical(own: Columns, exponents: Exponents) -> np.ndarray:
        waste = (1 + own["batch"] / np.exp(exponents[0])) ** beta
        return np.stack([np.ones_like(waste), waste], axis=1)

    if kind == "negatives":
        return Form("E + K B^-gamma", ("E", "K"), ("gamma",), ((0.01, 3.0),), negatives, {"K": (b0, "gamma")})
    middle = np.log(b0)
    return Form(
        f"E + J (1 + B / Bcrit)^{beta:.3g}", ("E", "J"), ("ln Bcrit",), ((middle - 5, middle + 5),), critical
    )


def of_error(columns: Columns) -> Form:
    """Returns a downstream error that saturates at both ends, by compute: d + a (C + b)^-c.

    Source: Cherti et al. (2023) and later CLIP studies; fit it to `frontier`'s runs.
    """
    c0 = _geometric_mean(columns["flops"])

    def terms(own: Columns, exponents: Exponents) -> np.ndarray:
        shifted = (own["flops"] / c0 + np.exp(exponents[1])) ** -exponents[0]
        return np.stack([np.ones_like(shifted), shifted], axis=1)

    ranges = ((0.01, 2.0), (-12.0, 3.0))
    return Form("d + a (C + b)^-c", ("d", "a"), ("c", "ln b / C0"), ranges, terms, {"a": (c0, "c")})


def frontier(flops: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the rows that no run with at most the same compute beats, in order of compute."""
    order = np.lexsort((values, flops))
    best = np.minimum.accumulate(values[order])
    first = np.concatenate(([True], best[1:] < best[:-1]))
    return order[first]


def fit(form: Form, columns: Columns, losses: np.ndarray, near: Fit | None = None) -> Fit:
    """Fits a form to losses [k]; from `near` alone, if it is given, otherwise from a grid.

    Raises: DataError for fewer runs than numbers to fit, or numbers that have no logarithm.
    """
    needed = len(form.exponents) + len(form.coefficients)
    if len(losses) < needed:
        raise DataError(
            f"{form.title} has {needed} numbers to fit, but there are {len(losses)} runs; add runs"
        )
    if not (np.isfinite(losses).all() and (losses > 0).all()):
        raise DataError("a loss is not a number above 0, so it has no logarithm; leave that run out")
    if near is not None:
        return _polish(form, columns, losses, near.numbers)
    axes = [np.linspace(low, high, form.points) for low, high in form.ranges]
    found = []
    for exponents in itertools.product(*axes):
        coefficients = project(form.terms(columns, exponents), losses)
        start = np.array([*exponents, *coefficients])
        found.append((_objective(form, columns, losses, start), start))
    found.sort(key=lambda item: item[0])
    polished = [_polish(form, columns, losses, start) for _, start in found[:POLISHED]]
    return min(polished, key=lambda each: each.objective)


def project(terms: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Returns the coefficients, at least 0, that fit best for given exponents: [c].

    Huber's function of the log error by reweighted, linearised least squares.
    """
    from scipy.optimize import nnls  # here, because scipy is of the extra `eval`

    weights, target, scale = np.ones_like(losses), np.ones_like(losses), losses
    coefficients = np.zeros(terms.shape[1])
    for _ in range(_RESIDUAL_STEPS):
        before = coefficients
        coefficients, _ = nnls(weights[:, None] * terms / scale[:, None], weights * target)
        scale = np.maximum(terms @ coefficients, 1e-12 * losses)
        errors = np.log(losses / scale)
        weights = np.sqrt(np.minimum(1.0, DELTA / np.maximum(np.abs(errors), 1e-300)))
        target = 1 + np.clip(errors, -1, 1)
        if np.allclose(coefficients, before, rtol=1e-5):
            break
    return coefficients


def _objective(form: Form, columns: Columns, losses: np.ndarray, numbers: np.ndarray) -> float:
    errors = np.abs(np.log(losses / np.maximum(Fit(form, numbers, 0.0).predict(columns), 1e-300)))
    return float(np.where(errors <= DELTA, errors**2 / 2, DELTA * (errors - DELTA / 2)).sum())


def _polish(form: Form, columns: Columns, losses: np.ndarray, start: np.ndarray) -> Fit:
    """Moves all numbers at once to the nearest minimum of the objective."""
    from scipy.optimize import least_squares

    count = len(form.exponents)
    low = np.array([*(low for low, _ in form.ranges), *[0.0] * len(form.coefficients)])
    high = np.array([*(high for _, high in form.ranges), *[np.inf] * len(form.coefficients)])

    def errors(numbers: np.ndarray) -> np.ndarray:
        predicted = form.terms(columns, numbers[:count]) @ numbers[count:]
        return np.log(np.maximum(predicted, 1e-300) / losses)

    found = least_squares(
        errors, np.clip(start, low, high), bounds=(low, high), x_scale="jac", loss="huber", f_scale=DELTA,
        xtol=1e-10, ftol=1e-12, gtol=1e-14, max_nfev=500,
    )  # fmt: skip
    # least_squares stays inside of its bounds; a coefficient of 0 is what the projection finds
    candidates = [
        start,
        found.x,
        np.array([*found.x[:count], *project(form.terms(columns, found.x[:count]), losses)]),
    ]
    scores = [_objective(form, columns, losses, numbers) for numbers in candidates]
    best = int(np.argmin(scores))
    return Fit(form, candidates[best], scores[best])
