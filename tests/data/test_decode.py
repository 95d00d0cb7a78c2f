"""Every mode and format decodes to what Pillow shows; nothing large, broken or foreign gets through."""

import io
import resource
import struct
import zlib

import numpy as np
import pytest
import torch
from data.shard_files import encode
from PIL import Image, ImageOps

from flava_ds.data.decode import decode_image, over_white, read_header
from flava_ds.storage.faults import SampleFault

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (6, 8, 4), dtype=np.uint8)).resize(
        (40, 30), Image.Resampling.BICUBIC
    )
)
RGB, RGBA = Image.fromarray(np.ascontiguousarray(SMOOTH[..., :3])), Image.fromarray(SMOOTH)


def save(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def reference(data):
    """Pillow's pixels over white: [3 H W]."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGBA")
    pixels = np.asarray(image).astype(np.float64)
    alpha = pixels[..., 3:] / 255
    return (pixels[..., :3] * alpha + 255 * (1 - alpha)).transpose(2, 0, 1)


def exif(orientation):
    data = Image.Exif()
    data[0x112] = orientation
    return data.tobytes()


def noisy(mode, size=(83, 61)):
    """A picture of odd size, so that blocks and chroma samples reach beyond its edges."""
    return (
        Image.fromarray(RNG.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        .resize(size, Image.Resampling.BICUBIC)
        .convert(mode)
    )


def ycck():
    """A CMYK JPEG whose Adobe marker declares YCCK: its transform byte is 2 instead of 0."""
    data = bytearray(save(RGB.convert("CMYK"), "jpeg", quality=95))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


PALETTE = RGB.quantize(16)
CASES = {
    "jpeg": save(RGB, "jpeg", quality=90),
    "jpeg progressive": save(RGB, "jpeg", quality=90, progressive=True),
    "jpeg grey": save(RGB.convert("L"), "jpeg", quality=90),
    "jpeg cmyk": save(RGB.convert("CMYK"), "jpeg", quality=95),
    "jpeg ycck": ycck(),
    **{
        f"jpeg {mode} {'progressive' if progressive else 'baseline'} subsampling {subsampling}": save(
            noisy(mode), "jpeg", quality=85, progressive=progressive, subsampling=subsampling
        )
        for mode in ("RGB", "L", "CMYK")
        for progressive in (False, True)
        for subsampling in (0, 1, 2)
    },
    "png": save(RGB, "png"),
    "png animated": save(RGB, "png", save_all=True, append_images=[RGB.rotate(90), RGB.rotate(180)]),
    "png size 1": save(RGB.crop((0, 0, 1, 1)), "png"),
    "png alpha": save(RGBA, "png"),
    "png grey": save(RGB.convert("L"), "png"),
    "png grey alpha": save(RGBA.convert("LA"), "png"),
    "png one bit": save(RGB.convert("1"), "png"),
    "png palette": save(PALETTE, "png"),
    "png palette 2 bit": save(RGB.quantize(4), "png"),
    "png palette transparent": save(PALETTE, "png", transparency=3),
    "png palette alpha": save(PALETTE, "png", transparency=bytes(range(0, 160, 10))),
    "png grey transparent": save(RGB.convert("L"), "png", transparency=RGB.convert("L").getpixel((3, 3))),
    "png rgb transparent": save(RGB, "png", transparency=RGB.getpixel((3, 3))),
    "webp": save(RGB, "webp", quality=90),
    "webp lossless": save(RGB, "webp", lossless=True),
    "webp alpha": save(RGBA, "webp", lossless=True, exact=True),
    "webp lossy alpha": save(RGBA, "webp", quality=95),
    "webp animated": save(RGB, "webp", save_all=True, append_images=[RGB.rotate(90)], quality=90),
    "webp animated lossless alpha": save(
        RGBA, "webp", save_all=True, append_images=[RGBA.rotate(90)], lossless=True, exact=True
    ),
    **{
        f"{form} exif {turn}": save(RGB, form, exif=exif(turn))
        for form in ("jpeg", "png", "webp")
        for turn in range(1, 9)
    },
}


@pytest.mark.parametrize("name", CASES)
def test_pixels_equal_pillows(name):
    image = decode_image(CASES[name])
    expected = reference(CASES[name])
    assert image.dtype == torch.uint8 and tuple(image.shape) == expected.shape
    # blending is rounded to nearest
    limit = 0.5 if any(word in name for word in ("alpha", "transparent")) else 0.0
    assert np.abs(image.numpy() - expected).max() <= limit


@pytest.mark.parametrize("name", CASES)
def test_the_header_knows_size_and_alpha(name):
    header = read_header(CASES[name])
    with Image.open(io.BytesIO(CASES[name])) as image:
        assert (header.width, header.height) == image.size


ADAM7 = ((0, 8, 0, 8), (0, 8, 4, 8), (4, 8, 0, 4), (0, 4, 2, 4), (2, 4, 0, 2), (0, 2, 1, 2), (1, 2, 0, 1))
"""First row, row step, first column, column step of the seven passes of an interlaced PNG."""


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def packed(row, bits) -> bytes:
    """Samples of 1 to 16 bits as a PNG stores a row of them."""
    if bits >= 8:
        return row.astype(">u2" if bits == 16 else "u1").tobytes()
    return np.packbits((row.reshape(-1, 1) >> np.arange(bits)[::-1] & 1).astype(np.uint8)).tobytes()


def png_of(values, color_type, bits=16, *, interlaced=False):
    """Writes what Pillow cannot: 16-bit samples in colour, grey of 2 and 4 bits, and interlaced pictures.
    `values` [H W channels]."""
    height, width = values.shape[:2]
    passes = (
        [values[top::down, left::across] for top, down, left, across in ADAM7] if interlaced else [values]
    )
    rows = b"".join(b"\0" + packed(row, bits) for part in passes if part.size for row in part)

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if color_type == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + palette
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (3, 1), (4, 2), (6, 4)])
@pytest.mark.parametrize("size", [(13, 11), (1, 1), (2, 9)])
def test_interlaced_pngs_equal_their_plain_twins_and_pillows_pixels(size, color_type, channels):
    values = RNG.integers(0, 256, (*size, channels), dtype=np.uint8)
    data = png_of(values, color_type, 8, interlaced=True)
    assert torch.equal(decode_image(data), decode_image(png_of(values, color_type, 8)))
    assert np.abs(decode_image(data).numpy() - reference(data)).max() <= (0.5 if channels in (2, 4) else 0)


@pytest.mark.parametrize(("color_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_sixteen_bits_are_scaled_to_eight(color_type, channels):
    values = RNG.integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    grey = values / 65535 * 255
    color, alpha = (grey[..., :-1], grey[..., -1:] / 255) if channels % 2 == 0 else (grey, 1.0)
    expected = np.broadcast_to(color * alpha + 255 * (1 - alpha), (5, 7, 3)).transpose(2, 0, 1)
    assert np.abs(decode_image(png_of(values, color_type)).numpy() - expected).max() <= 1.5


@pytest.mark.parametrize(("color_type", "bits"), [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16)])
def test_a_transparent_colour_becomes_white_at_every_depth_and_no_other_does(color_type, bits, capfd):
    channels = 3 if color_type == 2 else 1
    values = RNG.integers(0, 2**bits, (9, 17, channels), dtype=np.uint16)
    color = values[4, 8]
    values[0, 0], values[0, 1] = color, color ^ 1  # its neighbour differs in the last bit
    data = png_of(values, color_type, bits)
    data = data[:33] + chunk(b"tRNS", color.astype(">u2").tobytes()) + data[33:]
    expected = np.round(values / (2**bits - 1) * 255)
    expected[(values == color).all(-1)] = 255
    expected = np.broadcast_to(expected, (9, 17, 3)).transpose(2, 0, 1)
    assert np.abs(decode_image(data).numpy() - expected).max() <= (0 if bits <= 8 else 1)
    assert (decode_image(data)[:, 0, 0] == 255).all()
    absent = data.replace(chunk(b"tRNS", color.astype(">u2").tobytes()), b"")
    if bits < 8:  # only the lowest bits count, as Pillow writes 255 for white of one bit
        beyond = chunk(b"tRNS", (color | 0xFF00).astype(">u2").tobytes())
        assert torch.equal(decode_image(absent[:33] + beyond + absent[33:]), decode_image(data))
        assert not any(capfd.readouterr())
    assert torch.equal(decode_image(data)[:, 0, 1], decode_image(absent)[:, 0, 1])


def png_with(picture, *chunks, **options):
    """A PNG with further chunks behind its header."""
    data = save(picture, "png", **options)
    return data[:33] + b"".join(chunk(kind, body) for kind, body in chunks) + data[33:]


LONG = zlib.compress(bytes(3 * 2**20))
ANCILLARY = {
    "a long text": [(b"zTXt", b"k\0\0" + LONG)],
    "a text that has tRNS in it": [(b"tEXt", b"k\0tRNS IDAT")],
    "a profile that inflates": [(b"iCCP", b"k\0\0" + LONG)],
    "a profile whose name is a command": [
        (b"iCCP", b"\x1b]0;title\x07\x1b[2J\0\0" + zlib.compress(b"no profile"))
    ],
    "many texts": [(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20)))] * 80,
    "a damaged date": [(b"tIME", b"?")],
}


@pytest.mark.parametrize("name", ANCILLARY)
@pytest.mark.parametrize("transparency", [None, tuple(np.asarray(RGB)[0, 0].tolist())])
def test_chunks_that_decide_no_pixel_are_left_out(name, transparency, capfd):
    """Pillow refuses texts above its limits, libpng prints the names of profiles."""
    options = {} if transparency is None else {"transparency": transparency}
    image = decode_image(png_with(RGB, *ANCILLARY[name], **options))
    assert torch.equal(image, decode_image(save(RGB, "png", **options)))
    assert transparency is None or (image[:, 0, 0] == 255).all()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "damaged", [b"Exif\0\0" + b"\xff" * 40, b"Ex", bytes(30), b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_a_webp_whose_exif_cannot_be_read_stays_as_it_is_stored(damaged, recwarn):
    image = decode_image(save(RGB, "webp", lossless=True, exif=damaged))
    assert torch.equal(image, decode_image(save(RGB, "webp", lossless=True))) and not recwarn.list


def test_alpha_and_sixteen_bits_take_no_several_times_the_pictures_memory():
    """Both computed with four bytes a number: 64 Mi pixels took some GiB."""
    blank = Image.new("RGBA", (4096, 4096), (10, 20, 30, 128))
    data = save(blank, "png", compress_level=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    image = decode_image(data)
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert (
        image[:, 0, 0].tolist()
        == over_white(torch.tensor([10, 20, 30, 128], dtype=torch.uint8).view(4, 1, 1))[:, 0, 0].tolist()
    )
    assert grown_mib < 4 * image.nbytes / 2**20


def huge_png(width, height):
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 2, 0, 0, 0)
        + b"\0" * 32
    )


HUGE_WEBP = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\x00" * 2 + b"\0" * 8
FAULTY = {
    "too many pixels": [huge_png(100_000, 100_000), HUGE_WEBP],
    "truncated": [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", CASES["jpeg"][:5]],
    "undecodable": [
        b"GIF89a....",
        b"<html>not found</html>",
        huge_png(0, 5),
        huge_png(5, 5),
        *(
            CASES[name][: len(CASES[name]) // 2]
            for name in ("jpeg progressive", "png", "webp", "webp lossless", "webp exif 3")
        ),
        *(CASES[name][:-20] for name in ("jpeg", "jpeg grey", "jpeg cmyk", "jpeg ycck", "webp animated")),
        save(RGB, "gif"),
        save(RGB, "bmp"),
        save(RGB, "tiff"),
        b"\xff\xd8\xff\xd9",
    ],
}


@pytest.mark.parametrize("reason", FAULTY)
def test_what_cannot_be_shown_says_why(reason):
    for data in FAULTY[reason]:
        with pytest.raises(SampleFault) as caught:
            decode_image(data)
        assert caught.value.reason == reason, data[:20]


Image.init()
no_avif = pytest.mark.skipif("AVIF" not in Image.SAVE, reason="this Pillow writes no AVIF; Pillow 11.3 does")


@pytest.mark.parametrize(
    ("form", "name"),
    [("gif", "a GIF"), ("bmp", "a BMP"), ("tiff", "a TIFF"), pytest.param("avif", "an AVIF", marks=no_avif)],
)
def test_other_formats_are_named(form, name):
    with pytest.raises(SampleFault, match=rf"undecodable \({name}.*only JPEG, PNG and WebP are decoded"):
        decode_image(save(RGB, form))


def test_random_bytes_behind_every_magic_never_crash():
    for number in range(300):
        rng = np.random.default_rng(number)
        magic = [
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff",
            b"RIFF\0\0\0\0WEBPVP8 ",
            b"RIFF\0\0\0\0WEBPVP8L",
            b"RIFF\0\0\0\0WEBPVP8X",
            b"",
        ][number % 6]
        with pytest.raises(SampleFault):
            decode_image(magic + rng.bytes(int(rng.integers(0, 200))))


def test_flipped_bytes_never_crash():
    for name in ("jpeg", "png", "webp", "webp lossless", "jpeg exif 6"):
        for number in range(60):
            rng = np.random.default_rng(number)
            data = bytearray(CASES[name])
            data[int(rng.integers(2, len(data)))] ^= 1 << int(rng.integers(8))
            try:
                header, image = read_header(bytes(data)), decode_image(bytes(data), max_pixels=10**6)
                assert image.shape[0] == 3 and sorted(image.shape[1:]) == sorted(
                    (header.width, header.height)
                )
            except SampleFault:
                pass


def test_the_limit_is_on_pixels():
    data = encode(np.zeros((10, 20, 3), np.uint8), "png")
    assert decode_image(data, max_pixels=200).shape == (3, 10, 20)
    with pytest.raises(SampleFault, match="too many pixels"):
        decode_image(data, max_pixels=199)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("times", [0, 100, 300])
def test_no_more_than_200_scans_of_a_jpeg_are_decoded(progressive, times):
    """A sequential one ends with its only scan, so its decoder refuses what follows; a progressive one may go
    on, each scan over the whole picture.
    """
    data = save(RGB, "jpeg", quality=90, progressive=progressive)
    longer = data[:-2] + data[data.rindex(b"\xff\xda") : -2] * times + data[-2:]
    if not times or (progressive and times < 200):
        assert decode_image(longer).shape == (3, 30, 40)
    else:
        with pytest.raises(SampleFault, match="more than 200 scans" if progressive else "undecodable"):
            decode_image(longer)


def test_the_reason_does_not_name_the_decoders_source():
    with pytest.raises(SampleFault) as caught:
        decode_image(save(RGB, "jpeg", quality=90)[:-300])
    assert str(caught.value) == "undecodable (JPEG: Image is incomplete or truncated)"


def test_a_sequential_jpeg_of_one_scan_per_component_has_its_scans_counted():
    """Its decoder takes them all, as of a progressive one."""
    frame = b"\xff\xc0\x00\x11\x08\0\x10\0\x10\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01"
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"
    assert read_header(b"\xff\xd8" + frame + scan * 3)[:3] == ("JPEG", 16, 16)
    with pytest.raises(SampleFault, match="more than 200 scans"):
        read_header(b"\xff\xd8" + frame + scan * 300)


def two_headed():
    """Pictures of 600 x 600 whose first bytes tell of 8 x 8 to a reader that parses them in another way than
    their decoders do.
    """
    large, small = (encode(np.zeros((side, side, 3), np.uint8), "jpeg") for side in (600, 8))
    inside = large[2:]
    yield (
        "jpeg, escaped length",
        b"\xff\xd8\xff\x00" + struct.pack(">H", len(inside) + 2) + inside + small[2:],
    )
    sizes = {side: struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0) for side in (600, 8)}
    pixels = chunk(b"IDAT", zlib.compress(bytes(600 * 1801))) + chunk(b"IEND", b"")
    yield (
        "png, unknown chunk first",
        b"\x89PNG\r\n\x1a\n" + chunk(b"aaAa", sizes[8]) + chunk(b"IHDR", sizes[600]) + pixels,
    )
    yield (
        "png, two headers",
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", sizes[8])
        + chunk(b"tRNS", bytes(6))
        + chunk(b"IHDR", sizes[600])
        + pixels,
    )


@pytest.mark.parametrize(
    ("name", "data"), list(two_headed()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_no_second_header_leads_past_the_limit(name, data):
    with pytest.raises(
        SampleFault, match="too many pixels|does not begin with IHDR|a second header says 600|PNG: "
    ):
        decode_image(data, max_pixels=100)
