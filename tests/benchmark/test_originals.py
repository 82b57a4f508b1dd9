"""Every registered set, from a miniature of its original download to a row of a table."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from originals import MINIATURES
from PIL import Image

from madclip.benchmark.experiments import Cell
from madclip.benchmark.plan import Plan
from madclip.benchmark.prepare import ORIGINALS, histology, liver, prepare
from madclip.benchmark.prepare.layout import Original, published_splits, split_volumes
from madclip.benchmark.registry import all_sets, compare_counts, registered
from madclip.benchmark.runner import run
from madclip.data import check_dataset, load_dataset
from madclip.data.readers import read_image, read_mask
from madclip.errors import DataError


@pytest.fixture
def small_places(monkeypatch):
    """Places of patches inside of slides that are small enough for a test."""
    known = published_splits()
    places = [[x, y] for y in (0, 100, 700) for x in (0, 130, 768)]
    places = {label: [[max(x - 5 * label, 0), y + label] for x, y in places] for label in (0, 1)}
    near = {
        name: {slide: places[name.endswith("bad")] for slide in list(slides)[:1]}
        for name, slides in known["histology"].items()
    }
    monkeypatch.setattr(histology, "published_splits", lambda: {**known, "histology": near})


@pytest.fixture
def download(tmp_path, small_places):
    def make(name):
        root = tmp_path / "download"
        root.mkdir()
        MINIATURES[name](root)
        return root

    return make


def test_every_registered_set_has_one():
    assert set(ORIGINALS) == set(MINIATURES) == {entry.name for entry in all_sets()}


@pytest.mark.parametrize("name", list(MINIATURES))
def test_from_the_original_to_a_row(name, download, tmp_path):
    facts = prepare(name, download(name), tmp_path / "sets" / name)
    assert facts["own_split"] == registered(name).own_split
    assert len(facts["rule"]) > 50
    report = check_dataset(tmp_path / "sets" / name)
    assert report.ok, report.problems
    assert report.patients_from == "manifest"
    for split, counts in facts["counts"].items():
        assert counts == {what: report.counts[split][what] for what in ("normal", "abnormal")}
    if registered(name).counts:
        assert compare_counts(registered(name), report)
    data = load_dataset(tmp_path / "sets" / name)
    assert data.has_masks == ("AS" in registered(name).tasks)
    for sample in data.samples[:40]:
        image = read_image(sample.image)
        if sample.mask:
            mask = read_mask(sample.mask)
            assert mask.shape == image.pixels.shape[1:]
            assert mask.any()
    plan = Plan(
        experiment="real",
        backbone="stand-in",
        folders={name: tmp_path / "sets" / name},
        objectives={name: registered(name).objective},
        changes={"image_size": 64, "variants": ("identity",), "epochs": 1},
    )
    assert run([Cell(name, 2, 0, "madclip"), Cell(name, 2, 0, "nearest-mean")], plan, tmp_path / "out") == []
    rows = list(csv.DictReader((tmp_path / "out" / "results.csv").open()))
    assert {(row["set"], row["method"], row["metric"]) for row in rows} >= {
        (name, "madclip", "image_auroc"),
        (name, "nearest-mean", "image_auroc"),
    }
    assert any(row["metric"] == "pixel_auroc" for row in rows) == ("AS" in registered(name).tasks)


@pytest.mark.parametrize("name", list(MINIATURES))
def test_an_empty_download(name, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        prepare(name, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def broken(root, name):
    """What is taken away or damaged in a download, and the word that the error must have."""
    if name == "BrainMRI":
        path = next(root.rglob("*_seg.nii.gz"))
        path.unlink()
        return path.parent.name
    if name == "LiverCT":
        path = root / "Training Batch 1" / "segmentation-0.nii"
        path.write_bytes(path.read_bytes()[:5000])
        return "segmentation-0.nii"
    if name == "RESC":
        next(root.rglob("*_labelMark/3.bmp")).unlink()
        return "no label"
    if name == "Chest":
        path = next((root / "stage_2_train_images").iterdir())
        path.write_bytes(b"not DICOM")
        return path.name
    if name == "HIS":
        path = next(root.rglob("test_*.tif"))
        tifffile.imwrite(path, np.zeros((8, 8), np.uint8))
        return "not a slide"
    if name in ("NIHChest", "CheXpert"):
        files = [path for path in (*root.rglob("*.png"), *root.rglob("*frontal.jpg")) if "00007" in str(path)]
        for path in files:
            path.unlink()
        return "line"
    path = next(root.rglob("*_I45000.nii"))
    path.write_bytes(b"\0" * 400)
    return path.name


@pytest.mark.parametrize("name", ["BrainMRI", "LiverCT", "RESC", "Chest", "HIS", "NIHChest", "CheXpert", "ADNI"])
def test_a_damaged_download(name, download, tmp_path):
    root = download(name)
    word = broken(root, name)
    with pytest.raises(DataError, match=word) as error:
        prepare(name, root, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["download"]


def test_brain_follows_the_published_patients(download, tmp_path):
    prepare("BrainMRI", download("BrainMRI"), tmp_path / "out")
    known = published_splits()["brain"]
    for sample in load_dataset(tmp_path / "out").samples:
        patient, index = sample.image.path.stem.split("_")
        assert 60 <= int(index) <= 99
        where = {
            ("train", 0): "train",
            ("valid", 0): "valid_normal",
            ("test", 0): "test_normal",
            ("valid", 1): "valid_abnormal",
        }
        if (sample.split, sample.label) in where:
            assert patient in known[where[sample.split, sample.label]]
        else:
            assert patient.startswith("999")
            assert (int(index) - 60) % 8 == 0
    valid = [s.image.path.stem.split("_")[0] for s in load_dataset(tmp_path / "out").split("valid") if not s.label]
    assert len(valid) == len(set(valid)) == 6


def test_liver_is_rendered_as_stated():
    values = np.array([[-300.0, 0.0], [100.0, 900.0]], np.float32)
    shown = liver.render(np.clip(values, -200, 250), np.array([[True, True], [True, False]]))
    # Grey 0, 113, 170 inside; flipped: 170 below first. Two values, equalised: 1/2 -> 127.5 -> 132, 2/2 -> 255.
    assert shown.tolist() == [[255, 0], [0, 132]]


def test_a_patch_across_tiles_and_at_the_rim(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (600, 700, 3), dtype=np.uint8)
    path = tmp_path / "slide.tif"
    tifffile.imwrite(path, pixels, tile=(128, 128), photometric="rgb", compression="deflate")
    for x, y in ((0, 0), (100, 50), (444, 344)):
        np.testing.assert_array_equal(histology.read_patch(path, x, y), pixels[y : y + 256, x : x + 256])
    with pytest.raises(DataError, match="700 x 600"):
        histology.read_patch(path, 500, 0)


def test_dicom_that_shows_air_as_white_is_turned(download):
    import pydicom

    from madclip.benchmark.prepare.chest import read_dicom

    path = next(download("Chest").rglob("*.dcm"))
    plain = read_dicom(path)
    dataset = pydicom.dcmread(path)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.save_as(path)
    np.testing.assert_array_equal(read_dicom(path), 255 - plain)


def test_chexpert_leaves_out_what_is_uncertain(download, tmp_path):
    prepare("CheXpert", download("CheXpert"), tmp_path / "out")
    names = [path.name for path in (tmp_path / "out").rglob("*.jpg")]
    assert names
    assert all("frontal" in name for name in names)
    assert not [name for name in names if name.startswith("patient00002_")]


def test_whole_volumes_are_split():
    originals = [
        Original(Path(f"{patient}.nii"), index % 2, patient, name=f"{patient}_{index}.png")
        for patient in "abcdef"
        for index in range(20)
    ]
    split = split_volumes(originals, 3)
    assert split == split_volumes(list(reversed(originals)), 3)
    sides = {patient: {one.split for one in split if one.patient == patient} for patient in "abcdef"}
    assert all(len(side) == 1 for side in sides.values())
    assert sum(side == {"valid"} for side in sides.values()) == 2


def test_a_mask_of_another_size(tmp_path):
    from madclip.benchmark.prepare.layout import write_set

    one = Original(
        Path("x"), 1, "p", "test", "x.png", lambda: np.zeros((4, 4), np.uint8), lambda: np.ones((3, 3), bool)
    )
    with pytest.raises(DataError, match="a mask of"):
        write_set([one], tmp_path / "out", registered("RESC"), "rule", seed=0)
    assert list(tmp_path.iterdir()) == []


def test_prepared_says_its_rule(download, tmp_path):
    prepare("OCT17", download("OCT17"), tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert facts["rule"] == ORIGINALS["OCT17"].RULE
    with Image.open(next((tmp_path / "out").rglob("*.jpeg"))) as image:
        assert image.size == (16, 16)
