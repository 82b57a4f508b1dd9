"""Scanner files through the command line: DICOM series and NIfTI volumes in, tables and heat maps on the scan out."""

import gzip
import json
import os
import re
import shutil
import signal
import socket
import time

import nibabel
import numpy as np
import pydicom
import pytest
from pydicom.uid import CTImageStorage
from pynetdicom import AE

from data.scanner import dicom, save, slices
from data.test_nifti import nifti
from madclip.data.readers import volume as volume_reader
from madclip.data.series import facts_of, sorted_series
from madclip.detector import MadCLIP
from madclip.errors import DataError
from madclip.evaluation.protocol import evaluate
from madclip.export.images import check_images
from madclip.report.predictions import PredictionFolder

CANARY = "ZZCANARY"


def scan(seed, lesion, side=40):
    """A slice of 12 bits: noise, and a bright square where there is a lesion."""
    made = np.random.default_rng(seed).integers(0, 900, (side, side)).astype(np.uint16)
    if lesion:
        made[10:22, 12:26] = 3500
    return made


def write_study(root):
    """A data set of DICOM files in which every patient tag, a private tag and every name hold the canary."""
    number = 0
    for split in ("valid", "test"):
        for label, kind in enumerate(("good", "Ungood")):
            for patient in range(4):
                made = dicom(
                    scan(number, label),
                    BitsStored=12,
                    PatientName=f"{CANARY}^Name",
                    PatientID=f"{CANARY}-{split}-{patient}",
                    PatientBirthDate="19700101",
                    PatientAddress=CANARY,
                    OtherPatientIDs=CANARY,
                    PatientComments=CANARY,
                    InstitutionName=CANARY,
                    ReferringPhysicianName=CANARY,
                    AccessionNumber=CANARY,
                    StudyDescription=CANARY,
                    SeriesInstanceUID=f"1.2.3.{number}",
                )
                made.private_block(0x0099, CANARY, create=True).add_new(1, "LO", CANARY)
                save(made, root / split / kind / "img" / f"{CANARY}_{number}.dcm")
                number += 1
    return root


def places_of(folder, words):
    """The files below a folder whose content, inflated where it is compressed, or whose name holds one of the words."""
    found = set()
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        if path.suffix == ".gz":
            data = gzip.decompress(data)
        name = path.relative_to(folder).as_posix()
        if any(word in data or word.decode() in name for word in words):
            found.add(name)
    return found


def test_no_patient_data_leaves_the_scans(tmp_path, madclip, small, monkeypatch):
    monkeypatch.setenv("MADCLIP_CACHE", str(tmp_path / "out/cache"))
    data = write_study(tmp_path / "data")
    out = tmp_path / "out"
    fitted = madclip("fit", data, "--out", out / "detector", "--shots", 3, *small)
    assert fitted.code == 0, fitted
    assert "4 patients" in fitted.out or "8 patients" in fitted.out
    predicted = madclip("predict", out / "detector", data / "test", "--out", out / "predictions")
    evaluated = madclip("evaluate", out / "detector", data, "--report", out / "report.html")
    assert (predicted.code, evaluated.code) == (0, 0), (predicted, evaluated)
    explained = madclip("explain", out / "detector", data / "test", "--data", data, "--out", out / "why.html")
    assert explained.code == 0, explained
    assert "of 8 has the highest score" in explained.err
    broken = save(dicom(scan(1, 0), BitsStored=4, PatientName=CANARY, PatientID=CANARY), tmp_path / "broken/one.dcm")
    failed = madclip("--debug", "predict", out / "detector", broken, "--out", out / "failed")
    assert failed.code == 2
    for result in (fitted, predicted, evaluated, explained, failed):
        assert CANARY not in result.out + result.err
    # The paths as they were typed stand in the tables that were asked for, and nowhere else.
    words = [CANARY.encode(), b"19700101"]
    assert places_of(out, words) == {
        f"predictions/{name}" for name in ("predictions.jsonl", "predictions.csv", "series.jsonl")
    }


def test_a_volume_becomes_slices_and_a_heat_map_on_it(tmp_path, madclip, small):
    data = tmp_path / "data"
    for patient in range(6):
        voxels = np.stack([scan(10 * patient + k, 3 <= k < 6).T for k in range(9)], axis=-1).astype(np.int16)
        nifti(data / f"scan{patient}.nii.gz", voxels, codes=("RAS", "LPS", "PIR")[patient % 3])
        labels = np.zeros(voxels.shape, np.uint8)
        labels[12:26, 10:22, 3:6] = 1
        nifti(data / f"map{patient}.nii.gz", labels)
    rows = [f"scan{p}.nii.gz,,map{p}.nii.gz,{'valid' if p < 4 else 'test'}" for p in range(6)]
    (data / "manifest.csv").write_text("\n".join(["image,label,mask,split", *rows]))
    detector, out = tmp_path / "detector", tmp_path / "out"
    fitted = madclip("fit", data, "--out", detector, "--shots", 4, "--range", "0,4095", "--json", *small)
    assert fitted.code == 0, fitted
    evaluated = madclip("evaluate", detector, data, "--json")
    assert json.loads(evaluated.out)["n_patients"] == 2
    predicted = madclip("predict", detector, data / "scan4.nii.gz", data / "scan5.nii.gz", "--out", out)
    assert predicted.code == 0, predicted
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [row["frame"] for row in rows] == [*range(9), *range(9)]
    first, second = (json.loads(line) for line in (out / "series.jsonl").read_text().splitlines())
    assert first["score"] == max(row["score"] for row in rows[:9])
    assert first["highest"] == max(range(9), key=lambda place: rows[place]["score"])
    assert first["decision"] is None
    assert "no threshold" in first["note"]
    page = (out / "series.html").read_text()
    assert "not for diagnosis" in page
    assert page.count("<polyline") == 2
    assert f"highest score {first['score']:.3f}" in page
    assert all((out / source).is_file() for source in re.findall(r'(?:src|href)="([^"]+)"', page))
    assert (first["map"], second["map"]) == (["volumes/000.nii.gz"], ["volumes/001.nii.gz"])
    for number, name in ((0, "scan4"), (1, "scan5")):
        image, heat = nibabel.load(data / f"{name}.nii.gz"), nibabel.load(out / f"volumes/00{number}.nii.gz")
        assert heat.shape == image.shape
        np.testing.assert_allclose(heat.affine, image.affine)
        assert heat.get_data_dtype() == np.float32
        assert (heat.header["cal_min"], heat.header["cal_max"]) == (0, 1)
        assert (heat.header["sform_code"], heat.header["qform_code"]) == (1, 1)
        # In the patient's directions, slice k of the heat map is the map of the image's slice k.
        upright = np.asarray(nibabel.as_closest_canonical(heat).dataobj)
        for k in (0, 4, 8):
            written = _map(out, rows[9 * number + k])
            np.testing.assert_allclose(upright[::-1, ::-1, k].T, written, atol=1e-6)


def _map(out, row):
    import tifffile

    return tifffile.imread(out / row["map"])


def test_a_series_is_sorted_and_its_heat_map_lies_on_it(tmp_path, madclip, small_detector):
    heights = [8.0, 0.0, 4.0, 20.0, 12.0, 26.0]
    slices(tmp_path / "study", heights, [scan(n, n == 2) for n in range(6)], tilt=0.25, BitsStored=12)
    out = tmp_path / "out"
    result = madclip("predict", small_detector, tmp_path / "study", "--out", out)
    assert result.code == 0, result
    assert "unevenly spaced" in result.err
    (row,) = (json.loads(line) for line in (out / "series.jsonl").read_text().splitlines())
    assert row["images"] == 6
    assert row["image"] == str(tmp_path / "study")
    # 0, 4, 8, 12 mm, then 20, 26.
    assert row["map"] == ["volumes/000_00.nii.gz", "volumes/000_01.nii.gz"]
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [os.path.basename(one["image"]) for one in rows] == [f"00{n}.dcm" for n in (1, 2, 0, 4, 3, 5)]  # noqa: PTH119
    (series,) = sorted_series(facts_of(path) for path in sorted((tmp_path / "study").glob("*.dcm")))
    for name, start in (("000_00", 0), ("000_01", 4)):
        heat = nibabel.load(out / f"volumes/{name}.nii.gz")
        assert heat.header["sform_code"] == 1
        for k in range(heat.shape[2]):
            place = series.places[start + k]
            np.testing.assert_allclose(np.asarray(heat.dataobj)[..., k].T, _map(out, rows[start + k]), atol=1e-6)
            for column, line in ((0, 0), (15, 3)):
                there = (
                    np.array(place.corner)
                    + np.array(place.row) * column * place.spacing[1]
                    + np.array(place.column) * line * place.spacing[0]
                )
                found = heat.affine @ [column, line, k, 1]
                np.testing.assert_allclose(found[:3], there * [-1, -1, 1], atol=1e-6)


def test_uneven_gaps_may_be_interpolated(tmp_path, madclip, small_detector):
    heights = [8.0, 0.0, 4.0, 20.0, 12.0, 26.0]
    slices(tmp_path / "study", heights, [scan(n, n == 2) for n in range(6)], BitsStored=12)
    command = ("predict", small_detector, tmp_path / "study", "--no-overlays", "--resample")
    assert madclip(*command, "--out", tmp_path / "out").code == 0
    (row,) = (json.loads(line) for line in (tmp_path / "out" / "series.jsonl").read_text().splitlines())
    assert row["map"] == ["volumes/000.nii.gz"]
    assert "interpolated linearly onto 8 slices 3.71 mm apart" in " ".join(row["notes"])
    heat = nibabel.load(tmp_path / "out" / row["map"][0])
    assert b"interpolated; research use only" in heat.header["descrip"].tobytes()
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    maps = np.stack([_map(tmp_path / "out", one) for one in rows])
    for k in range(8):
        height = (heat.affine @ [3, 5, k, 1])[2]
        expected = [np.interp(height, sorted(heights), maps[:, 5, column]) for column in range(40)]
        np.testing.assert_allclose(np.asarray(heat.dataobj)[:, 5, k], expected, atol=1e-5)


def test_an_unfinished_run_goes_on_at_the_start_of_a_series(tmp_path, madclip, small_detector, monkeypatch):
    nifti(tmp_path / "a.nii.gz", np.stack([scan(k, k == 2).T for k in range(5)], axis=-1).astype(np.int16))
    command = ("predict", small_detector, tmp_path / "a.nii.gz", "--maps", "none")
    whole = madclip(*command, "--out", tmp_path / "whole")
    assert whole.code == 0, whole
    out = tmp_path / "out"

    def stop(self, image, result, add=PredictionFolder.add):
        if len(self.rows) == 3:
            raise KeyboardInterrupt
        return add(self, image, result)

    with monkeypatch.context() as patched:
        patched.setattr("madclip.report.predictions.PredictionFolder.add", stop)
        assert madclip(*command, "--out", out).code != 0
    assert len((out / "predictions.jsonl.partial").read_text().splitlines()) == 3
    assert madclip(*command, "--out", out).code == 0
    for name in ("predictions.jsonl", "series.jsonl", "volumes/000.nii.gz"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_run_that_ends_while_a_heat_map_is_written_writes_it_later(tmp_path, madclip, small_detector, monkeypatch):
    slices(tmp_path / "study", [0.0, 4.0, 8.0], [scan(n, n == 2) for n in range(3)], BitsStored=12)
    command = ("predict", small_detector, tmp_path / "study", "--out", tmp_path / "out")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("madclip.report.series.write_heatmap", full)
        result = madclip(*command)
    assert result.code == 2
    assert "No space left on device" in result.err
    assert "Traceback" not in result.err
    assert madclip(*command).code == 0
    (row,) = (json.loads(line) for line in (tmp_path / "out/series.jsonl").read_text().splitlines())
    assert row["map"] == ["volumes/000.nii.gz"]


def test_a_damaged_scanner_file_is_not_named_on_the_page(tmp_path, madclip, small_detector):
    path = tmp_path / "study" / f"{CANARY}.dcm"
    save(dicom(scan(0, False)), path)
    path.with_name(f"{CANARY}2.dcm").write_bytes(b"no DICOM at all" * 50)
    madclip("predict", small_detector, tmp_path / "study", "--out", tmp_path / "out")
    assert CANARY not in (tmp_path / "out/index.html").read_text()


@pytest.mark.parametrize("axis", ["coronal", "2"])
def test_a_detector_keeps_its_axis(tmp_path, madclip, small, axis):
    for name in ("normal/a", "normal/b", "normal/c", "abnormal/d", "abnormal/e", "abnormal/f"):
        voxels = np.stack([scan(ord(name[-1]) + k, name[0] == "a").T for k in range(9)], axis=1).astype(np.int16)
        nifti(tmp_path / f"data/{name}.nii.gz", voxels)
        if name[0] == "a":
            nifti(tmp_path / f"data/masks/{name[-1]}.nii.gz", (voxels > 3000).astype(np.uint8))
    detector = tmp_path / "detector"
    fitted = madclip("fit", tmp_path / "data", "--out", detector, "--axis", axis, "--slices", 3, "--shots", 3, *small)
    assert fitted.code == 0, fitted
    assert json.loads((detector / "detector.json").read_text())["recipe"]["axis"] == axis
    result = madclip("predict", detector, tmp_path / "data/normal/a.nii.gz", "--out", tmp_path / "out", "--json")
    rows = json.loads(result.out)["predictions"]
    assert {row["axis"] for row in rows} == {"coronal" if axis == "coronal" else None}
    assert len(rows) == (9 if axis == "coronal" else 40)


def test_nine_normal_volumes_give_a_threshold_for_whole_series(tmp_path, madclip, small, small_data):
    for number in range(9):
        voxels = np.stack([scan(100 * number + k, False).T for k in range(3)], axis=2).astype(np.int16)
        nifti(tmp_path / f"normals/normal/{number}.nii.gz", voxels)
    common = ("fit", small_data, "--shots", 4, "--folds", 2, *small)
    asked = ("--calibrate", tmp_path / "normals", "--slices", 1)
    assert madclip(*common, "--out", tmp_path / "some", *asked).code == 0
    assert madclip("predict", tmp_path / "some", tmp_path / "normals", "--out", tmp_path / "out").code == 0
    rows = [json.loads(line) for line in (tmp_path / "out/series.jsonl").read_text().splitlines()]
    saved = json.loads((tmp_path / "some/detector.json").read_text())["series"]
    # Whole volumes were scored, of which --slices takes one slice each; nine promise that one in ten passes.
    np.testing.assert_allclose(saved["normal_scores"], sorted(row["score"] for row in rows), atol=1e-6)
    assert saved["promise"] == 0.9
    assert saved["threshold"] == np.nextafter(saved["normal_scores"][-1], 1)
    assert {row["decision"] for row in rows} == {"normal"}
    assert min(row["p_value"] for row in rows) == pytest.approx(2 / 10)
    assert all("9 normal series" in row["note"] and "normal images" not in row["note"] for row in rows)
    shutil.rmtree(tmp_path / "normals/normal")
    for number in range(8):
        nifti(tmp_path / f"normals/normal/{number}.nii.gz", voxels + number)
    few = madclip(*common, "--out", tmp_path / "few", *asked)
    assert "nine whole normal ones are needed, and there are 8" in few.err
    assert madclip("predict", tmp_path / "few", tmp_path / "normals", "--out", tmp_path / "none").code == 0
    rows = [json.loads(line) for line in (tmp_path / "none/series.jsonl").read_text().splitlines()]
    assert {row["decision"] for row in rows} == {None}
    assert "There is no threshold for whole series." in rows[0]["note"]


@pytest.mark.slow
def test_volumes_given_as_a_path_are_cut_as_the_detector_learned(tmp_path, small_recipe, small_backbone, monkeypatch):
    """In Python as on the command line: fit, calibrate, evaluate, refit and export's images."""
    data, more = tmp_path / "data", tmp_path / "more"
    for name in ("normal/a", "normal/b", "abnormal/c", "abnormal/d"):
        for root, first in ((data, 0), (more, 40)):
            seeds = range(first + ord(name[-1]), first + ord(name[-1]) + 5)
            voxels = np.stack([scan(seed, name[0] == "a").T for seed in seeds], axis=1).astype(np.int16)
            nifti(root / f"{name}{first}.nii.gz", voxels)
            if name[0] == "a":
                nifti(root / f"masks/{name[-1]}{first}.nii.gz", (voxels > 3000).astype(np.uint8))
    read, planes = volume_reader.VolumeReader.read, set()
    monkeypatch.setattr(volume_reader.VolumeReader, "read", lambda *a, **k: (planes.add(a[1].axis), read(*a, **k))[1])
    detector = MadCLIP(small_recipe.replace(axis="coronal"), backbone=small_backbone, objective="Brain")
    detector.fit(data, shots=2, folds=0)
    detector.refit(data, shots=2, folds=0)
    detector.calibrate(more)
    for seen in (data, more):
        with pytest.raises(DataError, match="has seen all 20 test images"):
            evaluate(detector, seen)
    check_images(detector, data)
    assert planes == {"coronal"}


def test_what_cannot_be_written_is_told_before_a_folder_is_made(tmp_path, madclip, small, small_data):
    slices(tmp_path / "study", [0.0, 4.0], [scan(n, n == 1) for n in range(2)], BitsStored=12)
    detector, out = tmp_path / "detector", tmp_path / "out"
    assert madclip("fit", small_data, "--out", detector, "--shots", 2, "--folds", 0, *small).code == 0
    wrong = madclip("predict", detector, tmp_path / "study", "--out", out, "--dicom", "seg,drawing")
    assert wrong.code == 2
    assert "'drawing': choose among seg, map, picture, report" in wrong.err
    wrong = madclip("predict", detector, tmp_path / "study", "--out", out, "--dicom", "seg")
    assert wrong.code == 2
    assert "--region 0.5" in wrong.err
    assert not out.exists()
    assert madclip("predict", detector, tmp_path / "study", "--out", out, "--dicom", "seg", "--region", 0).code == 0
    assert (out / "dicom/000_seg.dcm").is_file()
    asked = ("--dicom", "seg", "--region", 1)
    nothing = madclip("predict", detector, tmp_path / "study", "--out", tmp_path / "none", *asked)
    assert nothing.code == 0
    assert (
        "1 DICOM objects were not made (series.jsonl says of which series), as: no seg: nothing reaches" in nothing.err
    )
    picture = next(small_data.rglob("*.png"))
    other = madclip("predict", detector, picture, "--out", tmp_path / "picture", *asked)
    assert "none of the images is of a DICOM series" in other.err


def test_a_service_predicts_what_arrives(tmp_path, start, small_detector):
    """A process that takes a study by C-STORE, and whose results are valid DICOM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = slices(tmp_path / "study", [0.0, 4.0, 8.0], [scan(n, n == 2) for n in range(3)], BitsStored=12)
    out = tmp_path / "spool"
    command = ["listen", small_detector, "--port", port, "--from", "SCANNER", "--out", out, "--quiet", "0.5"]
    process = start("-c", "from madclip.cli import main; main()", *command, "--region", "0.01")
    entity = AE(ae_title="SCANNER")
    entity.add_requested_context(CTImageStorage)
    deadline = time.monotonic() + 240
    while not (association := entity.associate("127.0.0.1", port, ae_title="MADCLIP")).is_established:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert [association.send_c_store(pydicom.dcmread(path)).Status for path in paths] == [0, 0, 0]
    association.release()
    while not (out / "handled.jsonl").is_file():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    (results,) = (out / "results").iterdir()
    assert sorted(path.name for path in (results / "dicom").iterdir()) == ["000_report.dcm", "000_seg.dcm"]
    assert "3 instances predicted, 2 objects to send" in said
    assert list((out / "incoming").iterdir()) == list((out / "working").iterdir()) == []
