"""Steps on a CPU by measured rates, and the committed comparison with real ones."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from flava_ds.recipes import resolve
from flava_ds.scaling.assumptions import of_host
from flava_ds.scaling.captions import lengths_of
from flava_ds.scaling.facts import Facts
from flava_ds.scaling.failures import RATES, Recovery
from flava_ds.scaling.hardware import this_machine
from flava_ds.scaling.host_rates import CallRate, HostRates
from flava_ds.scaling.measure import measure
from flava_ds.scaling.plan import LOADER, forecast
from flava_ds.scaling.setting import setting_of
from flava_ds.scaling.simulator import Simulator, run_of

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
HOST = HostRates(
    busy=2,
    cores=2,
    operators={"mm": CallRate(1e-5, 0.0, 1e-11), "addmm": CallRate(2e-5, 0.0, 1e-11)},
    others=CallRate(1e-6, 1e-10),
    convolution_flops=2e10,
    beyond=CallRate(2e-3, 1e-10),
    per_call=5e-6,
    collectives={name: [(64, 1e-4), (1e6, 1e-3), (1e7, 2e-2)] for name in ("all_reduce", "all_gather")},
    loader={"pair": 1e-3, "image": 2e-3, "text": 1e-4},
)


@pytest.fixture(scope="module")
def made():
    """A tiny recipe's setting by number of ranks, with the operators of the CPU."""
    config = resolve("flava_debug", [])
    lengths = lengths_of(config, None)
    own = dataclasses.replace(HOST, loader=dict.fromkeys(config.drawn_sources, 1e-3))
    work = measure(config, lengths, device=torch.device("cpu"), samples=2)
    return {
        ranks: setting_of(Facts.of(config), this_machine(own, ranks, 8.0), lambda _: work) for ranks in (1, 2)
    }


def planned(setting):
    return forecast(setting, of_host(setting.cluster.gpu.rates, setting.cluster.gpu.flops))


def test_a_step_is_the_sum_of_what_was_measured(made):
    for ranks, setting in made.items():
        figures, rates = planned(setting), setting.cluster.gpu.rates
        assert sum(figures.parts.values()) == pytest.approx(figures.step_ms)
        for source, time_of in figures.times.items():
            work = setting.model.kinds[source]
            calls = sum(operator.count for operator in work.operators)
            assert time_of.ms["waiting for the host"] == pytest.approx(1e3 * rates.per_call * calls)
            operators = sum(
                o.count * rates.operator(o.name, o.bytes.fixed, o.flops.fixed) for o in work.operators
            )
            assert sum(time_of.kernels.values()) == pytest.approx(1e3 * operators)
            assert time_of.hidden_ms == pytest.approx(0, abs=1e-9), (
                "gloo does not work beside a core's own operators"
            )
        assert (figures.parts["weights"] > 0) == (ranks == 2)


def test_a_loader_on_an_idle_core_costs_nothing_and_without_one_all_of_its_time(made):
    beside = dataclasses.replace(made[1], workers=1)
    assert beside.reads_ahead and planned(beside).parts[LOADER] == 0
    for setting in (dataclasses.replace(made[1], workers=0), dataclasses.replace(made[2], workers=1)):
        assert not setting.reads_ahead
        samples = sum(share * setting.samples(source) for source, share in setting.shares.items())
        assert planned(setting).parts[LOADER] == pytest.approx(samples), "one ms a sample"


def test_collectives_lie_between_measured_sizes():
    assert HOST.collective("all_reduce", 5.5e6) == pytest.approx((1e-3 + 2e-2) / 2)
    assert (
        HOST.collective("all_reduce", 2e7) == pytest.approx(4e-2) and HOST.collective("all_gather", 8) == 1e-4
    )


def test_a_rate_is_found_again_and_keeps_the_total(monkeypatch):
    monkeypatch.syspath_prepend(str(RESULTS.parent))
    from plan_rates import call_rate, fitted_rate

    random = np.random.default_rng(0)
    moved, flops = 10 ** random.uniform(3, 7, 200), 10 ** random.uniform(5, 9, 200)
    exact = 2e-5 + 3e-10 * moved + 2e-12 * flops
    found = call_rate(list(zip(moved, flops, exact, strict=True)))
    assert dataclasses.astuple(found) == pytest.approx((2e-5, 3e-10, 2e-12))
    noisy = exact * random.uniform(0.7, 1.3, 200)
    features = np.stack([np.ones(200), moved, flops], axis=1)
    assert (features @ fitted_rate(features, noisy)).sum() == pytest.approx(noisy.sum(), rel=1e-3)
    less = fitted_rate(features, 5e-5 - 1e-12 * moved)
    assert (less >= 0).all() and less[1] == 0, "no rate is negative"
    again = HostRates.from_json(json.loads(json.dumps(HOST.as_json())))
    assert (again.operators, again.others, again.beyond) == (HOST.operators, HOST.others, HOST.beyond)


def test_a_simulated_run_fails_when_it_is_told_to(made):
    setting = dataclasses.replace(made[1], workers=0, total_steps=100)
    assumed = of_host(setting.cluster.gpu.rates, setting.cluster.gpu.flops)
    run = run_of(setting, Recovery(0.0, 0.0, 0.0, 0.0, 7.0), RATES["none"], assumed)
    step = sum(cost.share * sum(cost.seconds.values()) for cost in run.costs)
    assert step == pytest.approx(planned(setting).step_ms / 1e3)
    run = dataclasses.replace(run, costs=[dataclasses.replace(run.costs[0], share=1.0)])
    step = sum(run.costs[0].seconds.values())
    outcome = Simulator(dataclasses.replace(run, interval=19.5 * step, failures=(50.5 * step,))).simulate()
    assert (outcome.failures, outcome.steps) == (1, 100)
    assert outcome.lost["lost work"] == pytest.approx(10.5 * step)
    assert outcome.wall == pytest.approx(110.5 * step + 7)


def test_committed_forecasts_are_near_the_real_steps_and_add_up():
    found = json.loads((RESULTS / "plan_time.json").read_text(encoding="utf-8"))
    assert {row["ranks"] for row in found["steps"] if row["recipe"] == "demo"} == {1, 2}
    for row in found["steps"]:
        assert sum(row["parts"].values()) == pytest.approx(row["forecast"], rel=1e-3)
        for kind in row["kinds"]:
            assert sum(kind["parts"].values()) == pytest.approx(kind["forecast"], rel=1e-3)
        assert row["forecast"] == pytest.approx(row["measured"], rel=0.2), (row["title"], row["ranks"])
    for run in found["runs"]:
        for account in (run["real"], run["simulated"]):
            causes = ("steps", "checkpoints", "lost work", "detection and restart")
            assert sum(account[cause] for cause in causes) == pytest.approx(account["wall"], rel=0.01)
        assert run["simulated"]["wall"] == pytest.approx(run["real"]["wall"], rel=0.2)
