"""Folders of Hugging Face with a head that was fine-tuned elsewhere: scores are of transformers' outputs."""

import json
import logging
import re

import numpy as np
import pytest
import torch
from evaluation.language_world import write_cola, write_mnli, write_stsb, write_vqav2
from evaluation.tuning.test_fitting_regions import write_table
from families.two_streams.two_stream_peers import lxmert, their_lxmert
from families.vilt.vilt_peers import difference, randomize, their_vilt, tiny_config
from safetensors.torch import load_file

from flava_ds.cli import main
from flava_ds.errors import CheckpointError, UserError
from flava_ds.evaluation.opening import open_model
from flava_ds.evaluation.protocols import OwnHead
from flava_ds.evaluation.registry import tasks
from flava_ds.evaluation.runner import find_data
from flava_ds.evaluation.tuning import fine_tuning
from flava_ds.evaluation.tuning.own_head import read_classes, with_own_head
from flava_ds.evaluation.vqa_answers import accuracy
from flava_ds.hf.convert import convert_folder
from flava_ds.layouts import tuned_head

transformers = pytest.importorskip("transformers")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ANSWERS = {0: "rare", 1: "red", 2: "two", 3: "kite"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """MNLI, CoLA, STS-B and VQA v2 in miniature."""
    folder = tmp_path_factory.mktemp("root")
    for write in (write_mnli, write_cola, write_stsb, write_vqav2):
        write(folder)
    return folder


def saved(folder, theirs, names=None):
    """transformers' folder of a model, with a vocabulary of single words and names for its classes."""
    if names is not None:
        theirs.config.id2label = dict(enumerate(names)) if not isinstance(names, dict) else names
        theirs.config.label2id = {name: number for number, name in theirs.config.id2label.items()}
    theirs.save_pretrained(folder)
    words = "a of moon the apple bear cloud kite grows ?".split() + ['"', "'"]
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL, *words]) + "\n")
    return folder


def bert(folder, names, kind="BertForSequenceClassification"):
    shape = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + 12, max_position_embeddings=32, **shape, num_labels=max(len(names), 1)
    )
    theirs = randomize(getattr(transformers, kind)(config), std=0.5).eval()
    return saved(folder, theirs, names or None), theirs


def run(name, folder, root, classes=(), **opening):
    (task,) = with_own_head([tasks()[name]], classes)
    opened = open_model(folder, device="cpu", **opening)
    return task.run(opened.frozen(), find_data(task.data, root))


def test_bert_judges_pairs_of_texts_as_transformers_does(root, tmp_path):
    folder, theirs = bert(tmp_path / "bert", ("Entailment", "neutral", "contradiction"))
    found = run("glue_mnli", folder, root)
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    for split, name in (("dev_matched", "accuracy_matched"), ("dev_mismatched", "accuracy_mismatched")):
        lines = (root / "MNLI" / f"{split}.tsv").read_text().splitlines()[1:]
        rows = [line.split("\t") for line in lines]
        inputs = tokenizer(
            [row[8] for row in rows], [row[9] for row in rows], padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            said = theirs(**inputs).logits.argmax(1).tolist()
        named = [("entailment", "neutral", "contradiction")[number] for number in said]
        expected = np.mean([own == row[-1] for own, row in zip(named, rows, strict=True)])
        assert found[name].value == pytest.approx(expected)
    assert 0 < found["accuracy"].value < 1


def test_a_head_that_scores_choices_is_refused(root, tmp_path):
    folder, _ = bert(tmp_path / "bert", (), kind="BertForMultipleChoice")
    with pytest.raises(UserError, match="glue_stsb: .* a BertForMultipleChoice, but --own-head takes those"):
        run("glue_stsb", folder, root)


def test_a_run_that_starts_from_it_has_no_place_for_the_head(tmp_path, caplog):
    folder, _ = bert(tmp_path / "bert", ("a", "b"))
    with caplog.at_level(logging.WARNING):
        convert_folder(folder, tmp_path / "ours")
    assert "dropped the head of 2 classes" in caplog.text
    assert not any("classifier" in name for name in load_file(tmp_path / "ours" / "model.safetensors"))


def test_a_number_has_its_correlation(root, tmp_path):
    folder, _ = bert(tmp_path / "bert", ("score",))
    assert run("glue_stsb", folder, root)["pearson"].unit == "correlation"


def test_vilt_answers_as_transformers_does(root, tmp_path):
    theirs = their_vilt(tiny_config(), "ViltModel").config
    theirs.id2label = ANSWERS
    theirs = randomize(transformers.ViltForQuestionAnswering(theirs), std=0.3).eval()
    folder = saved(tmp_path / "vilt", theirs)
    model = open_model(folder, device="cpu").frozen()
    (task,) = with_own_head([tasks()["vqav2"]])
    encoder, head = task.encoder(model), model.need(OwnHead, "this")
    assert head.class_names == tuple(ANSWERS.values()) and encoder.image_size == 12  # not 480 / 224 of it
    pixels = torch.randint(0, 256, (3, 3, 12, 12), dtype=torch.uint8)
    ids = [np.array([2, 5, 12, 14, 3])] * 3
    with torch.no_grad():
        ours = head.layers(encoder(ids, pixels))
        inputs = {"input_ids": torch.tensor(np.stack(ids)), "pixel_values": pixels.float() / 127.5 - 1}
        assert difference(ours, theirs(**inputs).logits) < 1e-5
        said = [ANSWERS[number] for number in head.layers(encoder(ids[:1], pixels[:1])).argmax(1).tolist()]
    assert said[0] in ANSWERS.values()


def test_lxmert_answers_from_stored_regions(root, tmp_path, capsys):
    """The command scores what transformers answers, and says that nothing was trained."""
    config = their_lxmert(lxmert(), "LxmertModel").config
    config.num_qa_labels, config.id2label = len(ANSWERS), ANSWERS
    theirs = randomize(transformers.LxmertForQuestionAnswering(config), std=0.5).eval()
    folder = saved(tmp_path / "lxmert", theirs)
    write_table(tmp_path / "regions", range(1, 34))
    (task,) = with_own_head([tasks()["vqav2"]])
    model = open_model(folder, device="cpu", regions=tmp_path / "regions").frozen()
    encoder, samples = task.encoder(model), find_data(task.data, root).test()
    ids, found = model.tokenizer.encode_batch(samples.texts, 77), []
    for row, name in enumerate(samples.pictures):
        regions = encoder.stored_regions.read(name)
        seen = {"visual_feats": regions.features, "visual_pos": regions.boxes}
        with torch.no_grad():
            output = theirs(
                torch.from_numpy(ids[row])[None], **{k: torch.tensor(own)[None] for k, own in seen.items()}
            )
        answer = ANSWERS[int(output.question_answering_score.argmax())]
        found.append(accuracy(answer, samples.answers[row]))
    given = ["evaluate", str(folder), "--task", "vqav2", "--data", str(root), "--own-head"]
    assert main([*given, "--regions", str(tmp_path / "regions")]) == 0
    result = json.loads(capsys.readouterr().out)["vqav2"]
    assert result["scores"]["vqa_accuracy"]["value"] == pytest.approx(np.mean(found))
    assert result["protocol"] == "the own head, as it came, on images with a text"
    assert result["fine_tuning"] == {"own_head": True} and result["samples"] == 9


def test_what_does_not_fit_is_said_before_anything_is_encoded(root, tmp_path, monkeypatch):
    unnamed, _ = bert(tmp_path / "unnamed", ("LABEL_0", "LABEL_1", "LABEL_2"))
    for name, folder, classes, message in (
        ("glue_mnli", unnamed, (), "the 3 classes of the model's head have no names"),
        ("glue_mnli", unnamed, ("neutral",), "--head-classes names 1 classes, but the model's head has 3"),
        (
            "glue_cola",
            unnamed,
            ("0", "2", "3"),
            "has no class 'unacceptable'; it has 0, 2, 3, the data set unac",
        ),
        ("glue_mnli", unnamed, ("neutral", "Neutral", "entailment"), "has two outputs of class 'neutral'"),
        ("glue_stsb", unnamed, ("a", "b", "c"), "tells 3 classes, and the task wants one number"),
        ("vqav2", unnamed, (), "needs PairStates"),
    ):
        with monkeypatch.context() as patched, pytest.raises(UserError, match=re.escape(message)):
            patched.setattr(fine_tuning, "outputs_of", None)
            run(name, folder, root, classes)
    assert run("glue_mnli", unnamed, root, ("neutral", "contradiction", "entailment"))
    bare, _ = bert(tmp_path / "bare", (), "BertModel")
    with pytest.raises(UserError, match=r"mnli with --own-head needs OwnHead .*no head of a single task"):
        run("glue_mnli", bare, root)
    with pytest.raises(UserError, match="--own-head: task cifar10_probe has no head"):
        with_own_head([tasks()["cifar10_probe"]])
    file = tmp_path / "names.json"
    file.write_text('["yes", "no"]')
    assert read_classes(str(file)) == ("yes", "no") == read_classes("yes, no")
    file.write_text("{}")
    with pytest.raises(UserError, match="holds no list of names"):
        read_classes(str(file))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        (
            "classifier.bias",
            (5,),
            "'classifier.weight' of the head has shape [3, 24], which does not fit its",
        ),
        ("classifier.weight", (3, 7), "shape [3, 7], which does not fit its bias of [3] and the 24 numbers"),
        ("classifier.weight", (3, 7, 2), "of the head has shape [3, 7, 2]"),
        ("classifier.weight", (), "of the head has shape []"),
    ],
)
def test_a_head_whose_layers_do_not_fit_is_refused(tmp_path, name, shape, said):
    tensors = {"classifier.weight": torch.zeros(3, 24), "classifier.bias": torch.zeros(3)}
    tensors |= {"dense.weight": torch.zeros(24, 8), "dense.bias": torch.zeros(24), name: torch.zeros(shape)}
    with pytest.raises(CheckpointError, match=re.escape(said)):
        tuned_head(tensors, ("dense", torch.nn.Tanh(), "classifier"), {}, "here")


def test_answers_that_no_question_has_are_refused(root, tmp_path):
    theirs = their_vilt(tiny_config(), "ViltModel").config
    theirs.id2label = {0: "maybe", 1: "perhaps"}
    folder = saved(tmp_path / "vilt", transformers.ViltForQuestionAnswering(theirs))
    with pytest.raises(UserError, match="none of the 2 answers of the model's head .* is a frequent answer"):
        run("vqav2", folder, root)


def test_options_that_contradict_each_other_are_refused(root, tmp_path, capsys):
    folder, _ = bert(tmp_path / "bert", ("a", "b"))
    given = ["evaluate", str(folder), "--data", str(root)]
    for more, message in (
        (["--suite", "text", "--own-head"], "--own-head is for --task"),
        (
            ["--task", "glue_cola", "--head-classes", "0,1"],
            "--head-classes says what the outputs of --own",
        ),
        (["--task", "glue_cola", "--head-classes", ""], "--head-classes says what the outputs of --own"),
    ):
        assert main([*given, *more]) != 0
        assert message in capsys.readouterr().err
