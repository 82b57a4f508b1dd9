"""What is written whole or not at all: folders, and parts of a page."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name at the end, and is removed if something went wrong.

    Raises:
        OSError: A folder cannot be made there, or `out` holds something.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield building
        building.chmod(0o755)
        building.replace(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


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
    partial = page.with_name(f"{page.name}.partial")
    partial.write_text(f"{before}{start}\n{text.rstrip()}\n{end}{rest.partition(end)[2]}", encoding="utf-8")
    partial.replace(page)
