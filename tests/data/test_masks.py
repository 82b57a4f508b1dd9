"""Masks whose meaning is not their grey."""

import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as Picture

from madclip.data import read_mask
from madclip.data.arrays import read_region
from madclip.data.readers import to_mask
from madclip.errors import DataError

LESION = np.zeros((40, 60), bool)
LESION[10:20, 15:37] = True
LABELS = np.where(LESION, 1 + (np.arange(60) // 8) % 5, 0).astype(np.uint8)


def voc_palette():
    """The colour map of PASCAL VOC, as labelme and CVAT write it: the bits of the index spread over the colours."""
    colours = np.zeros((256, 3), int)
    for index in range(256):
        value, colour = index, np.zeros(3, int)
        for shift in range(7, -1, -1):
            colour |= (value >> np.arange(3) & 1) << shift
            value >>= 3
        colours[index] = colour
    return colours.astype(np.uint8)


PALETTES = {
    "voc": voc_palette(),
    "white-background": np.arange(255, -1, -1, dtype=np.uint8)[:, None].repeat(3, 1),
    "all-black": np.zeros((256, 3), np.uint8),
    "red-background": np.array([[200, 0, 0], [0, 0, 0]] * 128, np.uint8),
}


def indexed(labels, palette):
    picture = Picture.frombytes("P", labels.shape[::-1], labels.tobytes())
    picture.putpalette(palette.tobytes())
    return picture


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif"])
def test_an_index_is_a_label(tmp_path, suffix, palette):
    path = tmp_path / f"mask.{suffix}"
    indexed(LABELS, PALETTES[palette]).save(path)
    np.testing.assert_array_equal(read_mask(path), LESION)


@pytest.mark.parametrize("transparent", [0, 1, bytes([0, 255, 128, 0, 255, 255])])
def test_transparent_indices_do_not_matter(tmp_path, transparent):
    path = tmp_path / "mask.png"
    indexed(LABELS, PALETTES["voc"]).save(path, transparency=transparent)
    np.testing.assert_array_equal(read_mask(path), LESION)


@settings(deadline=None)
@given(labels=hnp.arrays(np.uint8, (9, 11)))
def test_any_index_but_0_is_lesion(tmp_path_factory, labels):
    path = tmp_path_factory.getbasetemp() / "indexed.png"
    indexed(labels, PALETTES["voc"]).save(path)
    np.testing.assert_array_equal(read_mask(path), labels != 0)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("colours", ["grey", "palette"])
def test_png_of_few_bits(tmp_path, bits, colours):
    """Written by hand, since neither library writes grey of 2 and 4 bits."""
    labels = np.minimum(LABELS, 2**bits - 1)
    lines = np.unpackbits(labels[..., None], axis=-1)[..., -bits:].reshape(len(labels), -1)
    rows = b"".join(b"\0" + row.tobytes() for row in np.packbits(lines, axis=1))

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60, 40, bits, 0 if colours == "grey" else 3, 0, 0, 0)
    palette = b"" if colours == "grey" else chunk(b"PLTE", bytes(range(255, 255 - 3 * 2**bits, -1)))
    path = tmp_path / "mask.png"
    parts = chunk(b"IHDR", header) + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    np.testing.assert_array_equal(read_mask(path), LESION)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("factor", [1, 100])
@pytest.mark.parametrize("suffix", ["tif", "npy"])
def test_label_maps_of_larger_types(tmp_path, suffix, dtype, factor):
    path = tmp_path / f"mask.{suffix}"
    if dtype == "int8" and factor > 1:
        return
    values = (LABELS.astype(int) * factor).astype(dtype)
    tifffile.imwrite(path, values, photometric="minisblack") if suffix == "tif" else np.save(path, values)
    np.testing.assert_array_equal(read_mask(path), LESION)


@pytest.mark.parametrize("name", ["png", "jp2"])
def test_label_maps_of_16_bits(tmp_path, name):
    values = LABELS.astype(np.uint16) * 300
    encode = imagecodecs.png_encode if name == "png" else lambda v: imagecodecs.jpeg2k_encode(v, reversible=True)
    (tmp_path / "mask").write_bytes(encode(values))
    np.testing.assert_array_equal(read_mask(tmp_path / "mask"), LESION)


def test_a_thousand_instances(tmp_path):
    instances = np.kron(np.arange(1024).reshape(32, 32), np.ones((3, 3))).astype(np.int32)
    tifffile.imwrite(tmp_path / "mask.tif", instances)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), instances != 0)


SOFT = np.asarray(Picture.fromarray(LESION.astype(np.uint8) * 255).resize((90, 60), Picture.Resampling.BICUBIC))
SMALL = np.asarray(Picture.fromarray((LESION * 1.0).astype(np.float32)).resize((600, 400), Picture.Resampling.BICUBIC))


@pytest.mark.parametrize(
    "values",
    [
        SOFT,
        SOFT.astype(np.uint16),
        SOFT.astype(np.uint16) * 257,
        SOFT.astype(np.int32),
        SOFT.astype(np.float32),
        SOFT.astype(np.float32) / 255,
        (SMALL * 1000).astype(np.int32).clip(0),
        LABELS.astype(np.int16) - 1,
        LABELS * np.float32(0.5),
        LABELS * 20,
        np.where(LESION, np.inf, 0).astype(np.float32),
        np.where(LABELS == 2, 255, LABELS).astype(np.uint16),
    ],
)
@pytest.mark.parametrize("suffix", ["tif", "npy"])
def test_what_is_ambiguous_is_refused(tmp_path, suffix, values):
    path = tmp_path / f"mask.{suffix}"
    tifffile.imwrite(path, values, photometric="minisblack") if suffix == "tif" else np.save(path, values)
    with pytest.raises(DataError, match="not a mask"):
        read_mask(path)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_a_mask_whose_transparency_varies_is_refused(tmp_path, suffix):
    path = tmp_path / f"mask.{suffix}"
    alpha = np.where(LESION, 255, 0).astype(np.uint8)
    white = np.full((40, 60, 3), 255, np.uint8)
    Picture.fromarray(np.dstack([white, alpha])).save(path, **({"lossless": True} if suffix == "webp" else {}))
    with pytest.raises(DataError, match="transparency varies"):
        read_mask(path)
    values = np.dstack([np.where(LESION, 255, 0)] * 3 + [np.full((40, 60), 130)]).astype(np.uint8)
    Picture.fromarray(values).save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_mask(path), LESION)


def test_transparency_of_16_bits_varies(tmp_path):
    path = tmp_path / "mask.png"
    values = np.dstack([np.where(LESION, 65535, 0)] * 2).astype(np.uint16)
    path.write_bytes(imagecodecs.png_encode(values))
    with pytest.raises(DataError, match="transparency varies"):
        read_mask(path)


def test_colours_need_a_black_background(tmp_path):
    path = tmp_path / "mask.png"
    red = np.where(LESION[..., None], [255, 0, 0], [255, 255, 255]).astype(np.uint8)
    Picture.fromarray(red).save(path)
    with pytest.raises(DataError, match="without black"):
        read_mask(path)
    Picture.fromarray(np.where(LESION[..., None], red, 0).astype(np.uint8)).save(path)
    np.testing.assert_array_equal(read_mask(path), LESION)


def coloured(labels):
    """Labels in the colours of PASCAL VOC, by Pillow."""
    return indexed(labels, PALETTES["voc"]).convert("RGB")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "jp2", "npy"])
@pytest.mark.parametrize("labels", [LABELS, LESION.astype(np.uint8), np.where(LABELS == 2, 200, LABELS)])
def test_flat_colours_on_black_are_labels(tmp_path, suffix, labels):
    """Everything that is not black is lesion, whatever its colour."""
    path, picture = tmp_path / f"mask.{suffix}", coloured(labels.astype(np.uint8))
    if suffix == "npy":
        np.save(path, np.asarray(picture))
    else:
        picture.save(path, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read_mask(path), LESION)
    np.testing.assert_array_equal(read_region(picture), LESION)
    np.testing.assert_array_equal(read_region(np.asarray(picture)), LESION)


def test_a_coloured_lesion_may_be_a_single_pixel(tmp_path):
    labels = LABELS.copy()
    labels[30, 50], labels[32, 3:9] = 6, 7
    coloured(labels).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), labels != 0)


@pytest.mark.parametrize("how", ["smooth", "smooth-one", "jpeg", "jpeg-one", "mixed", "many"])
def test_colours_that_are_no_labels_are_refused(tmp_path, how):
    path = tmp_path / "mask.png"
    picture = coloured(LESION.astype(np.uint8) if how.endswith("one") else LABELS)
    if how.startswith("jpeg"):
        path = tmp_path / "mask.jpg"
    if how.startswith("smooth"):
        picture = picture.resize((90, 60), Picture.Resampling.BILINEAR)
    if how == "mixed":  # one line between red and green, as an edge drawn with anti-aliasing
        values = np.zeros((40, 60, 3), np.uint8)
        values[10:20, 10:20], values[10:20, 20:21], values[10:20, 21:30] = (200, 0, 0), (100, 100, 0), (0, 200, 0)
        picture = Picture.fromarray(values)
    if how == "many":
        picture = coloured(np.arange(2400).reshape(40, 60).astype(np.uint8))
    picture.save(path)
    with pytest.raises(DataError, match=r"mask\.\w+: not a mask.*flat colour"):
        read_mask(path)
    with pytest.raises(DataError, match="not a mask"):
        read_region(Picture.open(path))


@given(st.lists(st.integers(1, 15), max_size=15), st.sampled_from([np.uint8, np.int16, np.uint32, np.float32]))
def test_the_rule_does_not_depend_on_where_labels_lie(labels, dtype):
    values = np.zeros(16, dtype)
    values[: len(labels)] = labels
    np.testing.assert_array_equal(to_mask(values.reshape(4, 4), None, "m").ravel(), values != 0)
    np.testing.assert_array_equal(to_mask(values[::-1].reshape(4, 4), None, "m").ravel(), values[::-1] != 0)
