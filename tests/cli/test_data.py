import csv
import json

import numpy as np
import pytest
from PIL import Image


def write(path, values=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(sum(map(ord, path.as_posix()))).integers(0, 255, (64, 64), dtype=np.uint8)
    Image.fromarray(noise if values is None else values).save(path)


@pytest.fixture
def root(tmp_path):
    """Four images of either class, of which one is black, below folders whose names say nothing."""
    for folder in ("NV", "MEL"):
        for number in range(4):
            write(tmp_path / "set" / folder / f"{number}.png")
    write(tmp_path / "set/NV/0.png", np.zeros((64, 64), np.uint8))
    return tmp_path / "set"


def test_the_way_from_unknown_folders_to_a_checked_manifest(madclip, root):
    refused = madclip("data", "check", root)
    refused.one_line("no known layout (found MEL/, NV/)", "--normal MEL --abnormal NV", f"madclip data manifest {root}")
    named = madclip("data", "check", root, "--normal", "NV", "--abnormal", "MEL")
    assert named.code == 0
    assert "all: 4 normal, 4 abnormal" in named.out
    assert "NV/0.png" in named.out
    written = madclip("data", "manifest", root)
    assert (written.code, written.err) == (0, "")
    assert written.out.startswith(f"{root}/manifest.csv: 4 MEL, 4 NV\n")
    assert "--normal and --abnormal" in written.out
    madclip("data", "manifest", root).one_line("manifest.csv: exists", "--overwrite")
    path = root / "manifest.csv"
    path.write_text(path.read_text().replace(",NV,", ",normal,").replace(",MEL,", ",abnormal,"))
    checked = json.loads(madclip("data", "check", root, "--json").out)
    assert (checked["layout"], checked["ok"], checked["counts"]["all"]["abnormal"]) == ("manifest", True, 4)
    assert [problem["kind"] for problem in checked["problems"]] == ["constant"]


def test_a_manifest_goes_where_it_is_told_and_over_another_only_when_asked(madclip, root, tmp_path):
    out = tmp_path / "lists.csv"
    options = ["--normal", "NV", "--abnormal", "MEL", "--out", out, "--json"]
    facts = json.loads(madclip("data", "manifest", root, *options).out)
    assert facts == {"manifest": str(out), "labels": {"abnormal": 4, "normal": 4}}
    with out.open(newline="") as file:
        assert [(row["image"], row["label"]) for row in csv.DictReader(file)][3:5] == [
            ("set/MEL/3.png", "abnormal"),
            ("set/NV/0.png", "normal"),
        ]
    out.write_text("image,label\n")
    assert madclip("data", "manifest", root, *options).code == 2
    assert out.read_text() == "image,label\n"
    assert madclip("data", "manifest", root, *options, "--overwrite").code == 0
    assert len(out.read_text().splitlines()) == 9
    madclip("data", "manifest", tmp_path / "nothing").one_line("nothing: no such folder")


def test_check_says_what_it_passed_over_and_how_it_knows_patients(madclip, tmp_path):
    for number in range(12):
        write(tmp_path / ("normal", "abnormal")[number % 2] / f"P{number // 2}_{number}.png")
    write(tmp_path / "normal/.ipynb_checkpoints/P0_0-checkpoint.png")
    write(tmp_path / "vaild/normal/x.png")
    result = madclip("data", "check", tmp_path)
    assert result.code == 0
    assert "  6 patients, from the names <patient>_<slice>\n" in result.out
    assert "  passed over: 1 hidden files or folders, or those of tools\n" in result.out
    assert "neither a class nor masks (vaild: did you mean valid?) (1)\n    vaild\n" in result.out
    assert "patients unknown" in madclip("data", "check", tmp_path, "--patients", "none").out
    assert "2 patients" in madclip("data", "check", tmp_path, "--patients", "^P([01])").out
    madclip("data", "check", tmp_path, "--patients", "header").one_line("header")


def test_check_finds_lesions_that_the_recipe_loses(madclip, tmp_path):
    mask = np.zeros((64, 64), np.uint8)
    mask[10:12, 10:12] = 255
    write(tmp_path / "normal/n.png")
    write(tmp_path / "abnormal/a.png")
    write(tmp_path / "masks/a.png", mask)
    whole = madclip("data", "check", tmp_path, "--set", "image_size=64")
    assert "is gone" not in whole.out
    small = madclip("data", "check", tmp_path, "--set", "image_size=14")
    resized = np.asarray(Image.fromarray(mask > 0).resize((14, 14), Image.Resampling.NEAREST))
    assert ("a 2 px lesion in 64 px is gone" in small.out) is not bool(resized.any())


def test_check_reads_by_the_range_that_a_fit_would_use(madclip, root):
    """What `check` says of a float image in 0..100 is what `fit` meets: unreadable without a range, fine with one."""
    named = ["--normal", "healthy", "--abnormal", "sick"]
    for kind in ("healthy", "sick"):
        for number in range(3):
            path = root / "floats" / kind / f"{kind}{number}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.random.default_rng(number + len(kind)).uniform(0, 100, (16, 16)))
    result = madclip("data", "check", root / "floats", *named)
    assert result.code == 2
    assert "float values from" in result.out
    result = madclip("data", "check", root / "floats", *named, "--range", "0,100", "--json")
    assert (result.code, json.loads(result.out)["problems"]) == (0, [])
    assert madclip("data", "check", root / "floats", *named, "--range", "9,1").code == 2
