"""The runs that Optuna chooses for a sweep, one by one, by what the earlier ones reached."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from flava_ds.commands.sweep_runs import config_of, with_facts
from flava_ds.errors import ConfigError, UserError

if TYPE_CHECKING:
    from flava_ds.scaling.spec import Search, Spec
    from flava_ds.scaling.sweep import Sweep

MOST_PROPOSED = 100
"""Points that Optuna is asked for until one is new."""


def asked(sweep: Sweep, spec: Spec) -> tuple[Sweep, str] | None:
    """Returns the sweep with the run that Optuna asks for next, by the ended ones, and the run's name; None
    when it asks for no new one. A point that cannot be is left out, which a line says.

    The manifest is the only memory: the study is made anew from it each time.

    Raises: UserError; also when a finished run has not logged the metric, as then none will.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("a search by optuna needs it; `pip install 'flava_ds[sweep]'`") from error
    from flava_ds.scaling.spec import Run

    assert spec.asked is not None  # the caller looked
    if lacking := sweep.without_metric():
        raise UserError(
            f"{sweep.path_of(lacking[0])}: has finished without {spec.metric} in its log, so there is "
            "nothing to search by; let runs last until it is logged, or name another metric and --folder"
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = distributions_of(spec.asked)
    study, left_out = study_of(sweep, spec.asked.seed, distributions), set()
    for _ in range(MOST_PROPOSED):
        proposed = study.ask(distributions)
        run = Run({**spec.fixed, **proposed.params}, proposed.params)
        if run.name in sweep.runs or run.name in left_out:
            continue
        grown = dataclasses.replace(sweep, runs={**sweep.runs, run.name: run})
        try:
            grown = with_facts(grown, {run.name: config_of(grown, run)})
        except ConfigError as error:
            print(f"left out: {error}", flush=True)
            left_out.add(run.name)
            study.tell(proposed, state=optuna.trial.TrialState.PRUNED)
            continue
        grown.save()
        return grown, run.name
    return None


def distributions_of(search: Search) -> dict[str, Any]:
    """Returns the searched fields as Optuna's distributions."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for name, own in search.fields.items():
        if own.choices:
            found[name] = CategoricalDistribution(own.choices)
        elif own.integer:
            found[name] = IntDistribution(int(own.low), int(own.high), log=own.log)
        else:
            found[name] = FloatDistribution(own.low, own.high, log=own.log)
    return found


def study_of(sweep: Sweep, seed: int, distributions: dict[str, Any]) -> Any:
    """Returns a study that knows the sweep's ended runs. One that failed, or whose metric is not finite, is a
    pruned trial, which ranks behind all that have a number.
    """
    import numpy as np
    import optuna

    from flava_ds.scaling.sweep import FAILED, FINISHED

    # a sum would give neighbouring seeds the same draws, shifted by one run
    [drawn] = np.random.SeedSequence([seed, len(sweep.runs)]).generate_state(1)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=int(drawn)),
        direction="maximize" if sweep.higher_is_better() else "minimize",
    )
    for name, run in sweep.runs.items():
        state = sweep.state(name)
        value = state.get("results", {}).get(sweep.metric)
        if state["state"] in (FINISHED, FAILED):
            how = optuna.trial.TrialState.PRUNED if value is None else optuna.trial.TrialState.COMPLETE
            study.add_trial(
                optuna.trial.create_trial(
                    state=how, params=dict(run.point), distributions=distributions, value=value
                )
            )
    return study
