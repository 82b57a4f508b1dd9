"""Where results may go: what is there already is not replaced unless the user says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

_PAGE = b"<!doctype html"


def check_detector(out: Path, *, overwrite: bool) -> None:
    """A detector may be written to a new or empty folder, or over another one where the user says so.

    Raises:
        DataError: There is something else, or a detector that is not to be replaced.
    """
    from madclip.storage import check_target

    check_target(out)
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out}: there is a detector already; choose another folder, or replace it with --overwrite")


def check_page(out: Path, *, overwrite: bool) -> None:
    """A report may be written to a new file, or over another HTML page where the user says so.

    Raises:
        DataError: There is something else, or a page that is not to be replaced.
    """
    if not out.exists():
        return
    if not out.is_file() or not _is_page(out):
        raise DataError(f"{out}: is there already and is no report; choose another name")
    if not overwrite:
        raise DataError(f"{out}: is there already; choose another name, or replace it with --overwrite")


def check_file(out: Path, *, overwrite: bool) -> None:
    """A table or a list may be written to a new file, or over another one where the user says so.

    Raises:
        DataError: There is a folder, or a file that is not to be replaced.
    """
    if out.exists() and not out.is_file():
        raise DataError(f"{out}: is there already and is no file; choose another name")
    if out.exists() and not overwrite:
        raise DataError(f"{out}: exists; name another file with --out, or replace it with --overwrite")


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_PAGE)).lower() == _PAGE


def check_runs(out: Path, command: str) -> None:
    """Runs of `repeat` or `bench` may be written to a new or empty folder, or go on in one of theirs.

    Raises:
        DataError: There is something else.
    """
    if out.exists() and not (out.is_dir() and ((out / "plan.json").exists() or not any(out.iterdir()))):
        raise DataError(f"{out}: is there already and holds no runs of `madclip {command}`; choose another folder")
