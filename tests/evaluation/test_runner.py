"""Data is found or asked for in one line, needs are checked before anything is read, and results keep their
facts.
"""

import dataclasses

import pytest
from evaluation.color_world import KnowsColors, color_model, write_cifar10, write_image_folder, write_own

from flava_ds.errors import DataError
from flava_ds.evaluation.frozen_model import Lacking
from flava_ds.evaluation.protocols import Score
from flava_ds.evaluation.registry import find, tasks
from flava_ds.evaluation.runner import (
    FoundData,
    TaskResult,
    departures,
    evaluate,
    find_all,
    find_data,
)


def test_data_lies_in_its_folder_or_is_the_root(tmp_path):
    [task] = find(["cifar10_zero_shot"])
    folder = write_cifar10(tmp_path)
    assert find_data(task.data, tmp_path).folder == folder == find_data(task.data, folder).folder
    assert (
        find_data(task.data, tmp_path).split == "test"
        and find_data(task.data, tmp_path, "train").split == "train"
    )


def test_a_set_is_not_read_as_another(tmp_path):
    tweets, news = find(["tweets_probe", "bbc_news_probe"])
    folder = tmp_path / "bbc_news"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.tsv").write_text("text\tlabel\na\tsport\n")
    with pytest.raises(DataError, match="no tweets in"):
        find_data(tweets.data, folder)
    assert find_data(news.data, folder).folder == folder
    other = folder.rename(tmp_path / "here")
    with pytest.raises(DataError, match="here: would be read as bbc_news and as tweets; put each set into"):
        find_all([tweets, news], other)


def test_absent_data_is_one_line_that_says_what_to_get(tmp_path):
    [task] = find(["cifar10_zero_shot"])
    with pytest.raises(DataError) as absent:
        find_data(task.data, tmp_path)
    for words in (f"{tmp_path / 'cifar-10-batches-py'}", "data_batch_1", "by hand: cifar-10-python.tar.gz"):
        assert words in str(absent.value)
    assert "\n" not in str(absent.value)
    with pytest.raises(DataError, match="cifar10 has no split 'val'; there are test, train"):
        find_data(task.data, tmp_path, "val")


def test_training_samples_are_reported_on_only_when_asked_for(tmp_path):
    [task] = find(["image_folder_zero_shot"])
    write_image_folder(tmp_path, {"train": 2})
    with pytest.raises(DataError, match="split test or val of image_folder is not there"):
        find_data(task.data, tmp_path)
    assert find_data(task.data, tmp_path, "train").split == "train"
    write_image_folder(tmp_path, {"val": 2})
    assert find_data(task.data, tmp_path).split == "val"


def test_tasks_on_one_data_set_share_samples_and_features(tmp_path):
    write_image_folder(tmp_path / "image_folder", {"train": 10, "test": 4})
    knows = KnowsColors()
    tasks = find(["image_folder_zero_shot", "image_folder_probe"])  # of one transform
    data = find_all(tasks, tmp_path)
    told = []
    results = evaluate(tasks, color_model(knows), data, told.append)
    assert sum(knows.calls) == 3 * (10 + 4) and len(told) == 2
    assert results["image_folder_probe"].scores["accuracy"].value == 1
    facts = results["image_folder_zero_shot"].facts
    assert facts["samples"] == 12 and facts["split"] == "test" and facts["limit"] is None
    assert facts["fingerprint"] == data["image_folder_probe"].test().fingerprint


def test_labels_and_captions_of_the_same_shards_are_two_things(tmp_path):
    write_own(tmp_path / "own", {"train": 6, "test": 2})
    tasks = find(["own_zero_shot", "own_retrieval", "own_neighbours", "own_probe"])
    results = evaluate(tasks, color_model(), find_all(tasks, tmp_path))
    assert (
        results["own_zero_shot"].scores["top1_accuracy"].value
        == 1
        == results["own_neighbours"].scores["top1_accuracy"].value
    )
    assert results["own_retrieval"].scores["text_to_image_recall_at_1"].value == pytest.approx(0.5)


def test_the_facts_of_a_result_do_not_depend_on_what_other_tasks_read(tmp_path):
    """A probe reads the split train, too, of the data that they share."""
    write_own(tmp_path / "own", {"train": 2, "test": 2})
    zero_shot, probe = find(["own_zero_shot", "own_probe"])
    [alone] = evaluate([zero_shot], color_model(), find_all([zero_shot], tmp_path)).values()
    found = evaluate([probe, zero_shot], color_model(), find_all([zero_shot, probe], tmp_path))
    assert found["own_zero_shot"].facts == alone.facts and list(alone.facts["fingerprints"]) == ["test"]
    assert list(found["own_probe"].facts["fingerprints"]) == ["test", "train"]


def test_a_limit_holds_for_every_split(tmp_path):
    write_image_folder(tmp_path, {"train": 10, "test": 4})
    tasks, knows = find(["image_folder_neighbours"]), KnowsColors()
    result = evaluate(tasks, color_model(knows), find_all(tasks, tmp_path, limit=6))[
        "image_folder_neighbours"
    ]
    assert knows.calls == [6, 6] and result.facts["samples"] == 6 and result.scores["top1_accuracy"].n == 6


def test_what_a_model_lacks_is_said_before_anything_is_read(tmp_path):
    class Images:
        def image_features(self, pixels):
            raise AssertionError("encoded")

    write_image_folder(tmp_path / "image_folder", {"train": 2, "test": 2})
    tasks = find(["image_folder_neighbours", "image_folder_zero_shot"])
    with pytest.raises(Lacking, match="task image_folder_zero_shot needs Embedder .*family 'color'"):
        evaluate(tasks, color_model(Images()), find_all(tasks, tmp_path))


def test_an_empty_split_is_named(tmp_path):
    from evaluation.color_world import write_karpathy

    write_karpathy(tmp_path, "dataset_flickr30k.json", "images")
    tasks = find(["flickr30k_retrieval"])
    with pytest.raises(DataError, match="split 'val' of flickr30k has no samples"):
        evaluate(tasks, color_model(), find_all(tasks, tmp_path, "val"))


def test_what_departs_from_the_published_samples_is_said(tmp_path):
    probe, hateful = tasks()["kitti_probe"], tasks()["hateful_memes"]
    assert departures(probe, FoundData(probe.data, tmp_path, "test"), 1496) == []
    by_video = dataclasses.replace(probe, data=probe.data.with_variant("vtab"))
    found = FoundData(by_video.data, tmp_path, "val", limit=1000)
    assert departures(by_video, found, 711) == ["splits vtab", "split val", "at most 1,000 samples a split"]
    back = by_video.data.with_variant("vissl")
    assert back == probe.data and hash(back) == hash(probe.data)
    seen = FoundData(hateful.data, tmp_path, "test_seen")  # the paper does not say which of two it is of
    assert departures(hateful, seen, 1000) == departures(hateful, seen, 2000) == []
    assert departures(hateful, seen, 40) == ["40 samples instead of 2,000 or 1,000"]
    facts = {"departures": ["split val"]}
    result = TaskResult({"accuracy": Score(0.9, 100, 0.03)}, 1.0, facts).to_json("cifar10_probe")
    assert result["scores"]["accuracy"]["published"] == []
