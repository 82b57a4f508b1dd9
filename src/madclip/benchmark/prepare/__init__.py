"""From an original download to the layout of BMAD, one module for each original."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from madclip.benchmark.prepare import adni, brain, chest, chexpert, histology, liver, nih, oct2017, octdl, resc
from madclip.benchmark.prepare.layout import write_set
from madclip.benchmark.registry import registered
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from madclip.benchmark.prepare.layout import Original


class Source(Protocol):
    """What a module of an original has."""

    RULE: str
    """How images, labels and splits come about."""

    def read_originals(self, source: Path, seed: int) -> Sequence[Original]:
        """Every image of the download with its split."""


ORIGINALS: dict[str, Source] = {
    "BrainMRI": brain,
    "LiverCT": liver,
    "RESC": resc,
    "OCT17": oct2017,
    "Chest": chest,
    "HIS": histology,
    "NIHChest": nih,
    "CheXpert": chexpert,
    "ADNI": adni,
    "OCTDL": octdl,
}
"""By registered name."""


def prepare(
    name: str,
    source: Path | str,
    out: Path | str,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Build a registered set from its original download.

    Files that are images already are copied; `manifest.csv` names patients and splits, `prepared.json` states the rule.

    Args:
        name: A registered set or an alias of it.
        source: The unpacked download.
        out: A folder that is not there yet, or empty; written beside it and renamed.
        seed: Determines our own split, by patient.
        progress: Called with (done, total) images.

    Returns:
        What `prepared.json` holds.

    Raises:
        RecipeError: There is no such set.
        DataError: The set cannot be prepared, the download has another structure, or the folder cannot be written.
    """
    entry = registered(name)
    source = Path(source)
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; unpack the download of {entry.name} first")
    original = ORIGINALS[entry.name]
    return write_set(
        original.read_originals(source, seed), Path(out), entry, original.RULE, seed=seed, progress=progress
    )
