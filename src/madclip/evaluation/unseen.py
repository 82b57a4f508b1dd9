"""Which test images may be measured: what a detector has seen, for whatever purpose, is never measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from madclip.data.readers import is_scanner_file
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.data.samples import Dataset, Sample
    from madclip.state import Provenance

OPTIMISTIC = "every number here is optimistic"
SHOWN = 5
"""Files that a warning names."""


def unseen(provenance: Provenance, dataset: Dataset, *, same_patient: bool) -> tuple[list[Sample], list[str]]:
    """Test images that may be measured, and sentences that count and name the others by what they were used for.

    Args:
        provenance: What the detector has seen.
        dataset: The data set, of which the test images are taken.
        same_patient: Whether other images of patients and volumes that were seen may be measured; a sentence then says
            that they were.

    Raises:
        DataError: There are no test images, or none is left.
    """
    pool = dataset.test_pool
    if not pool:
        raise DataError(f"{dataset.root}: no test images (no test/ folder, and all images belong to other splits)")
    uses = _uses(provenance)
    left: list[Sample] = []
    related: list[int] = []
    seen: dict[str, list[int]] = {}
    for number, sample in enumerate(pool):
        use = uses.get(_identity(sample)) if uses else None
        if use is not None:
            seen.setdefault(use, []).append(number)
            continue
        if provenance.saw_group(sample):
            related.append(number)
            if not same_patient:
                continue
        left.append(sample)
    if not left:
        raise DataError(
            f"{dataset.root}: the detector has seen all {len(pool)} test images or others of the same patients; "
            "evaluate on others"
        )
    said = [
        listed(f"{len(seen[use])} test images {use} and were left out", _names(dataset, seen[use]))
        for use in sorted(seen)
    ]
    return left, [*said, *_of_patients(provenance, left, _names(dataset, related), same_patient=same_patient)]


def _names(dataset: Dataset, numbers: Sequence[int]) -> list[str]:
    """Test images as they may be named in a report: names of scanner files often are a patient's."""
    pool = dataset.test_pool
    images = [(number, pool[number].image) for number in numbers]
    return [f"test image {number}" if is_scanner_file(image.path) else dataset.name(image) for number, image in images]


def _identity(sample: Sample) -> str:
    """The image's digest; nothing where its file cannot be opened, which is told when it is to be scored."""
    try:
        return sample.image.digest()
    except OSError:
        return ""


def _uses(provenance: Provenance) -> dict[str, str]:
    """What each image that was seen was used for, by its digest."""
    return {
        **dict.fromkeys(provenance.removed, "were used before a refit without them"),
        **dict.fromkeys(provenance.calibrated_on, "were used for thresholds and probabilities"),
        **dict.fromkeys(provenance.selection_images, "were used to choose the epoch"),
        **dict.fromkeys(provenance.shots, "are among the shots"),
    }


def _of_patients(
    provenance: Provenance, left: Sequence[Sample], related: Sequence[str], *, same_patient: bool
) -> list[str]:
    """What to say of images that share a patient or a volume with one that was seen."""
    if same_patient:
        count = f"{len(related)} of {len(left)}"
        return [f"Other images of patients and volumes that were seen are measured too ({count}): {OPTIMISTIC}."]
    if related:
        what = f"{len(related)} test images are of patients or volumes of which the detector has seen other images"
        return [listed(f"{what}, and were left out", related)]
    if provenance.seen and not provenance.groups and any(sample.group is not None for sample in left):
        return ["It is not known whose images the detector has seen: others of those patients may be measured here."]
    return []


def listed(what: str, names: Sequence[str]) -> str:
    """A sentence that names the first few of many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what}: {'; '.join(names[:SHOWN])}{more}."
