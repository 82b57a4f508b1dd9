"""From an original download to the layout of BMAD, one module for each original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from madclip.benchmark.prepare import oct2017, octdl
from madclip.benchmark.prepare.layout import write_set
from madclip.benchmark.registry import registered
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from madclip.benchmark.prepare.layout import Original

ORIGINALS: dict[str, Callable[[Path, int], Sequence[Original]]] = {
    "OCT17": oct2017.read_originals,
    "OCTDL": octdl.read_originals,
}
"""By registered name: reads (download, seed) and gives every image its split."""


def prepare(
    name: str,
    source: Path | str,
    out: Path | str,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Build a registered set from its original download.

    Images are copied as they are; `manifest.csv` names patients and splits, `prepared.json` says how they were split.

    Args:
        name: A registered set or an alias of it.
        source: The unpacked download.
        out: A folder that is not there yet, or empty; written beside it and renamed.
        seed: Of our own split, by patient.
        progress: Called with (done, total) images.

    Returns:
        What `prepared.json` holds.

    Raises:
        RecipeError: There is no such set.
        DataError: The set cannot be prepared, the download has another structure, or the folder cannot be written.
    """
    entry = registered(name)
    if entry.name not in ORIGINALS:
        raise DataError(
            f"{entry.name} cannot be prepared from its original (only {', '.join(ORIGINALS)} can); "
            f"lay it out as {entry.layout}, or get it ready made: {entry.obtain}"
        )
    source = Path(source)
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; unpack the download of {entry.name} first")
    originals = ORIGINALS[entry.name](source, seed)
    return write_set(originals, Path(out), entry, seed=seed, progress=progress)
