"""What anomaly maps are measured by, in one pass over them that keeps none: pixel metrics, and overlap with lesions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from madclip.errors import DataError
from madclip.evaluation.gallery import shrink
from madclip.evaluation.result import by_patient
from madclip.metrics import intervals
from madclip.metrics.image import Estimate
from madclip.metrics.pixel import PixelHistogram, check_map, dice, surface_dice
from madclip.metrics.quantiles import PixelQuantiles
from madclip.metrics.scored import Scored

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from madclip.evaluation.result import ImageRow

    Map = NDArray[np.float32]
    Mask = NDArray[np.bool_]
    Maps: TypeAlias = Iterable[tuple[NDArray[np.floating], Mask | None]]

NO_MAPS = "no anomaly maps were given"
NO_MASKED = "no abnormal image has a mask"
NO_THRESHOLD = "no threshold was fixed beforehand"


@dataclass
class MapsRead:
    """What is kept of anomaly maps once they were read.

    Attributes:
        rows: The rows of all images, with the overlap of those whose pixels are known.
        histogram: Counts of all known pixels.
        quantiles: A few quantiles of each known map.
        members: Indices of the images whose pixels are known: normal ones, and abnormal ones with a mask.
        shown: Small copies of the few maps and masks that were asked for, by index.
    """

    rows: list[ImageRow]
    histogram: PixelHistogram = field(default_factory=PixelHistogram)
    quantiles: PixelQuantiles = field(default_factory=PixelQuantiles)
    members: list[int] = field(default_factory=list)
    shown: dict[int, tuple[Map, Mask | None]] = field(default_factory=dict)

    @property
    def masked(self) -> int:
        """Number of abnormal images with a mask."""
        return sum(self.rows[index].label == 1 for index in self.members)


def read_maps(rows: Sequence[ImageRow], maps: Maps, threshold: float | None, wanted: Container[int]) -> MapsRead:
    """Read each map and its mask once.

    Args:
        rows: [N], the images in the order of the maps.
        maps: N pairs of a map [H, W] in 0..1 and its mask [H, W] or None.
        threshold: The value from which a pixel is called anomalous; None where there is none.
        wanted: Indices of images of whose maps and masks small copies are kept.

    Raises:
        DataError: There are more or fewer maps than images, a map cannot be used, or a mask marks a lesion in an image
            that is labelled normal.
    """
    read = MapsRead(list(rows))
    count = 0
    for index, (scores, mask) in enumerate(maps):
        count += 1
        if index >= len(rows):
            break
        row = rows[index]
        checked = check_map(np.asarray(scores), mask, row.name)
        if mask is not None and row.label == 0 and mask.any():
            raise DataError(f"{row.name}: labelled normal, but its mask marks {int(mask.sum())} abnormal pixels")
        if index in wanted:
            read.shown[index] = shrink(checked), None if mask is None else shrink(mask)
        if row.label == 1 and mask is None:
            continue
        read.histogram.update(checked, mask, row.name)
        read.quantiles.update(checked, mask)
        read.members.append(index)
        if threshold is not None:
            read.rows[index] = _with_overlap(row, checked, mask, threshold)
    if count != len(rows):
        raise DataError(f"there are {count} anomaly maps for {len(rows)} images; one each is needed")
    return read


def _with_overlap(row: ImageRow, scores: Map, mask: Mask | None, threshold: float) -> ImageRow:
    called = scores >= threshold
    lesion = np.zeros(scores.shape, np.bool_) if mask is None else mask
    outside = int((~lesion).sum())
    area = float((called & ~lesion).sum() / outside) if outside else None
    if not lesion.any():
        return replace(row, false_area=area)
    return replace(row, dice=dice(called, lesion), surface_dice=surface_dice(called, lesion), false_area=area)


def pixel_metrics(read: MapsRead, data: Scored, level: float, seed: int, *, missing: str) -> dict[str, Estimate]:
    """AUROC, average precision and AUPRO over all known pixels, with intervals over patients.

    Args:
        read: What was kept of the maps.
        data: The images of which these are the maps.
        level: Coverage that intervals aim at.
        seed: Determines the bootstrap.
        missing: Why there is nothing to measure, where no abnormal image has a mask.
    """
    names = ("pixel_auroc", "pixel_ap", "aupro")
    if not read.masked:
        return dict.fromkeys(names, Estimate(None, reason=missing))
    owners = None if data.patients is None else [data.patients[index] for index in read.members]
    found = read.quantiles.intervals(read.histogram, level, patients=owners, seed=seed)
    return dict(zip(names, found, strict=True))


def overlap_metrics(
    rows: Sequence[ImageRow], data: Scored, level: float, seed: int, *, missing: str
) -> dict[str, Estimate]:
    """Means over images, and over patients, of how well maps at the fixed threshold cover the lesions.

    Args:
        rows: [N], with their overlap.
        data: The same images.
        level: Coverage that intervals aim at.
        seed: Determines the bootstrap.
        missing: Why there is nothing to measure, where no row has an overlap.
    """
    found: dict[str, Estimate] = {}

    def mean(labels: Sequence[int], values: Sequence[float], patients: Sequence[object] | None) -> Estimate:
        images = Scored.of(labels, values, patients=patients)
        return intervals.bootstrap_interval(images, level, statistic=intervals.weighted_mean, seed=seed)

    for name in ("dice", "surface_dice", "false_area"):
        held = [(i, getattr(row, name)) for i, row in enumerate(rows) if getattr(row, name) is not None]
        if not held:
            found[name] = Estimate(None, reason=missing)
            continue
        owners = None if data.patients is None else [data.patients[i] for i, _ in held]
        found[name] = mean([rows[i].label for i, _ in held], [value for _, value in held], owners)
    overlap = [patient["dice"] for patient in by_patient(rows) if patient["dice"] is not None]
    if data.patients is not None and overlap:
        found["patient_dice"] = mean([1] * len(overlap), overlap, range(len(overlap)))
    return found


def map_cautions(read: MapsRead, abnormal: int) -> list[str]:
    """What a reader must know of masks that are missing or empty, a sentence each."""
    said: list[str] = []
    masked = read.masked
    if not masked:
        return said
    if masked < abnormal:
        said.append(f"{abnormal - masked} of {abnormal} abnormal images have no mask; pixel metrics leave them out.")
    if bare := masked - sum(read.quantiles.has_lesion):
        said.append(f"{bare} abnormal images have an empty mask: no lesion to find in them, so no Dice.")
    return said
