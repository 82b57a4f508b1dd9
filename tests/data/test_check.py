import json
import shutil
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image as Picture

from madclip.calibration.thresholds import choose_threshold
from madclip.data import Reading, check_dataset, errors_of, load_dataset
from madclip.errors import DataError
from madclip.metrics.scored import Scored
from madclip.recipe import Recipe, View


def write(path, values=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = zlib.crc32("/".join(path.parts[-4:]).encode())
    values = np.random.default_rng(seed).integers(0, 255, (16, 20), dtype=np.uint8) if values is None else values
    Picture.fromarray(values).save(path)
    return path


def lesion(size=(16, 20), value=255):
    mask = np.zeros(size, np.uint8)
    mask[4:8, 4:8] = value
    return mask


@pytest.fixture
def root(tmp_path):
    """A sound set in the BMAD layout: 3 normal and 2 abnormal images with masks in either split."""
    for split in ("valid", "test"):
        for index in range(3):
            write(tmp_path / split / "good/img" / f"n{index}.png")
        for index in range(2):
            write(tmp_path / split / "Ungood/img" / f"a{index}.png")
            write(tmp_path / split / "Ungood/anomaly_mask" / f"a{index}.png", lesion())
    return tmp_path


def problems(root, patients="auto", **options):
    report = check_dataset(root, Reading(patients=patients), **options)
    return {problem.kind: problem for problem in report.problems}


def test_a_sound_set(root):
    seen = []
    report = check_dataset(root, progress=lambda stage, done, total, **_: seen.append((stage, done, total)))
    assert report.ok
    assert report.problems == ()
    counts = {"normal": 3, "abnormal": 2, "masks": 2, "patients": 0}
    assert report.counts == {"valid": counts, "test": counts}
    assert report.sizes == {"20 x 16": 10}
    assert report.depths == {"8-bit": 10}
    assert seen == [("check", done, 10) for done in range(1, 11)]
    assert json.loads(json.dumps(report.to_dict()))["counts"]["test"]["masks"] == 2


DAMAGES = {
    "unreadable": (lambda root: (root / "valid/good/img/n0.png").write_text("no"), "valid/good/img/n0.png"),
    "unreadable_mask": (
        lambda root: write(root / "valid/Ungood/anomaly_mask/a0.png", lesion(value=128)),
        "valid/Ungood/anomaly_mask/a0.png",
    ),
    "mask_size": (
        lambda root: write(root / "valid/Ungood/anomaly_mask/a0.png", lesion((16, 21))),
        "valid/Ungood/anomaly_mask/a0.png",
    ),
    "empty_mask": (
        lambda root: write(root / "test/Ungood/anomaly_mask/a1.png", lesion(value=0)),
        "test/Ungood/anomaly_mask/a1.png",
    ),
    "normal_with_mask": (lambda root: write(root / "valid/good/label/n1.png", lesion()), "valid/good/label/n1.png"),
    "image_across": (
        lambda root: shutil.copy(root / "valid/good/img/n0.png", root / "test/good/img/n2.png"),
        "test/good/img/n2.png = valid/good/img/n0.png",
    ),
    "duplicate": (
        # Another format, the same pixels.
        lambda root: Picture.open(root / "valid/good/img/n0.png").save(root / "valid/good/img/x.tif"),
        "valid/good/img/n0.png = valid/good/img/x.tif",
    ),
    "label_conflict": (
        lambda root: shutil.copy(root / "valid/good/img/n0.png", root / "valid/Ungood/img/a0.png"),
        "valid/Ungood/img/a0.png = valid/good/img/n0.png",
    ),
    "missing_mask": (lambda root: (root / "valid/Ungood/anomaly_mask/a0.png").unlink(), "valid/Ungood/img/a0.png"),
    "unused": (
        lambda root: write(root / "valid/Ungood/anomaly_mask/lost.png", lesion()),
        "valid/Ungood/anomaly_mask/lost.png",
    ),
    "constant": (
        lambda root: write(root / "valid/good/img/n0.png", np.full((16, 20, 3), (0, 90, 200), np.uint8)),
        "valid/good/img/n0.png",
    ),
    "dark": (
        lambda root: tifffile.imwrite(
            root / "valid/good/img/dark.tif", np.arange(320, dtype=np.uint16).reshape(16, 20) * 12
        ),
        "valid/good/img/dark.tif",
    ),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_kind_of_problem_is_found_and_no_other(root, kind):
    damage, file = DAMAGES[kind]
    damage(root)
    found = problems(root)
    assert set(found) == {kind} | ({"duplicate"} if kind == "label_conflict" else set())
    assert found[kind].files == (file,)
    severe = kind not in {"duplicate", "missing_mask", "unused", "dark", "constant"}
    assert found[kind].severity == ("error" if severe else "warning")
    assert check_dataset(root).ok is not severe
    if kind.startswith("unreadable"):
        assert "not a" in found[kind].message
    if kind in {"unreadable_mask", "mask_size", "empty_mask", "missing_mask"}:
        assert sum(count["masks"] for count in check_dataset(root).counts.values()) == 3


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "one that calls 10 % of normal images anomalous needs 9"),
        (8, "too few for a threshold"),
        (9, "enough for a threshold that calls 10 % of normal images anomalous; one at 5 % needs 19"),
        (18, "one at 5 % needs 19"),
        (19, "anomalous, or 5 %"),
    ],
)
def test_normal_images_alone_are_learned_from(tmp_path, count, said):
    for number in range(count):
        write(tmp_path / "normal" / f"scan-{number}.png")
    report = check_dataset(tmp_path, Reading(patients="none"))
    assert report.ok
    assert f"learns from the {count} normal alone" in report.learns
    assert said in report.learns
    assert [(one.kind, one.files) for one in report.problems] == [("unmeasured", ("abnormal",))]
    note = choose_threshold(Scored.of(np.zeros(count, int), np.arange(count)), "spec=0.9").note
    assert bool(note) == ("too few" in report.learns), "as the fit says it"


def test_normal_images_of_one_patient_allow_no_threshold(tmp_path):
    for number in range(20):
        write(tmp_path / "normal" / "P1" / f"{number}.png")
    assert "of one patient" in check_dataset(tmp_path, Reading(patients="folder")).learns


@pytest.mark.parametrize(
    ("missing", "found", "learns"),
    [
        ("valid/Ungood", [], True),
        ("test/Ungood", [("unmeasured", ("abnormal",))], False),
        ("test/good", [("unmeasured", ("normal",))], False),
        ("valid/good", [("no_normal", ("valid",))], False),
    ],
)
def test_a_class_that_one_split_lacks(root, missing, found, learns):
    shutil.rmtree(root / missing)
    report = check_dataset(root)
    assert [(one.kind, one.files) for one in report.problems] == found
    assert report.ok == (missing != "valid/good")
    assert bool(report.learns) == learns


def rename_to_patients(root, shared):
    """Twelve images of six patients in either split, two of whom have abnormal images."""
    for split, first in (("valid", 1), ("test", 1 if shared else 51)):
        for index in range(3, 10):
            write(root / split / "good/img" / f"n{index}.png")
        for index, path in enumerate(sorted((root / split).glob("*/img/*.png"))):
            name = f"{first + index % 6:03d}_{index}.png"
            mask = path.parents[1] / "anomaly_mask" / path.name
            if mask.exists():
                mask.rename(mask.with_name(name))
            path.rename(path.with_name(name))


def test_patients_in_two_splits(root):
    rename_to_patients(root, shared=True)
    report = check_dataset(root)
    assert report.patients_from == "names"
    assert report.patients == "6 patients, from the names <patient>_<slice>"
    assert report.counts["valid"]["patients"] == 6
    inferred = problems(root)["patient_across"]
    assert inferred.severity == "warning"
    assert inferred.files[0] == "test/Ungood/img/001_0.png = valid/Ungood/img/001_0.png"
    assert len(inferred.files) == 6
    assert problems(root, r"^(\d+)_")["patient_across"].severity == "error"
    assert problems(root, "none") == {}


def test_patients_apart(root):
    rename_to_patients(root, shared=False)
    assert problems(root) == {}


def test_a_folder_that_cannot_be_understood(tmp_path):
    with pytest.raises(DataError, match="is empty"):
        check_dataset(tmp_path)


def test_black_images_are_named(root):
    write(root / "valid/good/img/n0.png", np.zeros((16, 20), np.uint8))
    write(root / "test/good/img/n1.png", np.full((20, 20), 255, np.uint8))
    found = problems(root)
    assert set(found) == {"constant"}
    assert found["constant"].files == ("test/good/img/n1.png", "valid/good/img/n0.png")


def test_what_is_noted_follows_from_the_grey_range(root):
    """12 bits in 16 are dark until their range is named; a constant image is so by any rule."""
    tifffile.imwrite(root / "valid/good/img/n0.png", np.arange(320, dtype=np.uint16).reshape(16, 20) * 12)
    write(root / "test/good/img/n1.png", np.full((20, 20), 7, np.uint8))
    speck = np.zeros((30, 30), np.uint8)
    speck[4, 4:8] = 200
    write(root / "test/good/img/n0.png", speck)

    def found(grey_range):
        problems = check_dataset(root, view=Recipe(grey_range=grey_range).view).problems
        return {problem.kind: (problem.severity, problem.files) for problem in problems}

    dark, flat, empty = ("valid/good/img/n0.png",), ("test/good/img/n1.png",), ("test/good/img/n0.png",)
    assert found("file") == {"dark": ("warning", dark), "constant": ("warning", flat)}
    assert found("0,4095") == {"constant": ("warning", flat)}
    assert found("data") == {"constant": ("warning", flat)}
    assert found("p1,p99") == {"no_range": ("warning", empty), "constant": ("warning", flat)}


def test_masks_of_which_nothing_matches_are_an_error(root):
    for name in ("a0", "a1"):
        path = root / f"valid/Ungood/anomaly_mask/{name}.png"
        path.rename(path.with_name(f"lesion {name}.png"))
    found = problems(root)
    assert found["unmatched"].severity == "error"
    assert found["unmatched"].files == ("valid/Ungood/anomaly_mask",)
    assert {*found} == {"unmatched", "missing_mask", "unused"}


def test_what_is_unused_is_told_by_reason(root):
    write(root / "vaild/good/img/x.png")
    write(root / "loose.png")
    (root / "valid/good/img/.hidden").write_text("")
    report = check_dataset(root)
    assert [(problem.message, problem.files) for problem in report.problems] == [
        ("files or folders that belong to no image: beside the split folders (vaild: did you mean valid?)", ("vaild",)),
        ("files or folders that belong to no image: outside the class folders", ("loose.png",)),
    ]
    assert report.ok
    assert report.to_dict()["passed_over"] == 1


def test_lesions_that_the_resized_mask_loses(root):
    mask = np.zeros((2048, 2048), np.uint8)
    mask[1004:1010, 1004:1010] = 255
    mask[300:400, 300:400] = 255
    resized = np.asarray(Picture.fromarray(mask > 0).resize((240, 240), Picture.Resampling.NEAREST))
    assert resized[30:50, 30:50].any()
    assert not resized[110:125, 110:125].any()  # the small one falls between two of the pixels that are kept
    write(root / "valid/Ungood/anomaly_mask/a0.png", mask)
    write(root / "valid/Ungood/img/a0.png", np.tile(np.arange(2048) % 251, (2048, 1)).astype(np.uint8))
    found = problems(root, view=View(240))
    assert set(found) == {"lost_lesion"}
    assert found["lost_lesion"].severity == "warning"
    assert found["lost_lesion"].files == ("valid/Ungood/img/a0.png",)
    assert found["lost_lesion"].message.endswith("; the first: a 6 px lesion in 2,048 px is gone (1 of 2)")
    assert problems(root, view=View(1024)) == {}
    assert problems(root) == {}


def kinds(root, **options):
    return {problem.kind: problem.files for problem in errors_of(load_dataset(root, **options))}


def test_errors_that_stop_a_fit(root):
    assert kinds(root) == {}
    shutil.copy(root / "valid/good/img/n0.png", root / "test/good/img/n2.png")
    shutil.copy(root / "test/good/img/n0.png", root / "test/Ungood/img/a0.png")
    assert kinds(root) == {
        "label_conflict": ("test/Ungood/img/a0.png = test/good/img/n0.png",),
        "image_across": ("test/good/img/n2.png = valid/good/img/n0.png",),
    }


def test_files_of_one_size_that_differ_are_no_copies(root):
    values = np.random.default_rng(0).integers(0, 255, (300, 300), dtype=np.uint8)
    write(root / "valid/good/img/n0.bmp", values)
    values[0, 0] ^= 255  # far from the part that is compared first
    write(root / "test/Ungood/img/x.bmp", values)
    assert kinds(root) == {}


def test_patients_in_two_splits_stop_a_fit_where_someone_named_them(root):
    rename_to_patients(root, shared=True)
    assert kinds(root) == {}
    assert [*kinds(root, reading=Reading(patients=r"^(\d+)_"))] == ["patient_across"]
