"""The demo from end to end, small: what it writes and prints, on phantoms and on a folder of one's own."""

import json
import sys

import pytest
from PIL import Image

from madclip import cli

pytestmark = pytest.mark.slow


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["madclip", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    return capsys.readouterr()


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
    assert (tmp_path / "oct" / "detector" / "detector.json").exists()


def test_images_of_an_earlier_call_stay_only_with_the_same_settings(tmp_path):
    from madclip.demo import draw_once

    def images(test, shots):
        draw_once(tmp_path / "oct", "oct", test, shots)
        drawn = list((tmp_path / "oct").rglob("img/*.png"))
        return len(drawn), max(path.stat().st_mtime_ns for path in drawn)

    first = images(4, 1)
    assert images(4, 1) == first
    assert images(2, 1)[0] == 2 + 2
    assert images(2, 2)[0] == 2 + 4


def test_demo_on_ones_own_folder(monkeypatch, capsys, tmp_path, make_images):
    folder = tmp_path / "mine"
    make_images(folder, {"valid": (2, 2), "test": (3, 3)})
    said = run(monkeypatch, capsys, "demo", "--data", folder, "--out", tmp_path / "out", "--shots", 2)
    assert "image AUROC" in said.out
    assert (tmp_path / "out" / "mine" / "sheet.png").exists()
