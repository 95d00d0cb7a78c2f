"""Codes, pixels and files of the image codebook; the encoder against Hugging Face's."""

import dataclasses
import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from flava_ds.codebook.dvae import map_pixels
from flava_ds.codebook.image_codebook import (
    ImageCodebook,
    huggingface_name,
    load_codebook,
    save_codebook,
    save_huggingface_codebook,
)
from flava_ds.config import CodebookConfig
from flava_ds.errors import CheckpointError, ConfigError, DataError

FOUR = CodebookConfig(
    hidden_size=16, num_groups=4, num_blocks_per_group=2, vocab_size=40, image_size=32, decoder_init_size=12
)
THREE = CodebookConfig(
    hidden_size=8, num_groups=3, num_blocks_per_group=1, vocab_size=40, image_size=16, decoder_init_size=12
)


@pytest.fixture(scope="module")
def codebook() -> ImageCodebook:
    torch.manual_seed(0)
    return ImageCodebook(FOUR).requires_grad_(False).eval()


def pixels(size: int = 32, count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def huggingface(config: CodebookConfig):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    description = transformers.FlavaImageCodebookConfig(
        hidden_size=config.hidden_size,
        vocab_size=config.vocab_size,
        num_blocks_per_group=config.num_blocks_per_group,
    )
    model = transformers.FlavaImageCodebook(description).double().eval()
    for parameter in model.parameters():  # the library's own initialisation leaves codes that hardly differ
        parameter.data.normal_(std=0.2)
    return model


def test_parity_with_hugging_face(tmp_path):
    theirs = huggingface(FOUR)
    save_file(
        {name: tensor.contiguous() for name, tensor in theirs.state_dict().items()},
        tmp_path / "model.safetensors",
    )
    ours = load_codebook(tmp_path, FOUR).double()  # loaded as fp32; the values are then put back in fp64
    ours.encoder.load_state_dict(
        {
            ours_name: theirs.state_dict()[huggingface_name(ours_name)]
            for ours_name in ours.encoder.state_dict()
        }
    )
    images = pixels(count=8).double()
    expected = theirs(map_pixels(images))
    torch.testing.assert_close(ours.logits(images), expected, rtol=1e-10, atol=1e-10)
    codes = ours.encode(images)
    assert codes.dtype == torch.int64 and codes.shape == (8, 16) and codes.unique().numel() > 2
    assert torch.equal(codes, theirs.get_codebook_indices(map_pixels(images)).flatten(1))


def test_hugging_face_opens_what_we_save(codebook, tmp_path):
    transformers = pytest.importorskip("transformers")
    save_huggingface_codebook(codebook, tmp_path / "hf")
    theirs, report = transformers.FlavaImageCodebook.from_pretrained(
        tmp_path / "hf", output_loading_info=True, local_files_only=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(
        theirs.get_codebook_indices(map_pixels(pixels())).flatten(1), codebook.encode(pixels())
    )
    again = load_codebook(tmp_path / "hf", FOUR)
    assert again.decoder is None
    assert torch.equal(again.encode(pixels()), codebook.encode(pixels()))


def test_our_file_keeps_everything(codebook, tmp_path):
    save_codebook(codebook, tmp_path / "sub" / "codebook.safetensors")
    for path in (tmp_path / "sub" / "codebook.safetensors", str(tmp_path / "sub")):
        loaded = load_codebook(path, FOUR)
        assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
        for name, tensor in codebook.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["codebook.safetensors"]
    assert load_codebook(tmp_path / "sub", dataclasses.replace(FOUR, image_size=64)).encode(
        pixels(64)
    ).shape == (3, 64)


@pytest.mark.parametrize(
    "prefix, spelling",
    [("image_codebook.", "hf"), ("", "torchmultimodal"), ("image_codebook.encoder.", "torchmultimodal")],
)
def test_foreign_spellings(codebook, tmp_path, prefix, spelling):
    state = {}
    for name, tensor in codebook.encoder.state_dict().items():
        name = huggingface_name(name)
        if spelling == "torchmultimodal":
            name = name.replace(".group.", ".").replace(".path.", ".")
            name = (
                name.removesuffix(".weight") + ".w"
                if name.endswith(".weight")
                else name.removesuffix(".bias") + ".b"
            )
        state[prefix + name] = tensor
    if prefix:
        state["flava.logit_scale"] = torch.zeros(())
    torch.save(state, tmp_path / "pytorch_model.bin")
    loaded = load_codebook(tmp_path, FOUR)
    assert torch.equal(loaded.logits(pixels()), codebook.logits(pixels()))


def test_names_of_the_published_layout():
    assert huggingface_name("input.weight") == "blocks.input.weight"
    assert huggingface_name("groups.1.0.id_path.bias") == "blocks.group_2.group.block_1.id_path.bias"
    assert (
        huggingface_name("groups.3.1.conv_4.weight")
        == "blocks.group_4.group.block_2.res_path.path.conv_4.weight"
    )
    assert huggingface_name("output.bias") == "blocks.output.conv.bias"


def test_the_fingerprint_is_of_what_makes_the_codes(codebook, tmp_path):
    """The decoder, and the layout of the file, make none."""
    save_huggingface_codebook(codebook, tmp_path)
    known = codebook.fingerprint()
    assert load_codebook(tmp_path, FOUR).fingerprint() == known
    assert load_codebook(tmp_path, dataclasses.replace(FOUR, image_size=64)).fingerprint() != known
    other = load_codebook(tmp_path, FOUR)
    other.encoder.output.bias[0] += 1e-3
    assert other.fingerprint() != known


def test_codes_are_row_by_row_and_uint8_equals_float(codebook):
    whole = torch.randint(
        0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2)
    )
    logits = codebook.logits(whole)
    assert logits.shape == (2, 40, 4, 4)
    assert codebook.encode(whole)[1, 4 * 2 + 3] == logits[1, :, 2, 3].argmax()
    torch.testing.assert_close(logits, codebook.logits(whole.float() / 255))


def test_decode_gives_pixels_from_the_decoders_means(codebook):
    codes = torch.randint(0, 40, (2, 16), generator=torch.Generator().manual_seed(2))
    decoded = codebook.decode(codes)
    one_hot = torch.nn.functional.one_hot(codes.view(2, 4, 4), 40).permute(0, 3, 1, 2).float()
    expected = ((codebook.decoder(one_hot)[:, :3].sigmoid() - 0.1) / 0.8).clamp(0, 1)
    assert decoded.shape == (2, 3, 32, 32) and decoded.dtype == torch.float32
    torch.testing.assert_close(decoded, expected)
    assert decoded.std() > 0


def test_half_precision_runs_in_the_dtype_of_the_parameters(codebook):
    half = ImageCodebook(FOUR)
    half.load_state_dict(codebook.state_dict())
    half = half.to(torch.bfloat16)
    assert half.logits(pixels()).dtype == torch.bfloat16
    assert half.decode(half.encode(pixels())).dtype == torch.float32


def test_another_layout_gives_the_same_codes():
    """With the shipped codebook, whose codes differ clearly; channels-last sums in another order."""
    from flava_ds.recipes import resolve

    config = resolve("flava_debug", [])
    plain, laid_out = (load_codebook(config.codebook_weights, config.codebook) for _ in range(2))
    images = (255 * pixels(config.codebook.image_size, 8)).byte()
    laid_out.for_inference()
    assert laid_out.encoder.groups[0][0].conv_1.weight.is_contiguous(memory_format=torch.channels_last)
    assert laid_out.prepare(images).is_contiguous(memory_format=torch.channels_last)
    codes = plain.encode(images)
    assert torch.equal(laid_out.encode(images), codes) and len(codes.unique()) > 3
    assert laid_out.fingerprint() == plain.fingerprint()


@pytest.mark.slow
def test_compiled_it_gives_the_same_codes(full):
    if not full:
        pytest.skip("compiles C++ for half a minute; --full does")
    from flava_ds.recipes import resolve

    config = resolve("flava_debug", [])
    plain, compiled = (load_codebook(config.codebook_weights, config.codebook) for _ in range(2))
    images = (255 * pixels(config.codebook.image_size, 8)).byte()
    found = compiled.for_inference(compiled=True).encode(images)
    assert (found == plain.encode(images)).double().mean() > 0.99


def test_errors_name_the_file_and_the_field(codebook, tmp_path):
    with pytest.raises(CheckpointError, match=r"absent.*no image codebook"):
        load_codebook(tmp_path / "absent", FOUR)
    with pytest.raises(CheckpointError, match="looked for codebook.safetensors"):
        load_codebook(tmp_path, FOUR)
    ours = tmp_path / "ours.safetensors"
    save_codebook(codebook, ours)
    for field, value in (("hidden_size", 32), ("vocab_size", 41), ("num_groups", 3)):
        with pytest.raises(CheckpointError, match=f"ours.safetensors.*codebook.{field}"):
            load_codebook(ours, dataclasses.replace(FOUR, **{field: value}))
    save_huggingface_codebook(codebook, tmp_path / "hf")
    with pytest.raises(CheckpointError, match=r"output.bias is \[40\], expected \[41\]|output.weight is"):
        load_codebook(tmp_path / "hf", dataclasses.replace(FOUR, vocab_size=41))
    state = load_file(tmp_path / "hf" / "model.safetensors")
    save_file(
        {name: tensor for name, tensor in state.items() if "input" not in name}, tmp_path / "part.safetensors"
    )
    with pytest.raises(CheckpointError, match="lacks encoder.input.bias"):
        load_codebook(tmp_path / "part.safetensors", FOUR)
    save_file(
        {**state, "blocks.group_9.group.block_1.id_path.bias": torch.zeros(2)}, tmp_path / "more.safetensors"
    )
    with pytest.raises(CheckpointError, match="unknown tensor encoder.groups.8.0.id_path.bias"):
        load_codebook(tmp_path / "more.safetensors", FOUR)
    save_file({**state, "visual.proj": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="'visual.proj' does not belong to an image codebook"):
        load_codebook(tmp_path / "other.safetensors", FOUR)
    save_file(
        codebook.state_dict(),
        tmp_path / "odd.safetensors",
        metadata={"codebook_config": json.dumps({"width": 3})},
    )
    with pytest.raises(CheckpointError, match="odd.safetensors.*width"):
        load_codebook(tmp_path / "odd.safetensors", FOUR)


def test_damaged_files_are_one_clear_error(tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "broken.bin").write_bytes(b"hello")
    (tmp_path / "empty.bin").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.bin")
    torch.save({"a": torch.zeros(3)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for size in (1, 18):
        (tmp_path / f"cut-{size}.bin").write_bytes((tmp_path / "old.bin").read_bytes()[:size])
    for name in ("broken.safetensors", "broken.bin", "empty.bin", "list.bin", "cut-1.bin", "cut-18.bin"):
        with pytest.raises(CheckpointError, match=name):
            load_codebook(tmp_path / name, FOUR)
    (tmp_path / "unreadable.bin").symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match=r"unreadable.bin: cannot be read \(Input/output error\)"):
        load_codebook(tmp_path / "unreadable.bin", FOUR)


class Trap:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_runs_nothing(tmp_path):
    (tmp_path / "trap.bin").write_bytes(pickle.dumps({"blocks.input.weight": Trap(tmp_path / "sprung")}))
    torch.save({"blocks.input.weight": Trap(tmp_path / "sprung")}, tmp_path / "trap2.bin")
    for name in ("trap.bin", "trap2.bin"):
        with pytest.raises(CheckpointError, match=name):
            load_codebook(tmp_path / name, FOUR)
    assert not (tmp_path / "sprung").exists()


def test_no_decoder_no_pictures(codebook, tmp_path):
    save_huggingface_codebook(codebook, tmp_path)
    with pytest.raises(CheckpointError, match="without a decoder"):
        load_codebook(tmp_path, FOUR).decode(torch.zeros(1, 16, dtype=torch.int64))


def test_hugging_faces_layout_has_four_groups(tmp_path):
    with pytest.raises(CheckpointError, match="has four groups, but this codebook has 3"):
        save_huggingface_codebook(ImageCodebook(THREE), tmp_path)


def test_wrong_input_is_refused(codebook):
    for shape in ((3, 32, 32), (1, 1, 32, 32), (1, 3, 30, 32)):
        with pytest.raises(DataError, match="multiples of 8"):
            codebook.encode(torch.zeros(shape))
    for codes in (
        torch.zeros(1, 15, dtype=torch.int64),
        torch.zeros(16, dtype=torch.int64),
        torch.zeros(1, 16),
    ):
        with pytest.raises(DataError, match="square number"):
            codebook.decode(codes)
    with pytest.raises(DataError, match="0 .. 39"):
        codebook.decode(torch.full((1, 16), 40))
    with pytest.raises(ConfigError, match="image_size 30"):
        ImageCodebook(dataclasses.replace(FOUR, image_size=30))


def test_its_work_is_what_torch_counts():
    codebook = ImageCodebook(
        CodebookConfig(hidden_size=8, num_groups=2, num_blocks_per_group=1, image_size=8)
    )
    with FlopCounterMode(display=False) as counter:
        codebook.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    assert codebook.flops_per_image == counter.get_total_flops() > 0
