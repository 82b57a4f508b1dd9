"""The commands, as a user runs them."""

import csv
import json
import signal
import sys
import time

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.test_tiles import write_large

# What a fit is in another process: checkpoints after every step, so that a kill finds one.
SLOW_FIT = """
import time
from functools import partial
from madclip import fitting
from madclip.training import fit
fitting.Checkpoint = partial(fitting.Checkpoint, seconds=0.0)
step = fit.training_step
def slow(*arguments):
    time.sleep(PAUSE)
    return step(*arguments)
fit.training_step = slow
from madclip.cli import main
main()
"""


def test_help_and_version_are_quick_and_import_nothing_heavy(start):
    code = "import sys; sys.argv = ['', {!r}]\nfrom madclip.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    check = "assert not {'torch', 'transformers', 'scipy', 'matplotlib', 'numpy'} & set(sys.modules)"
    for option in ("--help", "--version"):
        process = start("-c", code.format(option) + check)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert "anomaly detection" in out or out.startswith("madclip ")
    process = start("-c", "import sys, madclip; assert 'torch' not in sys.modules; print(madclip.__version__)")
    assert process.communicate(timeout=60)[0].strip()
    assert process.returncode == 0


def test_fit_evaluate_predict(madclip, small, small_data, tmp_path):
    folder = tmp_path / "detector"
    result = madclip("fit", small_data, "--out", folder, "--shots", 4, "--folds", 2, *small, "--json")
    assert result.code == 0, result
    facts = json.loads(result.out)
    assert (facts["normal"], facts["abnormal"], facts["masks"]) == (4, 4, 4)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "detector.json", "head.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["detector"]

    page = tmp_path / "report.html"
    result = madclip("evaluate", folder, small_data, "--report", page, "--json")
    assert result.code == 0, result
    measured = json.loads(result.out)
    assert 0 <= measured["image_auroc"] <= 1
    assert 0 <= measured["pixel_auroc"] <= 1
    wanted = "image_auroc_ci image_ap pixel_auroc_bound pixel_ap aupro dice threshold sensitivity sensitivity_ci "
    for key in (wanted + "specificity specificity_ci brier n_normal n_abnormal").split():
        assert key in measured
    assert (measured["n_normal"], measured["n_abnormal"]) == (6, 6)
    assert "<html" in page.read_text(encoding="utf-8")

    result = madclip("predict", folder, small_data / "test", "--out", tmp_path / "results", "--json")
    assert result.code == 0, result
    rows = [json.loads(line) for line in (tmp_path / "results" / "predictions.jsonl").read_text().splitlines()]
    assert json.loads(result.out)["predictions"] == rows
    assert len(rows) == 12
    with (tmp_path / "results" / "predictions.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["score"]) for row in table] == [row["score"] for row in rows]
    for row in rows:
        assert 0 <= row["score"] <= 1
        assert 0 <= row["probability"] <= 1
        anomaly_map = tifffile.imread(tmp_path / "results" / row["map"])
        assert anomaly_map.dtype == np.float32
        assert anomaly_map.shape == (64, 64)
        assert Image.open(tmp_path / "results" / row["overlay"]).size == (64, 64)
    by_image = {row["name"]: row["score"] for row in measured["images"]}
    assert {name: by_image[name] for name in by_image} == pytest.approx(
        {row["image"].removeprefix(f"{small_data}/"): row["score"] for row in rows}, abs=1e-6
    )


def test_text_output_names_what_was_done(madclip, small_detector, small_data, tmp_path):
    result = madclip("evaluate", small_detector, small_data)
    assert result.code == 0
    assert "image_auroc" in result.out
    assert "6 normal and 6 abnormal" in result.out
    result = madclip("predict", small_detector, small_data / "test", "-o", tmp_path / "out", "--maps", "none")
    assert result.code == 0
    assert "12 images scored, 0 failed" in result.out
    assert not (tmp_path / "out" / "maps").exists()
    assert madclip("backbones").out.count("stand-in") == 1


@pytest.mark.parametrize("arguments", [["backbones"], ["cache"], ["cache", "--limit", "5GB"], ["cache", "--clear"]])
def test_json_alone_on_standard_output(madclip, arguments):
    result = madclip(*arguments, "--json")
    assert (result.code, result.err) == (0, "")
    assert isinstance(json.loads(result.out), dict)


def test_data_check_json(madclip, small_data):
    result = madclip("data", "check", small_data, "--json")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out)["layout"] == "bmad"


def test_data_sets_are_listed(madclip):
    result = madclip("data", "sets")
    assert (result.code, result.err) == (0, "")
    assert "7500/83/3715" in result.out
    names = [entry["name"] for entry in json.loads(madclip("data", "sets", "--json").out)["sets"]]
    assert names[0] == "BrainMRI"
    assert names[-1] == "OCTDL"


def test_data_check_against_a_registered_set(madclip, small_data):
    result = madclip("data", "check", small_data, "--as", "brain_ad")
    assert result.code == 2
    assert "instead of 3715" in result.out
    unmeasured = madclip("data", "check", small_data, "--as", "OCTDL")
    assert unmeasured.code == 0
    assert "no counts are registered for OCTDL" in unmeasured.out
    madclip("data", "check", small_data, "--as", "BrianMRI").one_line("BrianMRI", "BrainMRI")


def test_data_prepare(madclip, tmp_path):
    source, out = tmp_path / "OCT2017", tmp_path / "out"
    rng = np.random.default_rng(0)
    for first, kind in enumerate(("NORMAL", "CNV", "DME", "DRUSEN"), start=1):
        for split, count in (("test", 18), ("train", 1)):
            folder = source / split / kind
            folder.mkdir(parents=True)
            for index in range(count):
                picture = Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8))
                picture.save(folder / f"{kind}-{first}{split == 'train':d}{index:02}-1.jpeg")
    options = ["--from", source, "--to", out]
    result = madclip("data", "prepare", "OCT17", *options)
    assert (result.code, result.err) == (0, "")
    assert "test: 2 normal, 38 abnormal" in result.out
    assert madclip("data", "check", out).code == 0
    madclip("data", "prepare", "OCT17", *options).one_line(out, "not an empty folder")
    madclip("data", "prepare", "ADNI", *options).one_line("CSV files")


def test_phantoms_are_a_data_set(madclip, small, tmp_path):
    out = tmp_path / "phantoms"
    result = madclip(
        "phantoms", out, "--modality", "generic", "--normal", 2, "--abnormal", 2, "--shots", 2, "--size", 64, "--json"
    )
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out)["test"] == 4
    assert madclip("fit", out, "-o", tmp_path / "d", "--shots", 2, "--folds", 0, *small).code == 0
    assert madclip("evaluate", tmp_path / "d", out, "--json").code == 0


def test_import_released(madclip, tmp_path):
    import released_files

    toy = released_files.write_openai(tmp_path / "toy.pt")
    published = released_files.write_released(tmp_path / "Brain.pth")
    options = ["--backbone", toy, "--objective", "Brain", "--image-size", 56, "--device", "cpu", "--json"]
    result = madclip("import-released", published, "--out", tmp_path / "d", *options)
    assert result.code == 0, result
    assert len(json.loads(result.out)["sha256"]) == 64
    picture = tmp_path / "a.png"
    Image.fromarray(np.full((70, 50), 90, np.uint8)).save(picture)
    result = madclip("predict", tmp_path / "d", picture, "--out", tmp_path / "r", "--json")
    assert result.code == 0, result
    assert result.err == "not calibrated: the published checkpoint brings no threshold; `calibrate` adds one\n"


def test_published_shot_lists_and_unequal_shots(madclip, small, small_data, tmp_path):
    out = tmp_path / "d"
    result = madclip("fit", small_data, "-o", out, "--shots", "3,2", "--folds", 0, *small, "--json")
    assert (json.loads(result.out)["normal"], json.loads(result.out)["abnormal"]) == (3, 2)
    again = ["-o", out, "--overwrite"]
    result = madclip("fit", small_data, *again, "--shots", "all", "--folds", 0, *small, "--json")
    assert json.loads(result.out)["normal"] == 4
    missing = madclip("fit", small_data, *again, "--shot-list", "mvfa:Brain", "--shots", 2, *small)
    missing.one_line("published list mvfa Brain 2")
    madclip("fit", small_data, *again, "--shot-list", "mvfa:Knee", "--shots", 2, *small).one_line("Knee", "Brain")


def test_a_second_fit_reads_cached_tokens_and_gives_the_same_bytes(madclip, small, small_data, tmp_path):
    bytes_of = {}
    for name, extra in (("first", []), ("second", []), ("uncached", ["--no-cache"])):
        assert madclip("fit", small_data, "-o", tmp_path / name, "--shots", 2, *small, *extra).code == 0
        files = (tmp_path / name).iterdir()
        bytes_of[name] = {path.name: path.read_bytes() for path in files}
    assert bytes_of["first"] == bytes_of["second"] == bytes_of["uncached"]
    assert json.loads(madclip("cache", "--json").out)["images"] == 4


def _fit(start, small, data, out, *extra, pause=0.0):
    code = SLOW_FIT.replace("PAUSE", str(pause))
    arguments = ["fit", data, "--out", out, "--shots", 2, "--folds", 0, *small, "--set", "epochs=8", *extra]
    return start("-c", code, *arguments)


def _wait_for(path, process):
    for _ in range(1200):
        if path.exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    assert path.exists(), process.communicate()


@pytest.mark.slow
def test_killed_in_the_middle_and_resumed_is_as_if_undisturbed(start, small, small_data, tmp_path):
    whole = _fit(start, small, small_data, tmp_path / "whole")
    assert whole.wait(timeout=120) == 0, whole.communicate()
    broken = _fit(start, small, small_data, tmp_path / "broken", pause=0.5)
    state = tmp_path / "broken.fit-state"
    _wait_for(state, broken)
    broken.send_signal(signal.SIGKILL)
    assert broken.wait(timeout=60) == -signal.SIGKILL
    assert not (tmp_path / "broken").exists()
    resumed = _fit(start, small, small_data, tmp_path / "broken", "--resume")
    assert resumed.wait(timeout=120) == 0, resumed.communicate()
    for name in ("head.safetensors", "detector.json", "README.md"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not state.exists()


@pytest.mark.slow
def test_control_c_is_130_and_leaves_nothing_half_written(start, small, small_data, tmp_path):
    process = _fit(start, small, small_data, tmp_path / "d", pause=0.5)
    _wait_for(tmp_path / "d.fit-state", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    assert "interrupted" in err
    assert sorted(path.name for path in tmp_path.iterdir()) in (["cache", "d.fit-state"], ["d.fit-state"])


def test_control_c_during_predict(madclip, small_detector, small_data, tmp_path, monkeypatch):
    from madclip.report.predictions import PredictionFolder

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(PredictionFolder, "add", interrupt)
    result = madclip("predict", small_detector, small_data / "test", "-o", tmp_path / "r")
    assert result.code == 130
    assert result.err.strip().splitlines()[-1] == "interrupted"
    assert not (tmp_path / "r" / "predictions.jsonl").exists()


def test_debug_shows_the_traceback(monkeypatch, tmp_path):
    from madclip import cli
    from madclip.errors import DataError

    monkeypatch.setattr(sys, "argv", ["madclip", "--debug", "data", "check", str(tmp_path / "none")])
    with pytest.raises(DataError):
        cli.main()


def test_refit_and_predict_with_an_export(madclip, small, small_data, tmp_path):
    fitted = tmp_path / "detector"
    assert madclip("fit", small_data, "--out", fitted, "--shots", 3, *small).code == 0
    for extra, normal in (([], 3), (["--shots", "all"], 4), (["--shots", "2,3"], 2)):
        found = madclip("refit", fitted, small_data, "--out", tmp_path / f"new{normal}", *extra, "--json")
        facts = json.loads(found.out)
        assert (facts["refits"], facts["normal"], facts["calibrated_before_refit"]) == (1, normal, True)
    assert "thresholds are those from before" in madclip("refit", fitted, small_data, "--shots", 2).out
    madclip("predict", fitted, small_data / "test", "--out", tmp_path / "p", "--engine", "onnx").one_line(
        "madclip export"
    )
    done = madclip("predict", fitted, small_data / "test", "--out", tmp_path / "p", "--engine", "torch", "--json")
    assert json.loads(done.out)["engine"] == "torch"


@pytest.mark.slow
def test_large_images_are_seen_in_tiles(tmp_path, madclip, small):
    data, out = write_large(tmp_path / "large"), tmp_path / "detector"
    assert madclip("fit", data, "--out", out, "--tiles", 128, "--shots", 2, *small).code == 0
    assert json.loads((out / "detector.json").read_text())["recipe"]["tile"] == 128
    assert madclip("predict", out, data / "abnormal", "--out", tmp_path / "p").code == 0
    rows = [json.loads(line) for line in (tmp_path / "p/predictions.jsonl").read_text().splitlines()]
    assert {tifffile.imread(tmp_path / "p" / row["map"]).shape for row in rows} == {(320, 320)}
