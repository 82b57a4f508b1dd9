"""One rule for grey values, against NumPy written out."""

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image as Picture

from madclip.data import read_image
from madclip.data.arrays import read_pixels
from madclip.errors import DataError, RecipeError
from madclip.grey_range import GreyRange, parse_grey_range
from madclip.recipe import Recipe

TWELVE_BITS = np.linspace(0, 4095, 16 * 20).astype(np.uint16).reshape(16, 20)
finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(finite, finite)
def test_what_is_typed_comes_back(low, high):
    text = f"{low!r},{high!r}"
    if not low < high:
        with pytest.raises(RecipeError):
            parse_grey_range(text)
        return
    rule = parse_grey_range(text)
    assert (rule.kind, rule.low, rule.high) == ("values", low, high)
    assert parse_grey_range(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "rule", "canonical"),
    [
        ("file", GreyRange("file"), "file"),
        ("full", GreyRange("full"), "full"),
        ("data", GreyRange("data"), "data"),
        ("0,4095", GreyRange("values", 0, 4095), "0,4095"),
        (" 0.0 , 4.095e3", GreyRange("values", 0, 4095), "0,4095"),
        ("-160,240", GreyRange("values", -160, 240), "-160,240"),
        ("p1,p99", GreyRange("percentiles", 1, 99), "p1,p99"),
        ("p0.5, p99.50", GreyRange("percentiles", 0.5, 99.5), "p0.5,p99.5"),
    ],
)
def test_what_may_be_typed(text, rule, canonical):
    assert parse_grey_range(text) == rule
    assert str(rule) == canonical
    assert Recipe(grey_range=text).view.grey_range == canonical


@pytest.mark.parametrize(
    "text",
    ["", "auto", "1", "1,2,3", "1,x", "p1,99", "1,p99", "5,5", "9,1", "nan,1", "0,inf", "p-1,p50", "p1,p101", "p,p"],
)
def test_what_may_not_be_typed(text):
    with pytest.raises(RecipeError, match="grey range"):
        parse_grey_range(text)
    with pytest.raises(RecipeError, match="grey range"):
        Recipe(grey_range=text)


@given(
    hnp.arrays(st.sampled_from([np.uint8, np.int16, np.uint16, np.float32]), (5, 6), elements=st.integers(0, 100)),
    st.sampled_from(["data", "p5,p95", "p0,p100", "3,70"]),
)
def test_limits(values, text):
    rule = parse_grey_range(text)
    expected = {
        "data": (values.min(), values.max()),
        "p5,p95": np.percentile(values, (5, 95)),
        "p0,p100": (values.min(), values.max()),
        "3,70": (3, 70),
    }[text]
    assert rule.limits(values, (0, 255)) == pytest.approx(tuple(expected))


def test_the_files_own_range_comes_first_only_where_it_is_asked_for():
    values = np.arange(4)
    assert parse_grey_range("file").limits(values, (0, 255), (10, 20)) == (10, 20)
    assert parse_grey_range("file").limits(values, (0, 255)) == (0, 255)
    assert parse_grey_range("full").limits(values, (0, 255), (10, 20)) == (0, 255)
    assert parse_grey_range("full").limits(values, None) is None


def write(path, values):
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(values))
    elif path.suffix == ".jp2":
        path.write_bytes(imagecodecs.jpeg2k_encode(values, reversible=True))
    elif path.suffix == ".npy":
        np.save(path, values)
    else:
        tifffile.imwrite(path, values, photometric="minisblack" if values.ndim == 2 else "rgb")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jp2", ".npy"])
def test_12_bits_in_16_are_the_same_picture(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    write(path, TWELVE_BITS)
    plain = read_image(path)
    assert plain.note == (
        "its values reach from 0 to 4095, of the 0 to 65535 that its depth can hold; "
        "name their range with --range LOW,HIGH, such as 0,4095"
    )
    np.testing.assert_allclose(plain.pixels[0], TWELVE_BITS / 65535, atol=1e-7)
    for text in ("0,4095", "data", "p0,p100"):
        image = read_image(path, text)
        assert image.note is None
        np.testing.assert_allclose(image.pixels[1], TWELVE_BITS / 4095, atol=1e-6)
    np.testing.assert_allclose(
        read_image(path, "1000,3000").pixels[2], np.clip((TWELVE_BITS - 1000.0) / 2000, 0, 1), atol=1e-6
    )


@pytest.mark.parametrize("text", ["file", "full", "0,200", "p10,p90", "data"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_8_bits(tmp_path, mode, text):
    rng = np.random.default_rng(0)
    values = rng.integers(20, 220, (16, 20) if mode == "L" else (16, 20, 3)).astype(np.uint8)
    Picture.fromarray(values).save(tmp_path / "a.png")
    low, high = {
        "file": (0, 255),
        "full": (0, 255),
        "0,200": (0, 200),
        "p10,p90": np.percentile(values, (10, 90)),
        "data": (values.min(), values.max()),
    }[text]
    expected = np.clip((values.astype(float) - low) / (float(high) - low), 0, 1)
    expected = np.stack([expected] * 3) if mode == "L" else np.moveaxis(expected, -1, 0)
    np.testing.assert_allclose(read_image(tmp_path / "a.png", text).pixels, expected, atol=1e-6)


def test_hounsfield_units(tmp_path):
    units = np.linspace(-1024, 3071, 320).astype(np.int16).reshape(16, 20)
    for stored in (units, units.astype(np.int32), units.astype(np.float32), units.astype(np.float64)):
        write(tmp_path / "a.tif", stored)
        image = read_image(tmp_path / "a.tif", "-160,240")
        np.testing.assert_allclose(image.pixels[0], np.clip((units + 160.0) / 400, 0, 1), atol=1e-6)
        if stored.dtype == np.int16:
            assert "from -1024 to 3071" in read_image(tmp_path / "a.tif").note
        else:
            with pytest.raises(DataError, match="--range LOW,HIGH"):
                read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy"])
@pytest.mark.parametrize("text", ["data", "p1,p99", "p0,p100"])
def test_a_constant_image_is_black_and_noted(tmp_path, suffix, text):
    write(tmp_path / f"a{suffix}", np.full((16, 16), 7, np.uint8))
    image = read_image(tmp_path / f"a{suffix}", text)
    assert not image.pixels.any()
    assert image.note == "all its values are 7, which is black; whatever is greater is white"
    assert read_image(tmp_path / f"a{suffix}", "0,14").pixels.max() == 0.5


@pytest.mark.parametrize("value", [0, 7, 1e-30, -1e9, 40000])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_percentiles_without_extent_leave_black_and_white(tmp_path, dtype, value):
    """The limit of a range that shrinks to nothing: 5 pixels of 256 lie above both percentiles, 1 below."""
    info = np.iinfo(dtype) if np.dtype(dtype).kind in "ui" else np.finfo(dtype)
    values = np.full((16, 16), np.clip(value, info.min, info.max - 2)).astype(dtype)
    values[3, :5] = values[0, 0] + (2 if np.dtype(dtype).kind in "ui" or abs(value) < 1e6 else 1e6)
    expected = values > values[0, 0]
    np.save(tmp_path / "a.npy", values)
    image = read_image(tmp_path / "a.npy", "p1,p95")
    np.testing.assert_array_equal(image.pixels, np.stack([expected] * 3).astype(np.float32))
    assert image.note.startswith("at both ends of p1,p95 its values are")


@pytest.mark.parametrize("text", ["file", "full", "data", "0,1", "p1,p99", "p0,p40"])
def test_truth_values_have_every_range(tmp_path, text):
    """They are 0 and 1, and half of them true leaves every range the same picture."""
    values = np.arange(256).reshape(16, 16) % 2 == 1
    np.save(tmp_path / "a.npy", values)
    expected = np.stack([values] * 3).astype(np.float32)
    np.testing.assert_array_equal(read_image(tmp_path / "a.npy", text).pixels, expected)
    np.testing.assert_array_equal(read_pixels(values, Recipe(grey_range=text).view), expected)
    np.testing.assert_array_equal(read_pixels(torch.from_numpy(values), Recipe(grey_range=text).view), expected)


@pytest.mark.parametrize(
    ("values", "noted"),
    [
        (np.full((16, 16), 31, np.uint8), True),
        (np.full((16, 16), 32, np.uint8), False),
        (np.zeros((16, 16), np.uint8), False),
        (np.full((16, 16), 8191, np.uint16), True),
        (np.full((16, 16), 8192, np.uint16), False),
        (np.full((16, 16), 0.1, np.float32), True),
        (np.full((16, 16), 0.2, np.float32), False),
    ],
)
def test_what_is_noted(tmp_path, values, noted):
    write(tmp_path / "a.tif", values)
    assert (read_image(tmp_path / "a.tif").note is not None) == noted


@settings(deadline=None)
@given(hnp.arrays(np.uint16, (9, 8), unique=True), st.integers(1, 40000), st.integers(1, 20000))
def test_order_is_kept_and_nothing_leaves_the_range(tmp_path_factory, values, low, width):
    path = tmp_path_factory.getbasetemp() / "range.npy"
    np.save(path, values)
    for text in ("file", "data", "p10,p90", f"{low},{low + width}"):
        found = read_image(path, text).pixels[0].ravel()
        assert found.min() >= 0
        assert found.max() <= 1
        assert (np.diff(found[np.argsort(values.ravel())]) >= 0).all()
