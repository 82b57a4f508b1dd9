"""Whole slides through the command line: rows as of images, numbered files, a map that says how large it is."""

import csv
import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.slide_files import MPP, write_dicom, write_tiff


def test_slides_through_the_command_line(small_detector, tmp_path, madclip):
    colours = np.full((1200, 1800, 3), 244, np.uint8)
    colours[400:500, 600:900] = np.random.default_rng(0).integers(0, 60, (100, 300, 1)) + np.array([170, 90, 150])
    slide, dicom_slide = write_tiff(tmp_path / "ZZCANARY.tif", colours), write_dicom(tmp_path / "in", colours)
    out = tmp_path / "out"
    done = madclip(
        "predict", small_detector, slide, dicom_slide, "--level", 1, "--out", out, "--device", "cpu", "--json"
    )
    assert done.code == 0, done
    rows = json.loads(done.out)["predictions"]
    assert [row["image"] for row in rows] == [str(slide), str(dicom_slide)]
    assert rows[0]["score"] == pytest.approx(rows[1]["score"], abs=1e-6)
    with tifffile.TiffFile(out / rows[0]["map"]) as tiff:
        assert tiff.asarray().shape == (600, 900)
        numerator, denominator = tiff.pages[0].tags["XResolution"].value
        assert 1e4 * denominator / numerator == pytest.approx(2 * MPP, rel=1e-3)  # microns per pixel of the map
    assert Image.open(out / rows[0]["overlay"]).size == (900, 600)
    assert slide.stem not in (out / "index.html").read_text()
    madclip("predict", small_detector, slide, "--out", tmp_path / "o", "--level", 1, "--mpp", 1).one_line("--mpp")
    for option in (("--dicom", "seg"), ("--resample",), ("--axis", "coronal"), ("--table", "parquet")):
        madclip("predict", small_detector, slide, "--out", tmp_path / "o", "--level", 1, *option).one_line(option[0])


def test_tiles_are_cut_out_to_learn_from(tmp_path, madclip):
    colours = np.full((900, 1200, 3), 244, np.uint8)
    colours[320:640, 320:800] = np.random.default_rng(0).integers(0, 60, (320, 480, 1)) + np.array([170, 90, 150])
    slide = write_tiff(tmp_path / "a.tif", colours, levels=1)
    arguments = ("data", "tiles", slide, "--mpp", MPP, "--size", 64, "--count", 7)
    assert "7 tiles of 1 slides" in madclip(*arguments, "--out", tmp_path / "tiles").out
    with (tmp_path / "tiles" / "tiles.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            top, left = int(row["top"]), int(row["left"])
            found = np.asarray(Image.open(tmp_path / "tiles" / row["image"]))
            assert np.array_equal(found, colours[top : top + 64, left : left + 64])
            assert (found.max(-1) - found.min(-1) > 12).mean() >= 0.1
    madclip(*arguments, "--out", tmp_path / "tiles").one_line("tiles")
