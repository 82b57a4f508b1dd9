"""Files and folders that are written whole or not at all, and what a file is known by."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
from contextlib import contextmanager
from errno import EDQUOT, ENOSPC, ENOTEMPTY
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, TypeVar

from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

T = TypeVar("T")


@contextmanager
def new_file(path: Path, mode: int | None = None) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place at the end, and is removed after an error or an interrupt.

    Whoever reads `path` meanwhile sees the old file or the new one, never a part. Missing folders above it are made.
    A process that is killed leaves the temporary file, which is hidden and ends in `.partial`.

    Args:
        path: Where the file goes; a link is followed.
        mode: Its permissions, else those of the file that is replaced, else what the umask gives.

    Raises:
        OSError: A file cannot be written there.
    """
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(path, "partial")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode))
        kept = mode if mode is not None else (path if path.exists() else partial).stat().st_mode & 0o7777
        yield partial
        partial.chmod(kept)  # a writer may have put a file of its own there
        partial.replace(path)
    except OSError as error:
        # A full disk names no file, and the temporary one is not what anybody asked for.
        if error.filename == str(partial) or (error.filename is None and error.errno in (ENOSPC, EDQUOT)):
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes, mode: int | None = None) -> None:
    """Write a small file, text as UTF-8, in one step that cannot be seen half done; see `new_file`.

    Raises:
        OSError: A file cannot be written there.
    """
    with new_file(path, mode) as partial:
        partial.write_bytes(content if isinstance(content, bytes) else content.encode())


@contextmanager
def new_folder(out: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its place at the end, and is removed after an error or an interrupt.

    Args:
        out: Where the folder goes; a link is followed.
        replace: Whether a folder that is there gives way; it stays as it is until the new one is whole.

    Raises:
        OSError: A folder cannot be made there, or `out` holds something that is not to be replaced.
    """
    out = out.resolve()
    if out.exists() and any(out.iterdir()) and not replace:
        raise OSError(ENOTEMPTY, os.strerror(ENOTEMPTY), str(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    building = _beside(out, "partial")
    building.mkdir()
    try:
        yield building
        if replace and out.exists():
            _exchange(building, out)
        else:
            building.replace(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _exchange(new: Path, out: Path) -> None:
    """Put a folder in the place of another, which comes back if that fails."""
    old = _beside(out, "old")
    out.rename(old)
    try:
        new.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path, kind: str) -> Path:
    """A hidden name that nobody can foresee, and that no file system finds too long."""
    return path.with_name(f".{path.name[:32]}.{secrets.token_hex(8)}.{kind}")


def digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def until_changed(count: int) -> Callable[[Callable[[Path], T]], Callable[[Path], T]]:
    """Remembers what a function of a path gave, of the last `count` files and as long as size and time stay the same.

    Threads that ask for one file at a time have it read once.
    """

    def remembering(function: Callable[[Path], T]) -> Callable[[Path], T]:
        lock = threading.Lock()

        @lru_cache(maxsize=count)
        def known(path: Path, size: int, changed: int) -> T:  # noqa: ARG001  (they tell one state from the next)
            return function(path)

        @wraps(function)
        def remembered(path: Path) -> T:
            state = path.stat()
            with lock:
                return known(path, state.st_size, state.st_mtime_ns)

        return remembered

    return remembering


def first_line(error: BaseException) -> str:
    """What an error of another library says, for a message of one line: 200 characters at most."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def write_between(page: Path, name: str, text: str) -> None:
    """Replace what stands on a page between `<!-- NAME -->` and `<!-- end NAME -->`.

    Raises:
        DataError: The page cannot be read, or has no such marks.
    """
    start, end = f"<!-- {name} -->", f"<!-- end {name} -->"
    try:
        whole = page.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{page}: cannot be read ({error})") from error
    if start not in whole or end not in whole:
        raise DataError(f"{page}: has no {start} and {end} to write between")
    before, _, rest = whole.partition(start)
    write_whole(page, f"{before}{start}\n{text.rstrip()}\n{end}{rest.partition(end)[2]}")
