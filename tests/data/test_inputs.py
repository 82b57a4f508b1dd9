import pytest

from madclip.data import expand_inputs
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
    return [path.relative_to(root).as_posix() for path in expand_inputs(inputs)]


def test_files_folders_and_patterns(root):
    everything = ["a/deep/y.tif", "a/x.JPG", "b.png"]
    assert names(root, root) == everything
    assert names(root, str(root / "**/*")) == ["a/deep/y.tif", "a/x.JPG", "b.png", "masks/b.png"]
    assert names(root, root / "b.png", root / "*.png", root, root / "a/../b.png") == everything
    assert names(root, root / "scan", root / "a/notes.txt") == ["a/notes.txt", "scan"]
    assert names(root, root / "masks") == ["masks/b.png"]


def test_a_file_whose_name_looks_like_a_pattern(root):
    (root / "slice[1].png").write_text("")
    assert names(root, root / "slice[1].png") == ["slice[1].png"]


def test_relative_and_absolute_names_are_the_same_file(root, monkeypatch):
    monkeypatch.chdir(root)
    assert len(expand_inputs(["b.png", root / "b.png", "./b.png"])) == 1


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
