"""The table of an archive run: one typed row for each image, in Parquet files that are each written whole."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, NamedTuple

from madclip.errors import DataError, MissingExtraError
from madclip.files import first_line, write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SCHEMA = 1
"""Version of the columns; docs/scale.md describes them."""
COLUMNS = {
    "number": "int64",
    "image": "string",
    "frame": "int32",
    "axis": "string",
    "score": "float64",
    "threshold": "float64",
    "decision": "string",
    "probability": "float64",
    "p_value": "float64",
    "verdict": "string",
    "familiar": "bool",
    "note": "string",
    "error": "string",
    "map": "string",
    "detector": "string",
    "detector_sha256": "string",
    "madclip": "string",
}
"""Type of each column: the fields of `madclip.prediction.Row`, between where an image is and what said it."""
REQUIRED = ("number", "image", "note", "detector", "detector_sha256", "madclip")
"""Columns in which every row has a value."""


class Counts(NamedTuple):
    """How many rows there are, by what they say.

    Attributes:
        entries: Entries of the source that the rows are of; a file of several images has a row for each.
        rows: All rows.
        failed: Rows with an error.
    """

    entries: int = 0
    rows: int = 0
    failed: int = 0

    def plus(self, other: Counts) -> Counts:
        """The sums of both."""
        return Counts(self.entries + other.entries, self.rows + other.rows, self.failed + other.failed)


def parquet() -> Any:
    """The module `pyarrow.parquet`.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import pyarrow.parquet as found
    except ImportError as error:
        raise MissingExtraError.of("Parquet needs pyarrow", "archive", first_line(error)) from error
    return found


def write_part(path: Path, rows: Sequence[dict[str, Any]], entries: int) -> Counts:
    """Write rows as one file in one step; the same rows give the same bytes.

    Args:
        path: Where it goes.
        rows: Values of `COLUMNS`; text that is no valid Unicode is written with backslashes.
        entries: How many entries of the source the rows are of.

    Raises:
        DataError: It cannot be written.
    """
    writer = parquet()
    import pyarrow as pa

    fields = [
        pa.field(name, getattr(pa, kind.replace("bool", "bool_"))(), name not in REQUIRED)
        for name, kind in COLUMNS.items()
    ]
    schema = pa.schema(fields, {"madclip.schema": str(SCHEMA), "madclip.entries": str(entries)})
    text = [name for name, kind in COLUMNS.items() if kind == "string"]
    columns = {name: [row.get(name) for row in rows] for name in COLUMNS}
    for name in text:
        columns[name] = [value and value.encode("utf-8", "backslashreplace").decode() for value in columns[name]]
    file = io.BytesIO()
    writer.write_table(pa.table(columns, schema), file, compression="zstd", use_dictionary=text)
    try:
        write_whole(path, file.getvalue())
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    return Counts(entries, len(rows), sum(error is not None for error in columns["error"]))


def count_part(path: Path) -> Counts:
    """What a file that `write_part` wrote holds, from its footer.

    Raises:
        DataError: It is damaged.
    """
    try:
        found = parquet().read_metadata(path)
        groups = [found.row_group(number) for number in range(found.num_row_groups)]
        place = found.schema.names.index("error")
        empty = sum(group.column(place).statistics.null_count for group in groups)
        return Counts(int(found.metadata[b"madclip.entries"]), found.num_rows, found.num_rows - empty)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: damaged; delete it and run the command again") from error
