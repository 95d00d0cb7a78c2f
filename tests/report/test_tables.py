"""The facts of a run and the numbers of tasks find their place."""

import dataclasses

from sample_runs import tiny_config

from flava_ds.evaluation.protocols import Score
from flava_ds.recipes import resolve
from flava_ds.report import tables
from flava_ds.watching.run_log import RunLog


def test_facts_hold_what_the_log_says_and_do_without():
    config = tiny_config()
    log = RunLog(
        {"versions": {"torch": "2.13", "triton": None}, "git": {"commit": "abc", "changed": True}}, []
    )
    facts = tables.facts(config, log, [("zero shot", "1.2 s")])
    assert (
        facts["Versions"] == [("torch", "2.13")]
        and ("changed", "yes") in facts["Source"]
        and ("zero shot", "1.2 s") in facts["Evaluation"]
    )
    assert list(tables.facts(config, RunLog({}, []), [])) == ["Configuration"]


def test_operators_share_a_row_with_others_of_the_same_implementation():
    def kernels(**found: str) -> list[tuple[str, str]]:
        return tables.facts(resolve("flava_debug", []), RunLog({"kernels": found}, []), [])["Kernels"]

    assert kernels(layer_norm="torch", dropout="torch") == [("all operators", "torch")]
    mixed = kernels(layer_norm="triton", dropout="torch", pack="triton")
    assert mixed == [("layer norm, pack", "triton"), ("dropout", "torch")]


def test_a_model_of_texts_has_no_size_of_pictures():
    (rows,) = tables.facts(resolve("bert_base", []), RunLog({}, []), []).values()
    assert "pictures" not in dict(rows) and "batch" in dict(rows)


def test_a_task_has_a_row_for_each_step_and_average_of_each_number():
    def result(step, value, samples=5):
        facts = {"folder": "/d", "split": "test", "samples": samples, "fingerprint": str(samples)}
        score = dataclasses.asdict(Score(value, samples, None)) | {"published": []}
        return facts | {"step": step, "scores": {"top_1": score, "top_5": score}}

    ema = result(20, 0.4) | {"average": "ema"}
    found = {"own": [result(9, 0.9), ema, result(20, 0.2), result(9, 0.1), result(9, 0.3, samples=6)]}
    first, other = tables.task_tables(found)
    assert (first.task, first.samples) == ("own", "5 of split test in /d")
    assert [(number, value, step) for number, value, _, _, step in first.rows] == [
        *(("top 1", "90.00 %", "9"), ("top 1", "20.00 %", "20"), ("top 1", "40.00 %", "20 (ema)")),
        *(("top 5", "90.00 %", "9"), ("top 5", "20.00 %", "20"), ("top 5", "40.00 %", "20 (ema)")),
    ]
    assert (other.task, other.samples) == ("own", "6 of split test in /d")
    assert [(number, value, step) for number, value, _, _, step in other.rows] == [
        *(("top 1", "30.00 %", "9"), ("top 5", "30.00 %", "9")),
    ]
