"""Keys of records and the table that explains them."""

import pytest

from flava_ds.watching.log_fields import FIELDS, field_of, metric_key


def test_a_key_finds_its_field_and_what_the_placeholders_stand_for():
    assert field_of("lr")[1] == {}
    assert field_of("loss/mmm_text") == (
        next(field for field in FIELDS if field.name == "loss/<objective>"),
        {"objective": "mmm_text"},
    )
    field, labels = field_of("skipped_samples/a/b/no image")
    assert field.kind == "count" and labels == {"source": "a/b", "reason": "no image"}
    assert field_of("encoder_gradient_norm/itm/text_encoder")[1] == {
        "objective": "itm",
        "encoder": "text_encoder",
    }
    with pytest.raises(KeyError):
        field_of("losses/mlm")


def test_every_field_is_explained_once_and_has_a_name_of_its_own():
    assert len({field.name for field in FIELDS}) == len({field.metric for field in FIELDS}) == len(FIELDS)
    assert not [field.metric for field in FIELDS if field.metric.endswith("_s")], "units are spelt out"
    assert all(field.meaning and "|" not in field.meaning + field.unit for field in FIELDS)
    assert (
        next(field for field in FIELDS if field.name == "rank_seconds/median").metric
        == "flava_ds_rank_seconds_median"
    )
    assert (
        next(field for field in FIELDS if field.name == "skipped_updates").metric
        == "flava_ds_skipped_updates_total"
    )


def test_any_metric_of_an_objective_has_a_field():
    assert (
        metric_key("accuracy", "itm") == "accuracy/itm"
        and metric_key("similarity", "distil") == "metric/similarity/distil"
    )
    assert field_of("metric/similarity/distil")[1] == {"metric": "similarity", "objective": "distil"}
    assert all(
        field_of(metric_key(shown, "x"))[0] in FIELDS for shown in ("accuracy", "kind", "rank_seconds", "a/b")
    )
