"""Predictions as files: tables, overlays, maps; names that build no paths; nothing lost, doubled or left over."""

import csv
import json
import os
import signal
import stat
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from madclip import MadCLIP
from madclip.data.ref import ImageRef
from madclip.errors import DataError
from madclip.prediction import Prediction, Row
from madclip.report.plan import Output, Plan, detector_fingerprint
from madclip.report.predictions import COLUMNS, PredictionFolder, harmless, predict_folder, read_rows


def prediction(size=(40, 90), **changes):
    anomaly_map = np.random.default_rng(0).random(size, np.float32)
    facts = {"score": 0.25, "anomaly_map": anomaly_map, "size": size, "probability": 0.5, "verdict": "anomalous"}
    return Prediction(**(facts | changes))


def picture(path, seed=1):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 90), np.uint8)).save(path)
    return path


@pytest.fixture
def images(tmp_path):
    return [picture(tmp_path / "in" / f"scan {i}.png", i) for i in range(5)]


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def everything(folder):
    """The bytes of all files in a folder, but for the time of the page."""
    return {
        str(path.relative_to(folder)): b"" if path.name == "index.html" else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("maps", ["tiff", "npy", "none"])
@pytest.mark.parametrize("overlays", [True, False])
def test_what_is_written(images, tmp_path, maps, overlays):
    out = tmp_path / "deep" / "results"
    bad = Path('bad, "odd"\nname.png')
    one = prediction()
    with PredictionFolder(out, [ImageRef(images[0], 3), bad], output=Output(maps, overlays)) as folder:
        assert folder.left == [ImageRef(images[0], 3), ImageRef(bad)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("madclip.report.predictions.read_image", lambda ref, *_: _read(ref.path))
            row = folder.add(ImageRef(images[0], 3), one)
        failed = folder.add(bad, DataError("bad: broken"))
    assert lines(out / "predictions.jsonl") == [row, failed] == list(read_rows(out))
    assert {field.name for field in fields(Row)} | {"overlay", "map"} == set(COLUMNS)
    assert list(row) == list(failed) == list(COLUMNS), "all keys are always there"
    assert (row["image"], row["frame"], row["score"], row["p_value"]) == (str(images[0]), 3, 0.25, None)
    assert (row["error"], failed["error"], failed["score"], failed["overlay"]) == (None, "bad: broken", None, None)
    with (out / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == list(COLUMNS)
    assert [line["image"] for line in table] == [str(images[0]), str(bad)]
    assert (table[0]["score"], table[0]["p_value"], table[0]["familiar"]) == ("0.25", "", "True")
    assert table[1]["error"] == "bad: broken"
    assert (row["overlay"] is not None, row["map"] is not None) == (overlays, maps != "none")
    if overlays:
        assert Image.open(out / row["overlay"]).size == (90, 40)
        assert Image.open(out / "thumbnails" / "000000_scan_0.jpg").size == (180, 40)
    if maps != "none":
        read = tifffile.imread(out / row["map"]) if maps == "tiff" else np.load(out / row["map"], allow_pickle=False)
        assert read.dtype == np.float32
        assert np.array_equal(read, one.anomaly_map)
    assert not list(out.rglob("*.partial"))


def _read(path):
    from madclip.data.readers import read_image

    return read_image(path)


def test_images_of_the_same_name_do_not_overwrite_each_other(tmp_path):
    images = [picture(tmp_path / name / "a.png") for name in "xyz"]
    with PredictionFolder(tmp_path / "r", images) as folder:
        rows = [folder.add(image, prediction()) for image in images]
    assert len({row["map"] for row in rows}) == len({row["overlay"] for row in rows}) == 3


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_no_name_builds_a_path(name):
    found = harmless(name)
    assert found
    assert len(found) <= 80
    assert found == Path(found).name
    assert not found.startswith(".")
    assert found.isascii()


def run(out, images, stop=None, **options):
    """A run of `stop` images, or of all."""
    with PredictionFolder(out, images, detector="d", **options) as folder:
        done = 0
        for image in folder.left:
            if done == stop:
                raise KeyboardInterrupt
            folder.add(image, prediction(score=int(image.path.stem[-1]) / 10))
            done += 1
    return done


def test_a_run_goes_on_where_it_stopped(images, tmp_path):
    run(tmp_path / "whole", images)
    out = tmp_path / "r"
    with pytest.raises(KeyboardInterrupt):
        run(out, images, stop=2)
    assert [row["score"] for row in lines(out / "predictions.jsonl.partial")] == [0, 0.1], "what was computed is kept"
    assert not (out / "predictions.jsonl").exists()
    with (out / "predictions.jsonl.partial").open("a") as file:
        file.write('{"image": "half of a r')  # the process was killed here
    assert run(out, images) == 3
    assert everything(out) == everything(tmp_path / "whole")


@pytest.mark.parametrize("what", ["detector", "images", "settings", "changed"])
def test_another_run_is_refused(images, tmp_path, what):
    out = tmp_path / "r"
    with pytest.raises(KeyboardInterrupt):
        run(out, images, stop=2)
    before = everything(out)
    inputs, detector, output = images, "d", Output()
    if what == "images":
        inputs = images[:4]
    elif what == "detector":
        detector = "e"
    elif what == "settings":
        output = Output("npy")
    else:
        picture(images[3], seed=77)
        os.utime(images[3], ns=(1, 1))
    with pytest.raises(DataError, match=r"r: holds an unfinished run with another .*--overwrite"):
        PredictionFolder(out, inputs, detector=detector, output=output).__enter__()
    assert everything(out) == before


def test_a_finished_run_is_not_replaced_unasked_and_leaves_nothing_behind(images, tmp_path):
    out = tmp_path / "r"
    run(out, images)
    with pytest.raises(DataError, match=r"holds predictions already.*--overwrite"):
        run(out, images)
    (out / "notes.txt").write_text("mine")
    run(out, images[3:], overwrite=True)
    assert sorted(path.name for path in (out / "overlays").iterdir()) == ["000000_scan_3.png", "000001_scan_4.png"]
    assert [row["score"] for row in read_rows(out)] == [0.3, 0.4]
    assert (out / "notes.txt").read_text() == "mine", "what is not its own is left alone"


def test_a_folder_of_an_earlier_version_is_replaced_only_when_asked(images, tmp_path):
    out = tmp_path / "r"
    (out / "overlays").mkdir(parents=True)
    (out / "overlays" / "000009_old.png").write_bytes(b"old")
    (out / "predictions.jsonl").write_text('{"image": "old.png", "score": 1}\n')
    with pytest.raises(DataError, match="--overwrite"):
        run(out, images)
    run(out, images, overwrite=True)
    assert not (out / "overlays" / "000009_old.png").exists()


def test_folders_that_hold_other_things_are_never_touched(images, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="holds no predictions; name a new folder"):
            run(tmp_path / "mine", images, overwrite=overwrite)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", images) == 5


def test_its_own_output_is_never_scored(images, tmp_path):
    with pytest.raises(DataError, match=r"lies in .*outside of the images"):
        run(tmp_path / "in", images, overwrite=True)
    out = tmp_path / "r"
    run(out, images)
    own = [*images, out / "overlays" / "000000_scan_0.png"]
    with pytest.raises(DataError, match=r"000000_scan_0.png: lies in .* like 1 of 6 images"):
        run(out, own, overwrite=True)
    link = tmp_path / "link"
    link.symlink_to(out)
    with pytest.raises(DataError, match="lies in"):
        run(out, [link / "overlays" / "000000_scan_0.png"], overwrite=True)
    assert len(list(read_rows(out))) == 5


def test_a_file_in_the_way(images, tmp_path):
    with pytest.raises(DataError, match="it is a file; name a folder"):
        run(images[0], images[1:])
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "maps").write_text("in the way")
    with pytest.raises(DataError, match="holds no predictions"):
        run(tmp_path / "r", images)


def test_a_map_that_cannot_be_written_leaves_nothing(images, tmp_path, monkeypatch):
    def full(file, _):
        file.write(b"II")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tifffile, "imwrite", full)
    with pytest.raises(DataError, match="No space left"):
        run(tmp_path / "r", images, output=Output(overlays=False))
    assert list((tmp_path / "r" / "maps").iterdir()) == []
    monkeypatch.undo()
    assert run(tmp_path / "r", images, output=Output(overlays=False)) == 5


def test_results_come_in_the_order_of_the_images(images, tmp_path):
    with (
        pytest.raises(DataError, match="not the next image"),
        PredictionFolder(tmp_path / "r", images) as folder,
    ):
        folder.add(images[1], prediction())
    with (
        pytest.raises(DataError, match="5 of 5 images have no prediction yet"),
        PredictionFolder(tmp_path / "s", images),
    ):
        pass


def test_a_damaged_row_is_one_line(images, tmp_path):
    out = tmp_path / "r"
    with pytest.raises(KeyboardInterrupt):
        run(out, images, stop=2)
    rows = (out / "predictions.jsonl.partial").read_text().splitlines()
    (out / "predictions.jsonl.partial").write_text("\n".join(reversed(rows)) + "\n")
    with pytest.raises(DataError, match="line 1 is damaged; start again"):
        run(out, images)


@pytest.mark.skipif(os.name == "nt", reason="locks of files are those of Unix")
def test_two_runs_at_once(images, tmp_path):
    with PredictionFolder(tmp_path / "r", images, detector="d") as first:
        for overwrite in (False, True):
            with pytest.raises(DataError, match="another process is writing"):
                run(tmp_path / "r", images, overwrite=overwrite)
        for image in images:
            first.add(image, prediction())
    assert len(list(read_rows(tmp_path / "r"))) == 5


def test_a_name_that_is_no_unicode(images, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in/latin-\xe9 0.png"))
    odd.write_bytes(images[0].read_bytes())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "r", [odd, *images], stop=1)
    assert run(tmp_path / "r", [odd, *images]) == 5
    assert next(read_rows(tmp_path / "r"))["image"] == str(odd)
    assert "latin-" in (tmp_path / "r" / "index.html").read_text("utf-8")


@pytest.mark.skipif(os.name == "nt", reason="permissions of Unix")
def test_all_files_have_one_mode(images, tmp_path):
    for mask, mode in ((0o022, 0o644), (0o027, 0o640)):
        before = os.umask(mask)
        try:
            run(tmp_path / f"r{mask}", images)
        finally:
            os.umask(before)
        files = [path for path in (tmp_path / f"r{mask}").rglob("*") if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {mode}


KILLED = """
import os, signal, sys
from pathlib import Path
from madclip import MadCLIP
from madclip.report.predictions import PredictionFolder, predict_folder
add = PredictionFolder.add
def killed(self, image, result):
    row = add(self, image, result)
    if len(self.rows) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return row
PredictionFolder.add = killed
detector = MadCLIP.load(sys.argv[1], device="cpu")
predict_folder(detector, sorted(Path(sys.argv[2]).glob("test/*/img/*.png")), Path(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_after_a_kill_nothing_is_lost_or_doubled(small_detector, small_data, tmp_path):
    out, images = tmp_path / "r", sorted(small_data.glob("test/*/img/*.png"))
    arguments = [sys.executable, "-c", KILLED, small_detector, small_data, out]
    done = subprocess.run(arguments, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(lines(out / "predictions.jsonl.partial")) == 5
    detector = MadCLIP.load(small_detector, device="cpu")
    seen = []
    found = predict_folder(
        detector, images, out, progress=lambda stage, done, total, /, **_: seen.append((stage, done))
    )
    assert seen == [("predict", done) for done in range(6, 13)]
    whole = predict_folder(detector, images, tmp_path / "whole")
    assert [row["image"] for row in found] == [str(image) for image in images]
    assert found == lines(out / "predictions.jsonl")
    for one, other in zip(found, whole, strict=True):
        assert one["score"] == pytest.approx(other["score"], abs=1e-6)
        assert one["overlay"] == other["overlay"]
    assert set(everything(out)) == set(everything(tmp_path / "whole"))
    direct = detector.predict(images[2])
    assert found[2]["score"] == pytest.approx(direct.score, abs=1e-6)
    assert (found[2]["threshold"], found[2]["decision"]) == (direct.threshold, direct.decision)
    assert found[2]["verdict"] in ("normal", "anomalous", "uncertain")


def test_a_fingerprint_knows_what_a_prediction_depends_on(small_detector, images):
    one, same, other = (MadCLIP.load(small_detector, device="cpu") for _ in range(3))
    assert detector_fingerprint(one) == detector_fingerprint(same)
    assert detector_fingerprint(one) != detector_fingerprint(same, "openvino int8")
    import torch

    with torch.no_grad():
        other.state.head.adapters.shared.add_(1e-3)
    assert detector_fingerprint(one) != detector_fingerprint(other)
    plan = Plan.of([ImageRef(image) for image in images], "d", Output())
    assert plan != Plan.of([ImageRef(image, 0) for image in images], "d", Output())
    assert plan != Plan.of([ImageRef(image) for image in reversed(images)], "d", Output())
