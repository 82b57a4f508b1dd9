"""Files of an archive, brought to where a reader can open them."""

from __future__ import annotations

import shutil
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from madclip.data.readers import read_many
from madclip.errors import DataError
from madclip.files import first_line
from madclip.scale.listing import is_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from madclip.scale.listing import Entry

FETCHERS = 4
"""Threads that fetch files while others are computed."""


class File(NamedTuple):
    """A file that is at hand.

    Attributes:
        entries: Neighbours in the source that name it.
        path: Where it can be opened; where nothing is, for one that could not be fetched.
        error: Why it could not be fetched.
        fetched: Whether it is a copy, to be removed when it was read.
    """

    entries: tuple[Entry, ...]
    path: Path
    error: DataError | None = None
    fetched: bool = False


def at_hand(entries: Iterable[Entry], folder: Path) -> Iterator[File]:
    """The files of entries in order, some fetched ahead; those at a URL are copied into a folder, under a number."""
    groups = [tuple(group) for _, group in groupby(entries, attrgetter("image"))]

    def fetch(group: tuple[Entry, ...]) -> File:
        return _fetch(group, folder / str(group[0].number))

    for group, found in read_many(groups, fetch, workers=FETCHERS, ahead=2 * FETCHERS):
        yield File(group, folder / "none", found) if isinstance(found, DataError) else found


def _fetch(entries: tuple[Entry, ...], target: Path) -> File:
    name = entries[0].image
    if not is_url(name):
        return File(entries, Path(name))
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(name)
        if getattr(files, "local_file", False):
            return File(entries, Path(path))
        with files.open(path, "rb") as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, 1 << 20)
    except Exception as error:
        target.unlink(missing_ok=True)
        raise DataError(f"{name}: cannot be fetched ({first_line(error)})") from error
    return File(entries, target, fetched=True)
