"""Tables of a download: rows with the columns that are needed, and where each stands."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


def read_rows(table: Path, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Where a row stands, for messages, and its values without spaces around them.

    Raises:
        DataError: Not a CSV table, or a column is missing.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in columns if name not in (rows.fieldnames or ())]
            if missing:
                raise DataError(f"{table}: no column {', '.join(missing)}")
            for row in rows:
                yield f"{table}: line {rows.line_num}", {k: (v or "").strip() for k, v in row.items() if k}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: not a CSV table ({error})") from error


def find_table(source: Path, name: str) -> Path:
    """The table of that name, at any depth.

    Raises:
        DataError: There is none.
    """
    found = sorted(path for path in source.rglob(name) if path.is_file())
    if not found:
        raise DataError(f"{source}: no {name}; is the download complete?")
    return found[0]
