"""One colour map for every picture: what it looks like, and how it stands out."""

import io
import sys
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image

from madclip.calibration.familiarity import Likeness
from madclip.data.ref import ImageRef
from madclip.errors import MissingExtraError
from madclip.heatmap import COLOURS, STRENGTH, captioned, heat, legend, oriented, overlay, png, span, stretch
from madclip.prediction import Prediction, Row, predict_each, to_frame
from madclip.recipe import Recipe
from madclip.report.sheet import contact_sheet


def lightness(colours):
    """CIE L* of sRGB colours [..., 3] in 0..255, written out from its definition."""
    c = np.asarray(colours, float) / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, y * (29 / 3) ** 3)


def test_colours_are_matplotlibs_and_get_lighter_in_equal_steps():
    ramp = heat(np.linspace(0, 1, 256, dtype=np.float32))
    assert np.array_equal(ramp, colormaps["viridis"](np.linspace(0, 1, 256, dtype=np.float32), bytes=True)[:, :3])
    between = np.random.default_rng(0).random(100_000, np.float32)
    assert np.array_equal(heat(between), colormaps["viridis"](between, bytes=True)[:, :3])
    steps = np.diff(lightness(ramp[::15]))
    assert (steps > 0).all()
    assert steps.max() / steps.min() < 2
    assert np.array_equal(heat(np.float32([-1, 0.2, 0.6, 5]), 0.2, 0.6), ramp[[0, 0, 255, 255]])


def oklab(colours):
    """Colours [..., 3] in 0..1 in Ottosson's OKLab (2020), where equal distances look equal."""
    c = np.asarray(colours, float)
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    to_cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    to_lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(linear @ np.transpose(to_cones)) @ np.transpose(to_lab)


GROUNDS = np.array([(200, 90, 30), (150, 60, 40), (220, 130, 40), (128, 128, 128), (40, 40, 40), (200, 200, 200)])


def least_difference(name, monkeypatch):
    """The smallest difference that the upper half of a map makes, over oranges and greys."""
    table = np.asarray(colormaps[name](np.arange(256), bytes=True))[:, :3]
    monkeypatch.setattr("madclip.heatmap.COLOURS", table)
    values = np.concatenate([np.zeros(52), np.linspace(0.5, 1, 51)]).astype(np.float32)
    pixels = np.broadcast_to(np.float32(GROUNDS.T[..., None] / 255), (3, len(GROUNDS), len(values)))
    over = overlay(pixels, np.broadcast_to(values, pixels.shape[1:]))
    return np.linalg.norm(oklab(over[:, 52:] / 255) - oklab(GROUNDS[:, None] / 255), axis=-1).min()


@pytest.mark.parametrize("other", ["inferno", "magma", "plasma", "cividis"])
def test_it_stands_out_from_orange_and_from_grey_as_no_other_does(other, monkeypatch):
    assert least_difference("viridis", monkeypatch) > 1.2 * least_difference(other, monkeypatch)


def test_overlays_show_where():
    pixels = np.full((3, 20, 30), 0.5, np.float32)
    anomaly_map = np.zeros((20, 30), np.float32)
    anomaly_map[5:10, 8:12] = 0.9
    picture = overlay(pixels, anomaly_map)
    assert (picture.shape, picture.dtype) == ((20, 30, 3), np.uint8)
    assert np.array_equal((picture != 128).any(-1), anomaly_map > 0)
    # By hand: 0.4 of the grey and 0.6 of viridis' last colour.
    assert picture[7, 9].tolist() == [round(0.4 * 127.5 + 0.6 * c) for c in (253, 231, 36)]
    assert (overlay(pixels, np.full((20, 30), 0.3, np.float32)) == 128).all()  # flat maps show nothing
    assert span(anomaly_map) == (0, pytest.approx(0.9))
    assert stretch(anomaly_map).max() == 1


@given(st.floats(0.01, 0.5), st.floats(0, 0.4))
@settings(max_examples=30, deadline=None)
def test_an_overlay_does_not_depend_on_the_scale_of_its_map(factor, offset):
    rng = np.random.default_rng(0)
    pixels, anomaly_map = rng.random((3, 9, 11), np.float32), rng.random((9, 11), np.float32)
    other = overlay(pixels, (anomaly_map * factor + offset).astype(np.float32))
    assert np.abs(other.astype(int) - overlay(pixels, anomaly_map)).max() <= 3


def test_letters_stand_at_their_sides_and_the_bar_has_its_length():
    plain = np.full((200, 300, 3), 90, np.uint8)
    changed = (oriented(plain, "RLAP", None) != plain).any(-1)
    for area in (changed[80:120, :30], changed[80:120, 270:], changed[:30, 130:170], changed[170:, 130:170]):
        assert area.any()
    changed[80:120, :30] = changed[80:120, 270:] = changed[:30, 130:170] = changed[170:, 130:170] = False
    assert not changed.any()
    # 300 columns of 0.5 mm: a quarter is 37 mm, so the bar is 2 cm, 40 pixels.
    white = (oriented(plain, "", (0.5, 0.5)) == 255).all(-1)
    row = white[180:].sum(1).argmax() + 180
    assert white[row].sum() in (40, 41)
    # On a detector the bar is as long, and more is written over it, to the left.
    there = oriented(plain, "", (0.5, 0.5), at_detector=True)
    assert (there == 255).all(-1)[row].sum() in (40, 41)
    starts = [(one != plain).any((0, 2)).argmax() for one in (there, oriented(plain, "", (0.5, 0.5)))]
    assert starts[0] < starts[1] - 10
    tiny = (oriented(plain, "", (0.002, 0.002)) == 255).all(-1)  # 0.6 mm wide: the bar is 0.1 mm
    assert tiny[tiny[180:].sum(1).argmax() + 180].sum() in (50, 51)
    np.testing.assert_array_equal(oriented(plain[:50], "RLAP", (1.0, 1.0)), plain[:50])
    np.testing.assert_array_equal(oriented(plain, "", None), plain)


def test_the_legend_runs_from_left_to_right():
    strip = legend(256, "low", "high")
    assert strip.shape == (24, 256, 3)
    assert np.array_equal(strip[0], heat(np.linspace(0, 1, 256, dtype=np.float32)))
    assert (strip[12:] < 100).any(), "words stand under it"


def test_contact_sheet_has_a_line_for_each_image_and_the_legend():
    pixels, anomaly_map = np.random.default_rng(0).random((3, 50, 80), np.float32), np.eye(50, 80, dtype=np.float32)
    rows = [("one", pixels, anomaly_map, anomaly_map > 0), ("two", pixels, anomaly_map, None)]
    one, two = (contact_sheet(rows[:n]) for n in (1, 2))
    assert two.shape[0] > 1.7 * one.shape[0]
    ramp = heat(np.linspace(0, 1, 352, dtype=np.float32))
    assert any(np.array_equal(line[6 : 6 + 352], ramp) for line in one)


@pytest.fixture
def prediction(tmp_path):
    path = tmp_path / "scan.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 90), np.uint8)).save(path)
    anomaly_map = np.random.default_rng(0).random((40, 90), np.float32)
    return Prediction(
        0.25, anomaly_map, (40, 90), ImageRef(path), threshold=0.5, decision="normal", verdict="uncertain"
    )


def test_a_prediction_shows_itself(prediction, tmp_path):
    picture = Image.open(io.BytesIO(prediction._repr_png_()))
    assert picture.format == "PNG"
    expected = captioned(_pixels(prediction), prediction.anomaly_map, prediction.caption)
    assert np.array_equal(np.asarray(picture), expected)
    figure = prediction.plot()
    assert np.array_equal(np.asarray(figure.axes[0].images[0].get_array()), expected)
    (tmp_path / "scan.png").unlink()
    assert Image.open(io.BytesIO(prediction._repr_png_())).width < picture.width, "the map alone"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(expected)))), expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_prediction_is_shown_in_the_grey_range_that_the_detector_used(tmp_path, suffix):
    """12 bits in a 16-bit file: nearly black by the file's full range, a picture by the detector's."""
    values = np.random.default_rng(1).integers(0, 4096, (40, 90), np.uint16)
    Image.fromarray(values).save(tmp_path / f"scan.{suffix}")

    def score(pixels):
        return torch.zeros(len(pixels)), torch.zeros(len(pixels), 32, 32), [Likeness(familiar=True)] * len(pixels)

    view = Recipe(grey_range="0,4095", image_size=32).view
    (prediction,) = predict_each([tmp_path / f"scan.{suffix}"], view, score)
    expected = captioned(np.stack([values / np.float32(4095)] * 3), prediction.anomaly_map, prediction.caption)
    assert expected.mean() > 30 + captioned(np.zeros((3, 40, 90), np.float32), prediction.anomaly_map, "").mean()
    shown = np.asarray(Image.open(io.BytesIO(prediction._repr_png_())))
    assert np.abs(shown.astype(int) - expected).max() <= 1
    assert np.array_equal(np.asarray(prediction.plot().axes[0].images[0].get_array()), shown)


def _pixels(prediction):
    grey = np.asarray(Image.open(prediction.source.path), np.float32) / 255
    return np.repeat(grey[None], 3, 0)


def test_a_prediction_is_read_in_one_line(prediction):
    assert prediction.caption == "score 0.250, normal, verdict uncertain"
    text = repr(prediction)
    assert text.startswith("Prediction(score=0.2500, size=(40, 90), source='")
    assert "threshold=0.5000, decision='normal', verdict='uncertain', familiar=True" in text
    assert text.endswith("anomaly_map=<40 x 90, 0.000 to 1.000>)")
    assert "\n" not in text
    assert len(text) < 400


def test_predictions_are_compared_by_value(prediction):
    same = replace(prediction, anomaly_map=prediction.anomaly_map.copy())
    assert same == prediction
    assert hash(same) == hash(prediction)
    assert {same, prediction} == {prediction}
    other = prediction.anomaly_map.copy()
    other[3, 4] += 0.01
    assert replace(prediction, anomaly_map=other) != prediction
    assert replace(prediction, score=0.26) != prediction
    assert prediction != 0.25
    assert len({Row.of("a.png", prediction), Row.of("a.png", same), Row.of("b.png", same)}) == 2


def test_a_table_of_predictions(prediction, monkeypatch):
    """With a stand-in: pandas is not a dependency."""
    made = SimpleNamespace(DataFrame=lambda rows, columns: (rows, columns))
    monkeypatch.setitem(sys.modules, "pandas", made)
    rows, columns = to_frame([prediction, replace(prediction, source=None)])
    assert columns == [field.name for field in fields(Row)]
    assert [row["image"] for row in rows] == [str(prediction.source.path), "array"]
    assert [set(row) for row in rows] == [set(columns)] * 2
    assert rows[0]["score"] == 0.25
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        to_frame([prediction])


def test_colours_between_given_values():
    """Half of the way from 0.2 to 0.6, at half of the full opacity, over a grey of 0.5."""
    picture = overlay(np.full((3, 2, 2), 0.5, np.float32), np.full((2, 2), 0.4, np.float32), between=(0.2, 0.6))
    opacity = 0.5 * STRENGTH
    np.testing.assert_array_equal(picture[0, 0], np.rint(127.5 * (1 - opacity) + COLOURS[128] * opacity))
