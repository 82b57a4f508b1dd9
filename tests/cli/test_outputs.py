"""What is there already is not replaced without a word."""

import json
import shutil

import pytest
from PIL import Image


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def detector(small_detector, tmp_path):
    return shutil.copytree(small_detector, tmp_path / "mine")


@pytest.fixture
def other(small_detector, tmp_path):
    return shutil.copytree(small_detector, tmp_path / "other")


def test_fit_keeps_another_detector(madclip, small, small_data, other):
    before = contents(other)
    arguments = ["fit", small_data, "--out", other, "--shots", 2, "--folds", 0, *small]
    madclip(*arguments).one_line(other, "--overwrite")
    assert contents(other) == before
    assert madclip(*arguments, "--overwrite").code == 0
    assert contents(other) != before


def test_import_released_keeps_another_detector(madclip, other, tmp_path):
    import released_files

    before = contents(other)
    toy = released_files.write_openai(tmp_path / "toy.pt")
    published = released_files.write_released(tmp_path / "Brain.pth")
    options = ["--backbone", toy, "--objective", "Brain", "--image-size", 56, "--device", "cpu"]
    madclip("import-released", published, "--out", other, *options).one_line(other, "--overwrite")
    assert contents(other) == before
    assert madclip("import-released", published, "--out", other, *options, "--overwrite").code == 0
    assert contents(other) != before


def test_refit_replaces_its_own_detector_but_no_other(madclip, small_data, detector, other):
    before = contents(other)
    assert madclip("refit", detector, small_data).code == 0
    madclip("refit", detector, small_data, "--out", other).one_line(other, "--overwrite")
    assert contents(other) == before
    assert madclip("refit", detector, small_data, "--out", other, "--overwrite").code == 0
    assert contents(other) != before


def test_a_refit_that_fails_keeps_the_detector(madclip, small_data, detector, monkeypatch):
    from madclip import storage

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    before = contents(detector)
    monkeypatch.setattr(storage, "save_file", fail)
    madclip("refit", detector, small_data).one_line(detector, "No space left")
    assert contents(detector) == before
    assert [path.name for path in detector.parent.iterdir() if path.name.startswith(".")] == []


def test_a_report_does_not_replace_what_is_there(madclip, small_data, small_detector, tmp_path):
    scan, page = tmp_path / "scan.png", tmp_path / "report.html"
    Image.new("L", (64, 64)).save(scan)
    before = scan.read_bytes()
    evaluate = ["evaluate", small_detector, small_data, "--report"]
    for extra in ([], ["--overwrite"]):
        madclip(*evaluate, scan, *extra).one_line(scan, "no report")
        madclip(*evaluate, tmp_path, *extra).one_line(tmp_path, "no report")
    assert scan.read_bytes() == before
    assert madclip(*evaluate, page).code == 0
    page.write_text(page.read_text("utf-8") + "<!-- mine -->", "utf-8")
    madclip(*evaluate, page).one_line(page, "--overwrite")
    assert "<!-- mine -->" in page.read_text("utf-8")
    assert madclip(*evaluate, page, "--overwrite").code == 0
    assert "<!-- mine -->" not in page.read_text("utf-8")


def test_repeat_does_not_write_into_a_folder_of_something_else(madclip, small, make_images, tmp_path):
    data = make_images(tmp_path / "data", {"valid": (2, 2), "test": (2, 2)})
    before = contents(data)
    madclip("repeat", data, "--out", data, "--seeds", 1, "--shots", 2, *small).one_line(data, "another folder")
    assert contents(data) == before


def test_bench_does_not_replace_what_is_there(madclip, small_data, tmp_path):
    out, folder = tmp_path / "speed.json", tmp_path / "documents"
    out.write_text("mine")
    folder.mkdir()
    (folder / "results.csv").write_text("mine")
    madclip("bench", "speed", "--only", "import", "--out", out).one_line("speed.json: exists", "--overwrite")
    madclip("benchmark", "speed", "--out", folder).one_line("documents: is there already and is no file")
    madclip("bench", "real", "--data", small_data.parent, "--out", folder).one_line("no runs of `madclip bench`")
    assert (out.read_text(), (folder / "results.csv").read_text()) == ("mine", "mine")
    assert madclip("bench", "speed", "--only", "import", "--out", out, "--overwrite").code == 0
    assert [row["name"] for row in json.loads(out.read_text())["rows"]] == ["import"]
