import numpy as np
import pytest
from PIL import Image as Picture

from madclip.data import expand_inputs
from madclip.data.ref import ImageRef
from madclip.errors import DataError


@pytest.fixture
def root(tmp_path):
    for name in (
        "b.png",
        "a/x.JPG",
        "a/deep/y.tif",
        "a/notes.txt",
        "a/.hidden.png",
        ".cache/z.png",
        "masks/b.png",
        "scan",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    return tmp_path


def names(root, *inputs):
    return [image.path.relative_to(root).as_posix() for image in expand_inputs(inputs).images]


def test_files_folders_and_patterns(root):
    everything = ["a/deep/y.tif", "a/x.JPG", "b.png"]
    assert names(root, root) == everything
    assert names(root, str(root / "**/*")) == everything
    assert expand_inputs([root / "**/*.png"]).passed_over == {"masks": 1}
    assert names(root, root / "*") == everything
    assert names(root, root / "b.png", root / "*.png", root, root / "a/../b.png") == everything
    assert names(root, root / "scan", root / "a/notes.txt") == ["a/notes.txt", "scan"]
    assert names(root, root / "masks") == ["masks/b.png"]


def test_a_file_whose_name_looks_like_a_pattern(root):
    (root / "slice[1].png").write_text("")
    assert names(root, root / "slice[1].png") == ["slice[1].png"]


def test_relative_and_absolute_names_are_the_same_file(root, monkeypatch):
    monkeypatch.chdir(root)
    assert len(expand_inputs(["b.png", root / "b.png", "./b.png"]).images) == 1


def test_inputs_that_name_nothing(root):
    (root / "empty").mkdir()
    for inputs, message in (
        ([], "no input"),
        ([root / "none.png"], "none.png: no such file or folder"),
        ([root / "empty"], "no images"),
        ([root / "*.bmp"], "no image matches"),
        ([root / "b.png", root / "none"], "no such file"),
    ):
        with pytest.raises(DataError, match=message):
            expand_inputs(inputs)


def test_what_is_passed_over_is_counted(root):
    for name in ("one.pdf", "two.PDF", "@eaDir/b.png", "a/Thumbs.db", "a/b_mask.png", "a/b.png"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (root / "gone.png").symlink_to(root / "nothing.png")
    found = expand_inputs([root])
    assert [image.path.relative_to(root).as_posix() for image in found.images] == [
        "a/b.png",
        "a/deep/y.tif",
        "a/x.JPG",
        "b.png",
    ]
    assert found.passed_over == {
        "hidden or of a tool": 4,
        ".pdf": 2,
        "masks": 2,
        ".txt": 1,
        "no suffix": 1,
        "dead links": 1,
    }
    assert expand_inputs([root / "a"]).said() == "passed over: 2 hidden or of a tool, 1 masks, 1 .txt"
    # What is named is not passed over; the same folder twice counts once.
    again = expand_inputs([root, root, root / "one.pdf"])
    assert len(again.images) == 5
    assert again.passed_over[".pdf"] == 1
    assert again.passed_over["masks"] == 2


def test_the_content_decides_where_the_suffix_is_no_images(root):
    noise = np.random.default_rng(0).integers(0, 255, (9, 9), dtype=np.uint8)
    for suffix, name in (("jpeg", "p.jfif"), ("jpeg", "q.jpe"), ("png", "a/scan_17"), ("tiff", "a/r.dat")):
        Picture.fromarray(noise).save(root / name, suffix)
    (root / "a/bmi.csv").write_text("BMI,age\n")
    assert names(root, root) == ["a/deep/y.tif", "a/r.dat", "a/scan_17", "a/x.JPG", "b.png", "p.jfif", "q.jpe"]
    assert names(root, root / "a/*") == ["a/deep/y.tif", "a/r.dat", "a/scan_17", "a/x.JPG"]
    assert expand_inputs([root / "a/*"]).passed_over == {".txt": 1, ".csv": 1}


def test_linked_folders_are_followed_once(root):
    (root / "store").mkdir()
    (root / "store/s.png").write_text("")
    (root / "in").mkdir()
    (root / "in/link").symlink_to(root / "store", target_is_directory=True)
    (root / "in/round").symlink_to(root, target_is_directory=True)
    found = expand_inputs([root / "in"])
    assert found.images == (ImageRef(root / "in/link/s.png"),)
    assert found.passed_over == {"dead links": 1}


def test_an_empty_input_does_not_stop_the_rest(root):
    (root / "empty").mkdir()
    found = expand_inputs([root / "empty", root / "b.png", root / "*.bmp"])
    assert found.images == (ImageRef(root / "b.png"),)
    assert found.empty == (str(root / "empty"), str(root / "*.bmp"))
    assert found.said() == f"no image in {root / 'empty'}, {root / '*.bmp'}"
    assert expand_inputs([root / "b.png"]).said() == ""
    (root / "empty/one.pdf").write_text("")
    with pytest.raises(DataError, match=r"empty: no images .* in this folder, only 1 \.pdf; .*bmp: no image matches"):
        expand_inputs([root / "empty", root / "*.bmp"])


def test_folders_of_tools_are_passed_over_in_patterns_unless_named(root):
    for folder in ("@eaDir", "a"):
        (root / folder).mkdir(exist_ok=True)
        (root / folder / "t.png").write_text("")
    assert names(root, root / "*/t.png") == ["a/t.png"]
    assert names(root, root / "@eaDir/*.png") == ["@eaDir/t.png"]
    assert names(root, root / "@eaDir") == ["@eaDir/t.png"]
