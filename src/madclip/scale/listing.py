"""What an archive run works on: images that were found in folders, or the rows of a listing, however many there are."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

from madclip.data.manifests import IMAGE_COLUMNS
from madclip.errors import DataError, MissingExtraError
from madclip.files import first_line

if TYPE_CHECKING:
    from madclip.data.ref import ImageRef

AXES = ("", "axial", "coronal", "sagittal")
SUFFIXES = (".csv", ".parquet", ".jsonl")
"""How the name of a listing ends."""
READ = 4096
"""Rows of a Parquet file that are held in memory at once."""


class Entry(NamedTuple):
    """One image, or a file whose images are all meant.

    Attributes:
        number: Its place in the source, from 0.
        image: The path of the file, or a URL that fsspec opens.
        frame: Index of the frame or slice; None where all images of the file are meant.
        axis: `coronal` or `sagittal` where a volume is cut so, else empty.
    """

    number: int
    image: str
    frame: int | None = None
    axis: str = ""


Source: TypeAlias = Callable[[], Iterable[Entry]]
"""Gives the entries, the same each time that it is called."""


@dataclass(frozen=True)
class Survey:
    """What a source holds.

    Attributes:
        count: Number of entries.
        sha256: Digest of all of them in order.
    """

    count: int
    sha256: str


def is_url(name: str | Path) -> bool:
    """Whether a name is one that fsspec opens, and no path."""
    return "://" in str(name)


def is_listing(name: str | Path) -> bool:
    """Whether a name is that of a listing."""
    return PurePosixPath(str(name).partition("?")[0]).suffix.lower() in SUFFIXES


def found(images: Sequence[ImageRef]) -> Source:
    """The source of images that were found already."""
    return lambda: (Entry(n, str(image.path), image.frame, image.axis) for n, image in enumerate(images))


def listing(name: str) -> Source:
    """The source of the rows of a listing: CSV, JSON lines or Parquet, read as they are asked for.

    The column `image` (or another of `IMAGE_COLUMNS`) holds paths, relative to the listing's own folder, or URLs; the
    columns `frame` and `axis` need not be there, and all others are passed over.

    Args:
        name: The path of the listing, or a URL that fsspec opens. What is wrong with it is raised where it is read.
    """

    def entries() -> Iterator[Entry]:
        folder = name.rpartition("/")[0] if is_url(name) else str(Path(name).parent)
        kind = PurePosixPath(name.partition("?")[0]).suffix.lower()
        rows = {".csv": _csv_rows, ".parquet": _parquet_rows, ".jsonl": _jsonl_rows}[kind]
        try:
            for number, row in enumerate(rows(name)):
                yield _entry(number, row, folder, name)
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            raise DataError(f"{name}: cannot be read ({first_line(error)})") from error

    return entries


def survey(source: Source, name: str, out: Path) -> Survey:
    """Go through a source once, before anything is computed: count it, and refuse what could not be worked on.

    Eight bytes are held for each entry.

    Args:
        source: The entries.
        name: What errors call the source.
        out: Where results go; no image may lie there.

    Raises:
        DataError: There is no entry, one cannot be used, lies in `out`, or is there twice; rows are named.
        MissingExtraError: Nothing is installed that opens the URLs.
    """
    total, known, schemes = hashlib.sha256(), array("Q"), set()
    within = str(out.resolve()) + os.sep
    for entry in source():
        key = json.dumps(entry[1:]).encode()
        total.update(key + b"\n")
        known.append(_short(key))
        if is_url(entry.image):
            schemes.add(entry.image.partition("://")[0])
        elif os.path.abspath(entry.image).startswith(within):  # noqa: PTH100  (resolve() asks the disk)
            raise DataError(f"{entry.image}: lies in {out}, where the results go; name another folder for them")
    if not known:
        raise DataError(f"{name}: lists no image")
    for scheme in sorted(schemes):
        check_scheme(scheme, name)
    _refuse_twice(source, known, name)
    return Survey(len(known), total.hexdigest())


def check_scheme(scheme: str, name: str) -> None:
    """See that something is installed that opens URLs of a kind.

    Raises:
        DataError: No library is known that does.
        MissingExtraError: It is not installed.
    """
    try:
        from fsspec import get_filesystem_class
    except ImportError as error:
        raise MissingExtraError.of(f"{scheme}:// needs fsspec", "archive", first_line(error)) from error
    try:
        get_filesystem_class(scheme)
    except ValueError as error:
        raise DataError(f"{name}: nothing opens {scheme}:// ({first_line(error)})") from error
    except ImportError as error:
        raise MissingExtraError(f"{scheme}:// needs a library of its own beside fsspec: {first_line(error)}") from error


def opened(name: str, mode: str, **text: Any) -> IO[Any]:
    """A file that a path or a URL names.

    Raises:
        OSError: It cannot be opened.
        MissingExtraError: Nothing is installed that opens such a URL.
    """
    if not is_url(name):
        return Path(name).open(mode, **text)
    check_scheme(name.partition("://")[0], name)
    from fsspec import open as open_url

    file: IO[Any] = open_url(name, mode, **text).open()
    return file


def _short(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def _refuse_twice(source: Source, known: array[int], name: str) -> None:
    """Refuse a source that names an image twice; which it is, a second pass finds out."""
    import numpy as np

    keys = np.frombuffer(known, np.uint64).copy()
    keys.sort()
    alike = {int(key) for key in keys[1:][keys[1:] == keys[:-1]]}
    if not alike:
        return
    first: dict[bytes, int] = {}
    for entry in source():
        key = json.dumps(entry[1:]).encode()
        if _short(key) in alike and first.setdefault(key, entry.number) != entry.number:
            places = f"rows {_row(first[key], name)} and {_row(entry.number, name)}"
            raise DataError(f"{name}: {entry.image} is listed twice, in {places}; list each image once")


# Rows


def _row(number: int, name: str) -> int:
    """The row of an entry as a person counts it: a CSV's first one holds the names."""
    return number + (2 if PurePosixPath(name).suffix.lower() == ".csv" else 1)


def _entry(number: int, row: tuple[Any, Any, Any], folder: str, name: str) -> Entry:
    image, frame, axis = row
    where = f"{name}, row {_row(number, name)}"
    if not isinstance(image, str) or not image.strip():
        raise DataError(f"{where}: image is {_shown(image)}, and no path or URL")
    axis = "" if axis is None else axis
    if not isinstance(axis, str) or axis.lower() not in AXES:
        raise DataError(f"{where}: axis {_shown(axis)} is unknown; use axial, coronal, sagittal or nothing")
    index = _frame(frame, where)
    plane = "" if index is None or axis.lower() == "axial" else axis.lower()
    if not is_url(image):
        image = f"{folder}/{image}" if is_url(folder) else str(Path(folder, image))
    return Entry(number, image, index, plane)


def _frame(value: Any, where: str) -> int | None:
    """A frame's index: a whole number, also as text or as the float that pandas makes of it."""
    if value is None or value == "" or value != value:
        return None
    try:
        index = int(value)
        whole = index >= 0 and float(value) == index and not isinstance(value, bool)
    except (ValueError, TypeError, OverflowError):
        whole = False
    if not whole:
        raise DataError(f"{where}: frame {_shown(value)} is no whole number from 0")
    return index


def _shown(value: Any) -> str:
    return repr(value)[:60]


def _columns(names: Sequence[str], name: str) -> tuple[str, str | None, str | None]:
    """The columns that hold image, frame and axis."""
    image = next((column for column in IMAGE_COLUMNS if column in names), None)
    if image is None:
        there = ", ".join(map(str, names[:8])) or "none"
        raise DataError(f"{name}: no column called image (there are: {there})")
    return image, "frame" if "frame" in names else None, "axis" if "axis" in names else None


def _csv_rows(name: str) -> Iterator[tuple[Any, Any, Any]]:
    with opened(name, "rt", encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        delimiter = max(",;\t", key=header.count)
        names = [field.strip().lower() for field in next(csv.reader([header], delimiter=delimiter), [])]
        places = [None if column is None else names.index(column) for column in _columns(names, name)]
        for number, row in enumerate(csv.reader(file, delimiter=delimiter, strict=True)):
            if not row:
                raise DataError(f"{name}, row {_row(number, name)}: is empty; remove it")
            if len(row) != len(names):
                raise DataError(f"{name}, row {_row(number, name)}: has {len(row)} fields, the header {len(names)}")
            image, frame, axis = (None if place is None else row[place] for place in places)
            yield image, frame, axis


def _jsonl_rows(name: str) -> Iterator[tuple[Any, Any, Any]]:
    with opened(name, "rt", encoding="utf-8-sig") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise DataError(f"{name}, row {_row(number, name)}: is no object with an image")
            image, frame, axis = (column and row.get(column) for column in _columns(list(row), name))
            yield image, frame, axis


def _parquet_rows(name: str) -> Iterator[tuple[Any, Any, Any]]:
    from madclip.scale.parquet import parquet

    with opened(name, "rb") as file:
        table = parquet().ParquetFile(file)
        columns = _columns(table.schema_arrow.names, name)
        for batch in table.iter_batches(READ, columns=[column for column in columns if column]):
            empty = [None] * batch.num_rows
            image, frame, axis = (batch[column].to_pylist() if column else empty for column in columns)
            yield from zip(image, frame, axis, strict=True)


def batched(entries: Iterable[Entry], size: int) -> Iterator[tuple[Entry, ...]]:
    """Entries in groups of a size, of which the last may be smaller."""
    iterator = iter(entries)
    while group := tuple(islice(iterator, size)):
        yield group
