"""Which runs are left, and what makes a result one of these runs."""

import dataclasses
import json
from pathlib import Path

import pytest

from flava_ds.campaigns import campaign
from flava_ds.campaigns.ablation import RAW_PIXELS, TABLE, with_common_start
from flava_ds.campaigns.campaign import (
    Run,
    check_others,
    code,
    plan,
    read_result,
    read_results,
    unfinished,
)
from flava_ds.campaigns.comparison import MEASURED
from flava_ds.campaigns.comparison import TABLE as COMPARISON
from flava_ds.campaigns.fine_tuned import PAIRS
from flava_ds.campaigns.measure import NUMBERS
from flava_ds.cli import main
from flava_ds.errors import UserError
from flava_ds.recipes.ablation import ROWS
from flava_ds.storage.atomic import check_writable

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
NUMBER = {"value": 0.5, "clusters": "concepts", "scale": 1, "sums": [1, 2]}


def numbers_of(*domains):
    """Every number of some domains."""
    return {name: NUMBER for domain in domains for name in NUMBERS[domain]}


def finish(run, **changes):
    """Writes a result as a run would."""
    run.file.parent.mkdir(parents=True, exist_ok=True)
    measured = numbers_of(*run.domains, *changes.get("added", ()))
    result = {"row": run.row, "seed": run.seed, "settings": run.settings, "code": code()}
    result |= {"training_flops": 1.0, "training_seconds": 1, "metrics": measured}
    result["counts"] = {"concepts": [2, 4]}
    run.file.write_text(json.dumps(result | changes), encoding="utf-8")


def test_all_rows_of_a_seed_come_before_the_next(tmp_path):
    runs = plan(TABLE, ["clip", "mim"], range(2), "tiny", tmp_path)
    assert [(run.row, run.seed) for run in runs] == [("mim", 0), ("clip", 0), ("mim", 1), ("clip", 1)]
    assert len({run.file for run in plan(TABLE, list(ROWS), range(3), "small", tmp_path)}) == 39
    assert [run.seed for run in plan(TABLE, [RAW_PIXELS], range(3), "small", tmp_path)] == [0]


def test_a_finished_run_is_not_run_again_also_without_its_folder(tmp_path, capsys):
    runs = plan(TABLE, ["clip", "mim"], range(1), "tiny", tmp_path)
    finish(runs[1])
    assert list(unfinished(runs)) == runs[:1]
    assert capsys.readouterr().out == f"clip, seed 0: finished, {runs[1].file}\n"


def test_a_result_of_other_code_is_said_and_of_other_settings_refused(tmp_path, capsys):
    [run] = plan(TABLE, ["clip"], range(1), "tiny", tmp_path)
    finish(run, code={"sources": "0", "commit": "abc"})
    assert list(unfinished([run])) == []
    assert "finished by other code" in capsys.readouterr().out
    finish(run, settings="0", code={"sources": "0", "commit": "abc"})
    with pytest.raises(UserError, match=r"clip-0.json: of other settings \(0, here .* commit abc; give"):
        list(unfinished([run]))
    run.file.write_text("[", encoding="utf-8")
    with pytest.raises(UserError, match="no result of such a run"):
        read_results(tmp_path / "tiny")


def test_a_damaged_result_and_those_beside_the_planned_ones_are_refused(tmp_path):
    one, two = plan(TABLE, ["clip"], range(2), "tiny", tmp_path)
    finish(one)
    assert list(unfinished([one])) == []
    for metrics, message in (
        ({"vision/group": NUMBER | {"value": 0.6}}, "items of vision/group have the mean 0.5 and not 0.6"),
        ({"vision/group": NUMBER | {"value": float("nan")}}, "and not nan"),
        ({"vision/group": NUMBER | {"sums": [3]}}, "vision/group has sums of 1 clusters of 2"),
        ({"vision/group": {"value": 0.5}}, "KeyError: 'sums'"),
        (5, "TypeError: "),
    ):
        finish(one, metrics=metrics)
        with pytest.raises(UserError, match=f"clip-0.json: no result of such a run .*{message}.*delete it"):
            list(unfinished([one]))
    finish(one, training_flops=float("nan"))
    with pytest.raises(UserError, match="clip-0.json: .*are no numbers"):
        list(unfinished([one]))
    one.file.unlink()
    finish(two, settings="0")
    with pytest.raises(UserError, match=r"clip-1.json: of other settings \(0, here"):
        check_others(TABLE, [one], "tiny", tmp_path)
    finish(two)
    check_others(TABLE, [one], "tiny", tmp_path)
    two.file.rename(one.file.with_name("mim-0.json"))
    with pytest.raises(UserError, match="mim-0.json: says that it is row 'clip', seed 1, which is no run of"):
        check_others(TABLE, [one], "tiny", tmp_path)
    with pytest.raises(UserError, match="--out: .*mim-0.json/tiny cannot be written .Not a directory"):
        check_writable(one.file.with_name("mim-0.json") / "tiny", "--out")


@pytest.mark.parametrize(
    ("table", "row", "changes", "absent"),
    [
        (TABLE, "mim", {"metrics": {}}, "vision/group, vision/subgroup"),
        (TABLE, "clip", {"metrics": numbers_of("vision", "multimodal")}, "language/category"),
        (
            TABLE,
            "mlm",
            {"metrics": {}, "lacks": {"language": "this table lacks nothing"}},
            "language/category",
        ),
        (TABLE, "mlm", {"lacks": 5}, "TypeError: .*"),
        (COMPARISON, "demo", {"metrics": {}}, "vision/group, vision/subgroup, language/category and 3 more"),
        (COMPARISON, "demo", {"metrics": numbers_of("vision"), "lacks": {"language": ""}}, "multimodal/.*"),
        (COMPARISON, "demo", {"metrics": numbers_of(*MEASURED), "added": "of it"}, "multimodal/scene_.*"),
    ],
)
def test_a_result_without_a_number_that_was_measured_is_damaged(tmp_path, table, row, changes, absent):
    """Only the ablation told it, as a KeyError of its verdicts."""
    (run,) = plan(table, [row], range(1), "tiny", tmp_path)
    added = {"added": run.added} if "added" in changes else {}
    finish(run, **changes | added)
    why = rf"{row}-0.json: no result of such a run \((without )?{absent}\); delete it to run it again"
    with pytest.raises(UserError, match=why):
        list(unfinished([run]))
    with pytest.raises(UserError, match=why):
        check_others(table, [], "tiny", tmp_path)


def test_a_result_may_lack_what_its_model_cannot_do_and_what_was_not_measured_yet(tmp_path):
    (run,) = plan(COMPARISON, ["demo_bert"], range(1), "tiny", tmp_path)
    finish(run, metrics=numbers_of("language"), lacks=dict.fromkeys(("vision", "retrieval", "fit"), "no"))
    assert list(unfinished([run])) == []
    finish(run, metrics={}, lacks=dict.fromkeys(MEASURED, "no"))
    assert list(unfinished([run])) == []


@pytest.mark.parametrize("table", [TABLE, COMPARISON])
def test_the_committed_results_have_the_numbers_of_their_domains(table):
    files = list((RESULTS / table.name).glob("*/*.json"))
    for file in files:
        result = read_result(file)
        run = Run(table, result["row"], result["seed"], file.parent.name, RESULTS / table.name)
        measured = {*run.domains, *result["added"]} - set(result["lacks"])
        assert result["metrics"].keys() == numbers_of(*measured).keys(), file
    assert len(files) > 40


def test_a_result_from_before_a_domain_was_added_remains_and_another_protocol_is_refused(
    tmp_path, capsys, monkeypatch
):
    table = dataclasses.replace(TABLE, added=("scenes",))
    [run], [before] = (plan(own, ["clip"], range(1), "tiny", tmp_path) for own in (table, TABLE))
    assert run.settings == before.settings
    finish(run)
    assert list(unfinished([run])) == [] and "finished, without scenes, " in capsys.readouterr().out
    finish(run, added=run.added)
    assert list(unfinished([run])) == [] and "finished, /" in capsys.readouterr().out
    from flava_ds.campaigns import measure

    monkeypatch.setitem(measure.ADDED, "scenes", measure.ADDED["scenes"] | {"pixels": 64})
    with pytest.raises(UserError, match="its scenes are of another protocol"):
        list(unfinished([run]))


def test_settings_are_those_of_the_run_and_not_of_the_place(tmp_path, monkeypatch):
    run = Run(TABLE, "flava_mm", 0, "tiny", tmp_path)
    assert run.settings == dataclasses.replace(run, out=tmp_path / "b", runs=tmp_path / "c").settings
    others = [
        dataclasses.replace(run, row="flava_c"),
        dataclasses.replace(run, seed=1),
        dataclasses.replace(run, work="small"),
    ]
    assert len({run.settings, *(other.settings for other in others)}) == 4
    monkeypatch.setitem(TABLE.works, "tiny", 28)
    assert Run(TABLE, "flava_mm", 0, "tiny", tmp_path).settings != run.settings
    monkeypatch.undo()
    from flava_ds.campaigns import measure

    changed = measure.PROTOCOL | {"pairs": dataclasses.asdict(dataclasses.replace(PAIRS, epochs=6))}
    monkeypatch.setattr(measure, "PROTOCOL", changed)
    assert Run(TABLE, "flava_mm", 0, "tiny", tmp_path).settings != run.settings


def test_settings_are_compared_by_what_differs_from_the_defaults():
    @dataclasses.dataclass(frozen=True)
    class Part:
        rate: float = 1.0
        parts: tuple = dataclasses.field(default_factory=tuple)
        file: str = "there"

    decided = campaign._decided({"x": Part(rate=2.0, parts=(Part(), 3), file="here")}, but=("file",))
    assert decided == {"x": {"class": "Part", "rate": 2.0, "parts": [{"class": "Part"}, 3]}}


@pytest.mark.parametrize("row", ["mim", "flava_c_local", "flava_no_init", "flava"])
def test_rows_of_a_seed_begin_with_the_same_weights(row, tmp_path):
    import torch
    from safetensors.torch import load_file

    run = Run(TABLE, row, 1, "tiny", tmp_path, tmp_path)
    begun = load_file(with_common_start(run, run.sequence.stages[0]).initial_weights)
    other = Run(TABLE, "flava_mm", 1, "tiny", tmp_path, tmp_path)
    reference = load_file(with_common_start(other, other.sequence.stages[0]).initial_weights)
    assert begun.keys() == reference.keys() and "model.logit_scale" in begun
    assert all(torch.equal(begun[name], reference[name]) for name in begun)
    # The last run of `flava` draws what no stage passes on just so.
    whole = Run(TABLE, "flava", 1, "tiny", tmp_path, tmp_path).sequence.stages[-1].config
    drawn = whole.model.build(whole).state_dict()
    assert all(torch.equal(begun[name], drawn[name]) for name in begun)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rows", "flava_cc"], "--rows flava_cc: there is none; did you mean 'flava_c'?"),
        (["--work", "smal"], "--work smal: there is none; did you mean 'small'?"),
        (["--seeds", "0"], "--seeds 0: use at least 1"),
        (["--most", "-1"], "--most -1: use at least 0"),
    ],
)
def test_slips_are_one_line(words, message, tmp_path, capsys):
    assert main(["ablation", "--out", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err
