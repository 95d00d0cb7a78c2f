"""A run, each of its checkpoints and its Hugging Face export open as the same model."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import write_checkpoint
from data.test_tokenizer_files import write_byte_pairs
from evaluation.color_world import write_image_folder
from evaluation.tuning.test_fine_tuning import QUICK
from PIL import Image
from sample_runs import write_run

from flava_ds import config as configuration
from flava_ds.api import Model
from flava_ds.data.tokenizer import WordPieceTokenizer
from flava_ds.errors import CheckpointError, ConfigError, DataError
from flava_ds.evaluation.frozen_model import Lacking, Workplace
from flava_ds.evaluation.opening import MOST_TOKENS, freeze, is_huggingface, most_tokens, open_model
from flava_ds.evaluation.protocols import Embedder, Matcher, PairStates, TextFeatures
from flava_ds.evaluation.registry import tasks
from flava_ds.evaluation.runner import evaluate, find_all
from flava_ds.families.flava.task import build_task

TEXTS = ["a drawing of owl", "kite"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"))[0]


def test_a_run_opens_at_its_latest_checkpoint(run, tmp_path):
    opened = open_model(run)
    assert opened.described.step == 12 and opened.described.family == "flava" and opened.run_path == run
    assert not opened.module.training and not any(p.requires_grad for p in opened.module.parameters())
    assert next(opened.module.parameters()).dtype == torch.bfloat16  # as it was trained
    assert next(open_model(run, precision="fp32").module.parameters()).dtype == torch.float32
    assert next(open_model(run, device="meta").module.parameters()).device.type == "meta"
    words = tmp_path / "vocab.txt"
    *before, last = Path(opened.config.data.vocabulary).read_text().split()
    words.write_text("\n".join([*before, f"{last}x"]) + "\n")
    data = dataclasses.replace(opened.config.data, vocabulary=str(words))
    other = dataclasses.replace(opened, config=dataclasses.replace(opened.config, data=data))
    assert other.weights != opened.weights == open_model(run).weights


def test_an_earlier_checkpoint_opens_by_its_folder(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    config = configuration.load(copy / "config.json")
    other = build_task(config).state_dict()
    other["model.logit_scale"] = torch.full_like(other["model.logit_scale"], 0.5)
    write_checkpoint(copy / "checkpoints", 4, other, config)
    (copy / "checkpoints" / "latest").write_text("step_00000012\n")
    early = open_model(copy / "checkpoints" / "step_00000004")
    assert early.described.step == 4 and early.run_path == copy
    shutil.copytree(copy / "checkpoints" / "step_00000004", tmp_path / "kept" / "of_it" / "step_00000004")
    moved = open_model(tmp_path / "kept" / "of_it" / "step_00000004")
    assert moved.run_path is None and next(moved.module.parameters()).dtype == torch.bfloat16
    assert float(early.module.model.logit_scale) == 0.5 != float(open_model(copy).module.model.logit_scale)


def test_an_export_opens_as_the_run_it_was(run, tmp_path):
    pytest.importorskip("transformers")
    from flava_ds.hf.export_weights import export

    out = export(run, tmp_path / "hf")
    opened = open_model(out)
    assert (
        is_huggingface(out)
        and not is_huggingface(run)
        and opened.run_path is None
        and opened.described.step is None
    )
    ours, theirs = open_model(run, precision="fp32").frozen(), opened.frozen()
    assert torch.equal(ours.text_embeddings(TEXTS, "a test"), theirs.text_embeddings(TEXTS, "a test"))
    file = out / "preprocessor_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"image_mean": [0.5, 0.5, 0.5]}))
    assert open_model(out).config.model.image.image_mean == (0.5, 0.5, 0.5)
    file.write_text("{")
    with pytest.raises(CheckpointError, match="preprocessor_config.json"):
        open_model(out)


def test_what_does_not_fit_is_named(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    settings = json.loads((copy / "config.json").read_text())
    settings["model"]["projection_dim"] += 1
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="weights do not fit the model in its config.json"):
        open_model(copy)
    config = configuration.load(run / "config.json")
    other = build_task(config).state_dict()
    other["model.logit_scale"] = torch.full_like(other["model.logit_scale"], float("nan"))
    write_checkpoint(copy / "checkpoints", 4, other, config)
    with pytest.raises(CheckpointError, match=r"step_00000004: 'model\.logit_scale' holds infinities or no"):
        open_model(copy / "checkpoints/step_00000004")
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        open_model(copy)


def test_texts_are_as_long_as_in_training(run):
    config = configuration.load(run / "config.json")
    assert most_tokens(config, "pair") == 16 and most_tokens(config, "text") == 20
    assert (
        most_tokens(configuration.Config(name="any"), "pair") == 77
        and most_tokens(configuration.Config(name="any"), "text") == 512
    )
    bare = dataclasses.replace(config, data=configuration.DataConfig())
    assert most_tokens(bare, "pair") == config.model.text.max_position_embeddings < MOST_TOKENS["pair"]


def test_a_folder_whose_tokenizer_was_left_behind_is_refused(run, tmp_path):
    """Another vocabulary than the packaged one would give the words other ids."""
    pytest.importorskip("transformers")
    from flava_ds.hf.export_weights import export

    out = export(run, tmp_path / "hf")
    (out / "vocab.txt").unlink()
    model = open_model(out).frozen()
    reason = "hf has no vocab.txt, merges.txt or .*, and its .* words are not"
    for capability in (TextFeatures, Embedder, Matcher, PairStates):
        with pytest.raises(Lacking, match=f"a test needs {capability.__name__} .*: {tmp_path}/{reason}"):
            model.need(capability, "a test")
    with pytest.raises(Lacking, match=f"hf reads no texts: .*{reason}"):
        _ = model.tokenizer


def test_without_a_vocabulary_a_model_reads_pictures_alone(tmp_path):
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
    text = shape | {"vocab_size": 300, "max_position_embeddings": 16}
    settings = transformers.CLIPConfig(
        text_config=text, vision_config=shape | {"image_size": 32, "patch_size": 16}, projection_dim=8
    )
    transformers.CLIPModel(settings).save_pretrained(tmp_path / "clip")
    write_image_folder(tmp_path / "image_folder", {"train": 6, "test": 3})
    opened = open_model(tmp_path / "clip", device="cpu")
    assert opened.weights == open_model(tmp_path / "clip", device="cpu").weights
    place = Workplace(tmp_path / "kept", keep_weights=True)
    model = opened.frozen().at(place)
    tuned = dataclasses.replace(tasks()["image_folder_tuned"], recipe=QUICK)
    asked = [tasks()["image_folder_probe"], tasks()["image_folder_neighbours"], tuned]
    found = evaluate(asked, model, find_all(asked, tmp_path))
    assert found["image_folder_tuned"].scores["accuracy"].value == 1
    ours = Model(opened)
    pictures = [Image.new("RGB", (40, 40), color) for color in ("red", "green")]
    predict = ours.fine_tuned(tmp_path / "kept" / "image_folder_tuned.best.safetensors").predict
    assert predict(images=pictures).shape == (2, 3) and ours.encode_images(pictures).shape == (2, 8)
    zero_shot = tasks()["image_folder_zero_shot"]
    for refused in (
        lambda: evaluate([zero_shot], model, find_all([zero_shot], tmp_path)),
        lambda: ours.encode_texts(TEXTS),
    ):
        with pytest.raises(Lacking, match="needs Embedder .* does not offer: .*clip has no vocab.txt"):
            refused()


def bert_folder(folder):
    """A model of transformers with as many words as the packaged vocabulary has, without a tokenizer."""
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    settings = transformers.BertConfig(vocab_size=30_522, max_position_embeddings=16, **shape)
    transformers.BertModel(settings).save_pretrained(folder)
    return transformers


def test_a_vocabulary_in_a_tokenizer_json_is_read(tmp_path):
    """All that save_pretrained of transformers 5 writes; the same words in another order are other ids."""
    packaged = WordPieceTokenizer("bert_base_uncased")
    words = [packaged.token(number) for number in range(packaged.vocab_size)]
    found = {}
    for name, order in (("same", words), ("other", [*words[:1000], *reversed(words[1000:])])):
        transformers = bert_folder(tmp_path / name)
        theirs = transformers.BertTokenizer(vocab={word: number for number, word in enumerate(order)})
        theirs.save_pretrained(tmp_path / name)
        assert not (tmp_path / name / "vocab.txt").exists()
        opened = open_model(tmp_path / name, device="cpu")
        assert opened.config.data.vocabulary == str(tmp_path / name / "tokenizer.json")
        [ids] = opened.frozen().tokenizer.encode_batch(TEXTS[:1], 16)
        assert ids.tolist() == theirs(TEXTS[0])["input_ids"]
        found[name] = ids.tolist()
    assert found["same"] == packaged.encode_batch(TEXTS[:1], 16)[0].tolist() != found["other"]
    (tmp_path / "other" / "vocab.txt").write_text("\n".join(words) + "\n")
    with pytest.raises(CheckpointError, match=r"vocab.txt and tokenizer.json hold different vocabularies"):
        open_model(tmp_path / "other", device="cpu")


def test_byte_pairs_in_a_tokenizer_json_are_read(tmp_path):
    transformers = pytest.importorskip("transformers")
    found = []
    for reverse in (False, True):
        theirs, file = write_byte_pairs(tmp_path / str(reverse), reverse)
        shape = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16}
        ids = {"bos_token_id": theirs.bos_token_id, "eos_token_id": theirs.eos_token_id}
        text = shape | {"vocab_size": len(theirs), "max_position_embeddings": 16, **ids}
        settings = transformers.CLIPConfig(
            text_config=text, vision_config=shape | {"image_size": 32, "patch_size": 16}, projection_dim=8
        )
        transformers.CLIPModel(settings).save_pretrained(file.parent)
        tokenizer = open_model(file.parent, device="cpu").frozen().tokenizer
        found.append(tokenizer.encode_batch(["A red cat"], 16)[0].tolist())
        assert found[-1] == theirs("A red cat")["input_ids"]
    assert found[0] != found[1]


def test_without_a_vocabulary_a_line_says_which_one_is_taken(tmp_path, caplog):
    bert_folder(tmp_path / "hf")
    assert open_model(tmp_path / "hf", device="cpu").config.data.vocabulary == "bert_base_uncased"
    [line] = [own for own in caplog.messages if "has no vocab.txt, merges.txt or tokenizer.json" in own]
    assert "texts are read with bert_base_uncased" in line and "\n" not in line
    (tmp_path / "hf" / "tokenizer.json").write_text('{"model": {"type": "Unigram", "vocab": {}}}')
    with pytest.raises(DataError, match="its model is 'Unigram'"):
        open_model(tmp_path / "hf", device="cpu").frozen()


def test_a_vocabulary_larger_than_the_models_is_refused(run, tmp_path):
    opened = open_model(run)
    big = tmp_path / "vocab.txt"
    big.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(300))]))
    data = dataclasses.replace(opened.config.data, vocabulary=str(big))
    with pytest.raises(ConfigError, match="model.text.vocab_size 200 is smaller than the 305 entries"):
        freeze(dataclasses.replace(opened.config, data=data), opened.module, opened.described)
