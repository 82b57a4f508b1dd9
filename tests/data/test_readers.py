import struct
import threading
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as Picture

from madclip.data import read_image, read_many, read_mask
from madclip.data.readers import MAX_PIXELS
from madclip.errors import DataError

GREY = np.arange(9 * 12, dtype=np.uint8).reshape(9, 12) * 2
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
GREY_16 = GREY.astype(np.uint16) * 257 + 3
COLOUR_16 = COLOUR.astype(np.uint16) * 257


def as_pixels(values, maximum):
    values = values if values.ndim == 3 else np.stack([values] * 3, axis=-1)
    return (values[..., :3].astype(np.float64) / maximum).transpose(2, 0, 1).astype(np.float32)


def png_header(width, height):
    """A PNG that consists of a header only, with a valid checksum."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
@pytest.mark.parametrize("values", [GREY, COLOUR], ids=["grey", "colour"])
def test_lossless_8_bit(tmp_path, suffix, values):
    Picture.fromarray(values).save(tmp_path / f"image.{suffix}")
    image = read_image(tmp_path / f"image.{suffix}")
    assert image.pixels.dtype == np.float32
    assert image.size == (9, 12)
    assert image.depth == "8-bit"
    np.testing.assert_allclose(image.pixels, as_pixels(values, 255), atol=1e-7)


@pytest.mark.parametrize("values", [GREY_16, COLOUR_16, np.dstack([COLOUR_16, GREY_16])], ids=["grey", "rgb", "rgba"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_all_16_bits_are_kept(tmp_path, suffix, values):
    path = tmp_path / f"image.{suffix}"
    if suffix == "png":
        path.write_bytes(imagecodecs.png_encode(values))
    else:
        tifffile.imwrite(path, values, photometric="minisblack" if values.ndim == 2 else "rgb", compression="deflate")
    image = read_image(path)
    assert image.depth == "16-bit"
    np.testing.assert_allclose(image.pixels, as_pixels(values, 65535), atol=1e-7)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(tmp_path, mode):
    smooth = np.add.outer(np.linspace(40, 200, 64), np.linspace(-20, 20, 48)).astype(np.uint8)
    Picture.fromarray(smooth).convert("RGB").convert(mode).save(tmp_path / "image.jpg", quality=95)
    np.testing.assert_allclose(read_image(tmp_path / "image.jpg").pixels, as_pixels(smooth, 255), atol=0.03)


def test_palette_alpha_and_one_bit_become_rgb(tmp_path):
    palette = Picture.fromarray(COLOUR).quantize(16)
    palette.save(tmp_path / "palette.png", transparency=bytes(range(16)))
    np.testing.assert_allclose(
        read_image(tmp_path / "palette.png").pixels, as_pixels(np.asarray(palette.convert("RGB")), 255), atol=1e-7
    )
    for name, values in (("la", np.dstack([GREY, GREY])), ("rgba", np.dstack([COLOUR, np.zeros_like(GREY)]))):
        Picture.fromarray(values).save(tmp_path / f"{name}.png")
        expected = values[..., 0] if name == "la" else COLOUR
        np.testing.assert_allclose(read_image(tmp_path / f"{name}.png").pixels, as_pixels(expected, 255), atol=1e-7)
    Picture.fromarray(GREY > 100).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png").pixels, as_pixels(GREY > 100, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_orientation_is_applied(tmp_path, suffix, orientation):
    from PIL import ImageOps

    path = tmp_path / f"image.{suffix}"
    values = np.zeros((16, 24, 3), np.uint8)
    values[:8, :8], values[8:, 16:] = 250, 120
    exif = Picture.Exif()
    exif[0x0112] = orientation
    if suffix == "tif":
        tifffile.imwrite(path, values, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    else:
        Picture.fromarray(values).save(path, exif=exif, **({"quality": 100} if suffix == "jpg" else {}))
    upright = Picture.fromarray(values)
    upright.getexif()[0x0112] = orientation
    expected = as_pixels(np.asarray(ImageOps.exif_transpose(upright)), 255)
    np.testing.assert_allclose(read_image(path).pixels, expected, atol=0.03)


def test_tiff_kinds(tmp_path):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, GREY.astype(np.float32) / 255)
    assert read_image(path).depth == "float"
    np.testing.assert_allclose(read_image(path).pixels, as_pixels(GREY, 255), atol=1e-6)
    tifffile.imwrite(path, 255 - GREY, photometric="miniswhite")
    np.testing.assert_allclose(read_image(path).pixels, as_pixels(GREY, 255), atol=1e-7)
    tifffile.imwrite(path, COLOUR.transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    np.testing.assert_allclose(read_image(path).pixels, as_pixels(COLOUR, 255), atol=1e-7)
    tifffile.imwrite(path, GREY > 100, photometric="minisblack")
    np.testing.assert_array_equal(read_image(path).pixels, as_pixels(GREY > 100, 1))
    table = np.stack([np.arange(256), 255 - np.arange(256), np.zeros(256)]).astype(np.uint16) * 257
    tifffile.imwrite(path, GREY, photometric="palette", colormap=table)
    np.testing.assert_allclose(read_image(path).pixels, as_pixels(table.T[GREY] // 257, 255), atol=1e-7)
    Picture.fromarray(COLOUR).convert("CMYK").save(path)
    np.testing.assert_allclose(read_image(path).pixels, as_pixels(COLOUR, 255), atol=0.01)
    Picture.fromarray(COLOUR).save(path, compression="tiff_lzw")
    np.testing.assert_allclose(read_image(path).pixels, as_pixels(COLOUR, 255), atol=1e-7)


def test_the_content_decides_not_the_suffix(tmp_path):
    Picture.fromarray(GREY).save(tmp_path / "image.jpg", format="PNG")
    np.testing.assert_allclose(read_image(tmp_path / "image.jpg").pixels, as_pixels(GREY, 255), atol=1e-7)


NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def flat(value):
    values = np.full((16, 16), 0.5, np.float32)
    values[3, 3] = value
    return values


def halve(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def huge_bmp(path):
    Picture.fromarray(GREY).save(path, format="BMP")
    data = bytearray(path.read_bytes())
    data[18:26] = struct.pack("<ii", 40_000, 40_000)
    path.write_bytes(data)


WRITERS = {
    "missing": lambda path: None,
    "folder": lambda path: path.mkdir(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("not an image\n"),
    "huge": lambda path: path.write_bytes(png_header(40_000, 40_000)),
    "huge_bmp": huge_bmp,
    "huge_tiff": lambda path: tifffile.imwrite(path, shape=(9000, 9000), dtype=np.uint8),
    "header_only": lambda path: path.write_bytes(png_header(100, 100)),
    "one_pixel": lambda path: Picture.fromarray(GREY[:1, :1]).save(path),
    "nan": lambda path: tifffile.imwrite(path, flat(np.nan)),
    "inf": lambda path: tifffile.imwrite(path, flat(np.inf)),
    "negative": lambda path: tifffile.imwrite(path, flat(-0.1)),
    "above_one": lambda path: tifffile.imwrite(path, flat(900)),
    "pages": lambda path: tifffile.imwrite(path, np.stack([GREY, GREY]), photometric="minisblack"),
    "truncated_png": lambda path: Picture.fromarray(NOISE).save(path),
    "truncated_png16": lambda path: path.write_bytes(imagecodecs.png_encode(NOISE.astype(np.uint16) * 257)),
    "truncated_jpeg": lambda path: Picture.fromarray(NOISE).save(path, format="JPEG"),
    "truncated_bmp": lambda path: Picture.fromarray(NOISE).save(path, format="BMP"),
    "truncated_tiff": lambda path: tifffile.imwrite(path, NOISE, photometric="rgb", compression="deflate"),
    "truncated_raw_tiff": lambda path: tifffile.imwrite(path, NOISE, photometric="rgb"),
}


BAD_IMAGES = {
    "missing": "cannot be opened",
    "folder": "cannot be opened",
    "empty": "the file is empty",
    "text": "not a DICOM, PNG",
    "huge": "40000 x 40000",
    "huge_bmp": "40000 x 40000",
    "header_only": "damaged",
    "one_pixel": "1 x 1",
    "truncated_png": "damaged",
    "truncated_png16": "damaged",
    "truncated_jpeg": "damaged",
    "truncated_bmp": "damaged",
    "truncated_tiff": "damaged",
    "truncated_raw_tiff": "damaged",
    "nan": "NaN",
    "inf": "infinite",
    "negative": "rescale them to 0..1",
    "above_one": "to 900; rescale",
    "pages": "holds 2 frames; name one as bad.png#0 to #1",
    "huge_tiff": "9000 x 9000",
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images_are_refused_in_one_line(tmp_path, kind, recwarn):
    path = tmp_path / "bad.png"
    WRITERS[kind](path)
    if kind.startswith("truncated"):
        halve(path)
    for read in (read_image, read_mask):
        if read is read_mask and kind in {"one_pixel", "nan", "inf", "negative", "above_one"}:
            continue
        with pytest.raises(DataError) as caught:
            read(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert BAD_IMAGES[kind] in message
        assert "\n" not in message
    assert not recwarn.list


def test_size_limit_is_about_the_product():
    assert 40_000 * 40_000 > MAX_PIXELS >= 8000 * 8000


MAGIC = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\x00", b"MM\x00*"]


@settings(deadline=None)
@given(data=st.binary(max_size=200), magic=st.sampled_from(MAGIC))
def test_no_bytes_break_the_reader(tmp_path_factory, data, magic):
    path = tmp_path_factory.getbasetemp() / "random.png"
    path.write_bytes(magic + data)
    with pytest.raises(DataError):
        read_image(path)


KINDS = ["png", "jpg", "tif", "png16"]


@settings(deadline=None)
@given(
    cut=st.integers(0, 400),
    flip=st.integers(0, 400),
    bit=st.integers(0, 7),
    kind=st.sampled_from(KINDS),
)
def test_damage_is_either_survived_or_named(tmp_path_factory, cut, flip, bit, kind):
    path = tmp_path_factory.getbasetemp() / "damaged"
    if kind == "png16":
        path.write_bytes(imagecodecs.png_encode(COLOUR_16))
    else:
        Picture.fromarray(COLOUR).save(path, format={"png": "PNG", "jpg": "JPEG", "tif": "TIFF"}[kind])
    data = bytearray(path.read_bytes())
    data[flip % len(data)] ^= 1 << bit
    path.write_bytes(data[: len(data) - cut] if cut < len(data) else data)
    [(_, result)] = read_many([path], read_image)
    if isinstance(result, DataError):
        assert "\n" not in str(result)
    else:
        assert 0 <= result.pixels.min() <= result.pixels.max() <= 1


@settings(deadline=None)
@given(mask=hnp.arrays(bool, (9, 11)), lesion=st.sampled_from([255, 1]))
def test_masks_of_0_and_255_or_1(tmp_path_factory, mask, lesion):
    path = tmp_path_factory.getbasetemp() / "mask.png"
    Picture.fromarray(mask.astype(np.uint8) * lesion).save(path)
    found = read_mask(path)
    assert found.dtype == bool
    np.testing.assert_array_equal(found, mask)


def test_other_masks(tmp_path):
    path = tmp_path / "mask.tif"
    mask = GREY > 100
    labels = (mask * (1 + GREY % 3)).astype(np.uint8)
    red = np.zeros((*mask.shape, 4), np.uint8)
    red[..., 0], red[..., 3] = mask * 255, 255
    for write in (
        lambda: tifffile.imwrite(path, labels),
        lambda: tifffile.imwrite(path, labels.astype(np.uint16)),
        lambda: tifffile.imwrite(path, mask.astype(np.uint16) * 65535),
        lambda: tifffile.imwrite(path, mask.astype(np.float32)),
        lambda: tifffile.imwrite(path, mask, photometric="minisblack"),
        lambda: Picture.fromarray(mask).save(path, format="PNG"),
        lambda: Picture.fromarray(red).save(path, format="PNG"),
    ):
        write()
        np.testing.assert_array_equal(read_mask(path), mask)


@pytest.mark.parametrize("values", [[0, 128], [0, 127, 255], [0, 1, 255], list(range(0, 256, 5))])
def test_ambiguous_masks_are_refused(tmp_path, values):
    Picture.fromarray(np.resize(np.array(values, np.uint8), (16, 16))).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask\.png: not a mask.*threshold"):
        read_mask(tmp_path / "mask.png")


@pytest.mark.parametrize("lesion", [True, 255])
def test_a_mask_that_may_be_inside_out_is_refused(tmp_path, lesion):
    values = np.zeros((9, 9), bool if lesion is True else np.uint8)
    values[3:5, 3:5] = lesion
    tifffile.imwrite(tmp_path / "mask.tif", values, photometric="miniswhite")
    with pytest.raises(DataError, match="MINISWHITE"):
        read_mask(tmp_path / "mask.tif")


def test_nan_in_a_mask_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "mask.tif", np.full((9, 9), np.nan, np.float32))
    with pytest.raises(DataError, match="threshold"):
        read_mask(tmp_path / "mask.tif")


def test_a_batch_goes_on_in_order(tmp_path):
    paths = []
    for index in range(30):
        path = tmp_path / f"{index}.png"
        if index % 7 == 3:
            path.write_text("broken")
        else:
            Picture.fromarray(np.full((8, 8), index, np.uint8)).save(path)
        paths.append(path)
    results = list(read_many(paths, read_image, workers=3))
    assert [path for path, _ in results] == paths
    for index, (path, result) in enumerate(results):
        if index % 7 == 3:
            assert isinstance(result, DataError)
            assert str(path) in str(result)
        else:
            assert result.pixels[0, 0, 0] == np.float32(index / 255)


def test_a_batch_reads_only_a_little_ahead():
    lock, started = threading.Lock(), []

    def read(number):
        with lock:
            started.append(number)
        return number

    for index, (_, number) in enumerate(read_many(range(1000), read, workers=2)):
        assert number == index
        assert len(started) <= index + 6
    assert len(started) == 1000


def test_errors_that_are_not_about_data_are_not_hidden():
    with pytest.raises(ZeroDivisionError):
        list(read_many([0], lambda number: 1 / number))
