"""What is written whole or not at all, also by processes that are killed."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from errno import ENOENT, ENOSPC
from hashlib import sha256
from pathlib import Path

import pytest

from madclip.errors import DataError
from madclip.files import digest, first_line, new_file, new_folder, until_changed, write_between, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_at_the_end_and_not_before(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with new_file(path) as partial:
        assert partial.parent == tmp_path
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_or_interrupt_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def write() -> None:
        with new_file(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_temporary_names_cannot_be_foreseen_nor_be_too_long(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 127)  # 254 bytes; a file system takes 255
    with new_file(path) as one, new_file(path) as other:
        assert one != other
        one.write_text("1")
        other.write_text("2")
    assert path.read_text() == "1"  # the outer one ends last


def test_text_is_utf_8_and_bytes_are_bytes(tmp_path: Path) -> None:
    write_whole(tmp_path / "made" / "a.txt", "Schädel\n")
    write_whole(tmp_path / "b", b"\x00\xff")
    assert (tmp_path / "made" / "a.txt").read_bytes() == b"Sch\xc3\xa4del\n"
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_modes_follow_the_umask_the_old_file_or_the_caller(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "plain", "x")
        write_whole(tmp_path / "private", "x", 0o600)
        with new_folder(tmp_path / "folder"):
            pass
        with new_file(tmp_path / "foreign") as partial:  # as safetensors does, with a file of its own
            partial.unlink()
            partial.touch(0o600)
        write_whole(tmp_path / "private", "y")
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == {"plain": 0o640, "private": 0o600, "folder": 0o750, "foreign": 0o640}


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "kept").touch()
    (tmp_path / "link").symlink_to("real")
    with new_folder(tmp_path / "link", replace=True) as building:
        (building / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["new"]
    write_whole(tmp_path / "real" / "a", "1")
    (tmp_path / "alias").symlink_to("real/a")
    write_whole(tmp_path / "alias", "2")
    assert (tmp_path / "real" / "a").read_text() == "2"
    assert names(tmp_path) == ["alias", "link", "real"]


def test_a_folder_with_content_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").touch()
    entered = False
    with pytest.raises(OSError, match="not empty"), new_folder(out):
        entered = True
    assert not entered
    assert names(tmp_path) == ["out"]
    assert names(out) == ["mine"]


def test_a_file_is_no_folder_to_replace(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(NotADirectoryError), new_folder(tmp_path / "out", replace=True):
        pass
    assert names(tmp_path) == ["out"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as building:
        (building / "new").touch()
    assert names(tmp_path / "out") == ["new"]


def test_a_folder_that_is_replaced_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()

    def fail() -> None:
        with new_folder(out, replace=True) as building:
            (building / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert names(out) == ["old"]
    with new_folder(out, replace=True) as building:
        (building / "new").touch()
        assert names(out) == ["old"]
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_the_old_folder_comes_back_where_the_new_one_cannot_be_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="Input/output"), new_folder(out, replace=True):
        pass
    assert names(out) == ["old"]
    assert names(tmp_path) == ["out"]


KILLED = """
import sys, time
from pathlib import Path
from madclip.files import new_file, new_folder
out = Path(sys.argv[1])
with new_folder(out / "folder", replace=True) as building, new_file(out / "file") as partial:
    (building / "half").touch()
    partial.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    (tmp_path / "file").write_text("old")
    with subprocess.Popen([sys.executable, "-c", KILLED, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert names(tmp_path / "folder") == ["old"]
    assert (tmp_path / "file").read_text() == "old"
    left = set(names(tmp_path)) - {"folder", "file"}
    assert all(name.startswith(".") and name.endswith(".partial") for name in left)
    write_whole(tmp_path / "file", "new")  # what it left is in nobody's way
    assert (tmp_path / "file").read_text() == "new"


def test_a_full_disk_is_told_with_the_file_that_was_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(ENOSPC, "No space left on device")  # as a write says it: without a name

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left") as error:
            write_whole(tmp_path / "report.html", "text")
    assert error.value.filename == str(tmp_path / "report.html")
    with pytest.raises(OSError, match="nothing there") as error, new_file(tmp_path / "a"):
        raise OSError(ENOENT, "nothing there", "another")
    assert error.value.filename == "another"
    assert not list(tmp_path.iterdir())


def test_digest_is_sha_256(tmp_path: Path) -> None:
    content = os.urandom(300_001)
    (tmp_path / "a").write_bytes(content)
    assert digest(tmp_path / "a") == sha256(content).hexdigest()


def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    asked = []

    @until_changed(1)
    def read(path: Path) -> str:
        """What it holds."""
        asked.append(path.name)
        return path.read_text()

    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("a")
    other.write_text("b")
    assert [read(one), read(one), read(other), read(one)] == ["a", "a", "b", "a"]
    assert asked == ["one", "other", "one"]
    one.write_text("longer")
    assert read(one) == "longer"
    assert read.__doc__ == "What it holds."
    asked.clear()
    one.write_text("once for all threads")
    with ThreadPoolExecutor(4) as threads:
        assert {*threads.map(read, [one] * 20)} == {"once for all threads"}
    assert asked == ["one"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (ValueError(" \n"), "ValueError"),
        (ValueError("x" * 500), "x" * 200),
    ],
)
def test_the_first_line_of_an_error(error: ValueError, said: str) -> None:
    assert first_line(error) == said


def test_what_stands_between_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- t -->\nold\n<!-- end t -->\nb\n")
    write_between(page, "t", "new\n\n")
    assert page.read_text() == "a\n<!-- t -->\nnew\n<!-- end t -->\nb\n"
    with pytest.raises(DataError, match="has no <!-- u -->"):
        write_between(page, "u", "new")
