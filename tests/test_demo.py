"""The demo from end to end, small: what it writes and prints, on phantoms and on a folder of one's own."""

import json
import sys

import pytest
from PIL import Image

from madclip import cli
from madclip.demo import draw_images
from madclip.errors import DataError


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["madclip", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    return capsys.readouterr()


@pytest.mark.slow
def test_demo_on_phantoms(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("madclip.demo.MODALITIES", ("oct",))
    said = run(monkeypatch, capsys, "demo", "--out", tmp_path, "--shots", 2, "--test", 12, "--json")
    (made,) = json.loads(said.out)["runs"]
    assert made["name"] == "oct"
    assert 0 <= made["metrics"]["image_auroc"] <= 1
    assert made["metrics"]["n_normal"] == made["metrics"]["n_abnormal"] == 6
    sheet = Image.open(made["sheet"])
    assert sheet.width > 400
    assert "<html" in (tmp_path / "oct" / "report.html").read_text()
    detector = json.loads((tmp_path / "oct" / "detector" / "detector.json").read_text())
    assert (detector["backbone"]["id"], detector["recipe"]["name"]) == ("tiny+lite0", "fused")
    assert "ImageNet" in said.err


@pytest.mark.slow
def test_demo_on_ones_own_folder(monkeypatch, capsys, tmp_path, make_images):
    folder = tmp_path / "mine"
    make_images(folder, {"valid": (2, 2), "test": (3, 3)})
    said = run(monkeypatch, capsys, "demo", "--data", folder, "--out", tmp_path / "out", "--shots", 2)
    assert "image AUROC" in said.out
    assert (tmp_path / "out" / "mine" / "sheet.png").exists()


def drawn(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def count(folder, part):
    return [len(list((folder / part / name / "img").iterdir())) for name in ("good", "Ungood")]


def test_images_of_other_settings_are_drawn_anew(tmp_path):
    folder = tmp_path / "images" / "oct"
    draw_images(folder, "oct", 2, 5)
    assert (count(folder, "valid"), count(folder, "test")) == ([2, 2], [2, 3])
    first = drawn(folder)
    marked = next(folder.rglob("*.png")).stat().st_mtime_ns
    draw_images(folder, "oct", 2, 5)
    assert next(folder.rglob("*.png")).stat().st_mtime_ns == marked, "the same settings: the same files"
    draw_images(folder, "oct", 3, 4)
    assert (count(folder, "valid"), count(folder, "test")) == ([3, 3], [2, 2])
    draw_images(folder, "oct", 2, 5)
    assert drawn(folder) == first


def test_images_of_unknown_settings_are_left_alone(tmp_path):
    folder = tmp_path / "images" / "oct"
    folder.mkdir(parents=True)
    (folder / "mine.png").write_bytes(b"mine")
    for _ in range(2):
        with pytest.raises(DataError, match=r"oct: exists, and oct.json.*remove it or give another --out"):
            draw_images(folder, "oct", 2, 5)
        (tmp_path / "images" / "oct.json").write_text("{")
    assert (folder / "mine.png").read_bytes() == b"mine"
