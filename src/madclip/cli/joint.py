"""Several sets on one command line: each is named by what its images show, `Brain=FOLDER`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from madclip.cli.options import read_dataset, said_of_data
from madclip.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.data.samples import Dataset, Reading
    from madclip.detector import MadCLIP
    from madclip.state import Fitted
    from madclip.storage import Saved


def read_sets(named: Sequence[Path], reading: Reading, *, force: bool) -> dict[str, Dataset]:
    """The data sets of a joint fit by objective, which a registered set need not be given; errors as `read_dataset`.

    Raises:
        RecipeError: What a set shows is not said, or two show the same.
    """
    sets: dict[str, Dataset] = {}
    for one in named:
        objective, folder = _objective(one)
        if objective in sets:
            raise RecipeError(f"{folder}: {objective!r} is named twice: each modality has one set")
        sets[objective] = read_dataset(folder, reading, force=force)
    return sets


def _objective(named: Path) -> tuple[str, Path]:
    from madclip.benchmark.plan import prepared_set
    from madclip.benchmark.registry import by_folder

    objective, given, folder = str(named).partition("=")
    if given and objective.strip() and not named.exists():
        return objective.strip(), Path(folder)
    entry = (prepared_set(named) if named.is_dir() else None) or by_folder(named.name)
    if entry is None:
        raise RecipeError(f"{named}: say what its images show, for example 'Brain={named}'")
    return entry.objective, named


def said_of_sets(sets: dict[str, Dataset]) -> dict[str, str]:
    """What people should know of each data set, by its name and what is said."""
    each = ((name, said_of_data(one).items()) for name, one in sets.items())
    return {f"{name}, {what}": f"{name}: {line}" for name, said in each for what, line in said}


def said_of_modalities(detector: MadCLIP) -> list[str]:
    """One line on what was learned of each modality."""
    lines = []
    for name, part in detector.state.modalities.items():
        facts, known = part.provenance, part.calibration
        said = f"threshold {known.threshold:.4f}" if known else facts.uncalibrated
        if known and facts.calibrated_before_refit:
            said += " from before the refit"
        lines.append(f"{name}: {facts.learned} ({facts.masks} with masks), {said}")
    return lines


def why_uncalibrated(of: Fitted | Saved) -> list[str]:
    """Why a detector has no thresholds, or of a joint one each modality that has none; a line each."""
    if not of.modalities:
        return [line for line in (of.provenance.uncalibrated,) if line]
    said = ((name, part.provenance.uncalibrated) for name, part in of.modalities.items())
    return [f"{name}: {line}" for name, line in said if line]
