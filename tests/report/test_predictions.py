"""Predictions as files: tables, overlays, maps; names that build no paths; nothing half written."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from madclip.report.pictures import contact_sheet, heat, overlay, stretch
from PIL import Image

from madclip import Prediction
from madclip.errors import DataError
from madclip.report.predictions import PredictionFolder, _harmless


def prediction(size=(40, 90), **changes):
    anomaly_map = np.random.default_rng(0).random(size, np.float32)
    facts = {"score": 0.25, "anomaly_map": anomaly_map, "size": size, "probability": 0.5, "verdict": "anomalous"}
    return Prediction(**(facts | changes))


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "scan 1.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 90), np.uint8)).save(path)
    return path


@pytest.mark.parametrize("maps", ["tiff", "npy", "none"])
@pytest.mark.parametrize("overlays", [True, False])
def test_what_is_written(image, tmp_path, maps, overlays):
    out = tmp_path / "deep" / "results"
    one = prediction()
    with PredictionFolder(out, maps=maps, overlays=overlays) as folder:
        row = folder.add(image, one)
        failed = folder.fail(Path('bad, "odd"\nname.png'), DataError("bad: broken"))
    assert [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()] == [row, failed]
    with (out / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [line["image"] for line in table] == [str(image), 'bad, "odd"\nname.png']
    assert table[0]["score"] == "0.25"
    assert table[1]["error"] == "bad: broken"
    assert "p_value" not in row
    assert ("overlay" in row, "map" in row) == (overlays, maps != "none")
    if overlays:
        assert Image.open(out / row["overlay"]).size == (90, 40)
    if maps != "none":
        read = tifffile.imread(out / row["map"]) if maps == "tiff" else np.load(out / row["map"], allow_pickle=False)
        assert read.dtype == np.float32
        assert np.array_equal(read, one.anomaly_map)
    assert not list(out.rglob("*.partial"))


def test_images_of_the_same_name_do_not_overwrite_each_other(image, tmp_path):
    with PredictionFolder(tmp_path / "r") as folder:
        rows = [folder.add(image, prediction()) for _ in range(3)]
    assert len({row["map"] for row in rows}) == len({row["overlay"] for row in rows}) == 3


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_no_name_builds_a_path(name):
    harmless = _harmless(name)
    assert harmless
    assert len(harmless) <= 80
    assert harmless == Path(harmless).name
    assert not harmless.startswith(".")
    assert harmless.isascii()


def test_tables_appear_when_all_is_done(image, tmp_path):
    out = tmp_path / "r"
    with PredictionFolder(out) as folder:
        folder.add(image, prediction())
    before = (out / "predictions.jsonl").read_bytes()
    folder = PredictionFolder(out).__enter__()
    folder.add(image, prediction(score=0.75))
    folder.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert (out / "predictions.jsonl").read_bytes() == before
    assert json.loads((out / "predictions.jsonl.partial").read_text())["score"] == 0.75  # what was computed is kept


def test_a_file_in_the_way(image, tmp_path):
    with pytest.raises(DataError, match="cannot write there"), PredictionFolder(image):
        pass
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "maps").write_text("in the way")
    with pytest.raises(DataError, match="cannot write there"), PredictionFolder(tmp_path / "r"):
        pass


def test_a_map_that_cannot_be_written_leaves_nothing(image, tmp_path, monkeypatch):
    def full(file, _):
        file.write(b"II")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    with pytest.raises(DataError, match="No space left"), PredictionFolder(tmp_path / "r", overlays=False) as folder:
        folder.add(image, prediction())
    assert list((tmp_path / "r" / "maps").iterdir()) == []


def test_overlays_show_where(image):
    pixels = np.full((3, 20, 30), 0.5, np.float32)
    anomaly_map = np.zeros((20, 30), np.float32)
    anomaly_map[5:10, 8:12] = 0.9
    picture = overlay(pixels, anomaly_map)
    assert picture.shape == (20, 30, 3)
    assert picture.dtype == np.uint8
    changed = (picture != 128).any(-1)
    assert np.array_equal(changed, anomaly_map > 0)
    assert (overlay(pixels, np.full((20, 30), 0.3, np.float32)) == 128).all()  # flat maps show nothing
    assert stretch(anomaly_map).max() == 1
    assert heat(np.array([[0.0, 1.0]], np.float32)).sum(-1).tolist()[0][0] < 10


def test_contact_sheet_has_a_line_for_each_image():
    pixels, anomaly_map = np.random.default_rng(0).random((3, 50, 80), np.float32), np.eye(50, 80, dtype=np.float32)
    heights = [
        contact_sheet([("one", pixels, anomaly_map, anomaly_map > 0), ("two", pixels, anomaly_map, None)][:n]).shape[0]
        for n in (1, 2)
    ]
    assert heights[1] > 1.8 * heights[0]
