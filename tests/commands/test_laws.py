"""`flava-ds laws` on a table: what it prints, what it writes, and every mistake in one line."""

import json

import pytest

from flava_ds import cli
from flava_ds.scaling.spec import Run
from flava_ds.scaling.sweep import Sweep

HEAD = "run,state,parameters,samples,unique_samples,batch,flops,loss/global_contrastive,error"


def write_table(folder):
    lines = [HEAD]
    for n in (1e5, 4e5, 2e6, 9e6):
        for d in (1e4, 6e4, 4e5, 2e6):
            loss = 1.5 + 40 * n**-0.3 + 90 * d**-0.25
            lines.append(
                f"{n:g}-{d:g},finished,{n},{d},{d / 2},128,{6 * n * d},{loss},{0.2 + 9 * (n * d) ** -0.2}"
            )
    for batch in (64, 256, 512):
        lines.append(f"b{batch},finished,4e5,6e4,3e4,{batch},{6 * 4e5 * 6e4},{2 + 9 / batch},0.5")
    lines.append("late,running,1,1,1,128,1,,")
    path = folder / "runs.csv"
    path.write_text("\n".join(lines))
    return path


def test_laws_of_a_table(tmp_path, capsys):
    table, written = write_table(tmp_path), tmp_path / "laws.json"
    words = [
        "--bootstrap",
        "20",
        "--budget",
        "1e14",
        "--data",
        "1e6",
        "--error",
        "error",
        "--json",
        str(written),
    ]
    assert cli.main(["laws", str(table), *words]) == 0
    shown = capsys.readouterr().out
    for text in (
        "19 runs",
        "held out 9e+06-2e+06: predicted",
        "for 1e+14 FLOPs",
        "this law takes repeated samples for new ones",
        "batch, 4 runs",
        "error by compute",
    ):
        assert text in shown
    found = json.loads(written.read_text())
    assert len(found["fitted_to"]) == 15 and found["held_out"] == ["9e+06-2e+06"]
    floor, without, fixed, starred = found["laws"]
    assert floor["numbers"] == pytest.approx(
        {"E": 1.5, "A": 40, "alpha": 0.3, "B": 90, "beta": 0.25}, rel=0.05
    )
    assert floor["held_out"][0]["predicted"] == pytest.approx(floor["held_out"][0]["measured"], rel=0.01)
    assert floor["floor_identified"] and "E" not in without["numbers"]
    assert "ln R*" in starred["numbers"]
    for law, star in ((fixed, "R* 15.4"), (starred, "R* fitted")):
        assert law["form"].endswith(f"D_eff^-beta, {star}") and f"  {law['form']}: " in shown
    assert found["batch"]["largest"] in (128, 256, 512)


def test_a_sweeps_folder_gives_its_own_metric_and_leaves_a_part_out(tmp_path, capsys):
    runs, states = {}, tmp_path / "states"
    states.mkdir()
    sizes = [(n, d) for n in (1e5, 1e6, 1e7) for d in (1e4, 1e6)]
    for number, (n, d) in enumerate([*sizes, (1e8, 1e4)]):
        run = Run({"x": number}, {"x": number}, ("odd" if n == 1e8 else "grid",))
        runs[run.name] = run
        results = {"samples": d, "flops": 6 * n * d, "mine": 1 + 30 * n**-0.3 + 50 * d**-0.3}
        state = {"state": "finished", "attempts": 1, "results": {"parameters": n, "batch": 8.0, **results}}
        (states / f"{run.name}.json").write_text(json.dumps(state))
    Sweep(tmp_path, "demo", "mine", "c", runs).save()
    words = ["--bootstrap", "20", "--json", str(tmp_path / "found.json")]
    # that error rises with compute, so no run but the first is of use
    assert cli.main(["laws", str(tmp_path), "--leave-out", "odd", "--error", "flops", *words]) == 2
    shown = capsys.readouterr()
    assert "6 runs, mine" in shown.out and "beats 1 of 6 runs" in shown.err, (
        "what was fitted is shown all the same"
    )
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["held_out"] == [list(runs)[5]] and len(found["fitted_to"]) == 5
    assert cli.main(["laws", str(tmp_path), "--leave-out", "od", *words]) == 2
    assert "has no such part; there is grid, odd" in capsys.readouterr().err


def test_a_sweep_compared_by_what_should_rise_has_no_law(tmp_path, capsys):
    top, best = "evaluation/mine/top1", "evaluation/mine/median_rank"
    run = Run({"x": 1}, {"x": 1})
    results = {"samples": 8, "flops": 48.0, "batch": 8.0, "parameters": 1e4, top: 0.5, best: 3.0}
    state = {"state": "finished", "attempts": 1, "results": results, "lower_is_better": [best]}
    (tmp_path / "states").mkdir()
    (tmp_path / "states" / f"{run.name}.json").write_text(json.dumps(state))
    Sweep(tmp_path, "demo", top, "c", {run.name: run}).save()
    table = tmp_path / "results.csv"
    columns = f"run,metric,parameters,samples,accuracy/itm,{top},{best}"
    table.write_text(f"{columns}\na,{top},1e4,8,0.7,0.5,3\n")
    few = "0 runs of one batch besides the 1 of most FLOPs"
    for place, words, message in (
        (tmp_path, [], f"more of '{top}' is better, and a law is of a number that falls; name one by --loss"),
        (table, [], f"more of '{top}' is better"),
        (tmp_path, ["--loss", top], f"more of '{top}' is better"),
        (tmp_path, ["--loss", best], few),
        (table, ["--loss", best], few),  # of a table only its owner knows
        (
            tmp_path,
            ["--loss", best, "--error", top],
            f"'{top}' is better, and a law is of a number that falls;",
        ),
        (table, ["--loss", best, "--error", "accuracy/itm"], "name one by --error"),
    ):
        assert cli.main(["laws", str(place), *words]) == 2
        assert message in capsys.readouterr().err
    # a sweep before the log told which numbers fall: what is named is believed
    (tmp_path / "states" / f"{run.name}.json").write_text(json.dumps({**state, "lower_is_better": []}))
    for words, message in (
        ([], "name one by --loss"),
        (["--loss", best], few),
        (["--loss", "evaluation/typo"], "has no column 'evaluation/typo'"),
    ):
        assert cli.main(["laws", str(tmp_path), *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loss", "los"], "has no column 'los' for the loss"),
        (
            ["--parameters", "parameter"],
            "has no column 'parameter' for the parameters; did you mean 'parameters'?",
        ),
        (["--flops", "flop"], "has no column 'flop' for the flops; did you mean 'flops'?"),
        (["--samples", "run"], "'run' of run 100000-10000 is '100000-10000', not a number above 0"),
        (["--bootstrap", "1"], "--bootstrap 1: use at least 20"),
        (["--data", "1"], "--data is for --budget"),
        (["--budget", "-1"], "--budget -1: use a number above 0"),
    ],
)
def test_slips_are_one_line(tmp_path, capsys, words, message):
    assert cli.main(["laws", str(write_table(tmp_path)), *words]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1, error


def test_what_is_no_table_is_one_line(tmp_path, capsys):
    few = tmp_path / "few.csv"
    few.write_text(HEAD + "\na,finished,1,1,1,1,1,1,1\nb,finished,2,1,1,1,2,1,1\n")
    tables = {
        "commas": ("run,parameters,samples,loss\na,1,000,20,3\n", "row 1 has 5 values for 4 columns"),
        "short": ("run,parameters,samples,loss\na,1\n", "row 1 has 2 values for 4 columns"),
        "nan": (
            "loss,parameters,samples\n,3,4\n" + "2,3,4\n" * 4 + "nan,3,4\n",
            "'loss' of run 6 is 'nan', not",
        ),
        "twice": ("run,parameters,samples,loss,loss\na,1,2,3,4\n", "two columns are called 'loss'"),
        "alike": (
            "run,parameters,samples,loss\n" + "".join(f"{n},1e6,{n}e4,{9 - n}\n" for n in range(1, 7)),
            "all 5 runs to fit have 1e+06 parameters, so nothing says how the loss depends on them",
        ),
    }
    for name, (text, message) in tables.items():
        (tmp_path / name).write_text(text)
        assert cli.main(["laws", str(tmp_path / name), "--loss", "loss"]) == 2
        assert message in capsys.readouterr().err
    for place, message in (
        (tmp_path / "gone.csv", "no such sweep or table"),
        (few, "1 run of one batch besides"),
    ):
        assert cli.main(["laws", str(place)]) == 2
        assert message in capsys.readouterr().err
