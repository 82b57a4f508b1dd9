"""What an evaluation returns: estimates, one row per image, and what must be said beside them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from madclip.calibration.calibration import Verdict
    from madclip.metrics.image import Confusion, Estimate
    from madclip.prediction import Decision

FORMAT = 1


@dataclass(frozen=True)
class ImageRow:
    """One image of the test set: what is known of it, what the detector says of it, and how well its map fits.

    What the detector says has the names that it has in `madclip.prediction.Row`, and means the same.

    Attributes:
        name: The image's file name relative to the data root, with `#` and the frame behind it where it is one.
        label: 0 normal, 1 abnormal.
        score: Raw score in 0..1, where 1 is anomalous.
        patient: Whose image it is; None where that is not known.
        frame: Index of the frame in its file; None where the file is one image.
        axis: `coronal` or `sagittal` where a volume is cut so.
        threshold: The score from which the image is called anomalous; None where no threshold was fixed.
        decision: `anomalous` where the score reaches the threshold, else `normal`; None without a threshold.
        probability: Calibrated probability that the image is abnormal; None without a calibration.
        p_value: Conformal p-value against the normal images of the calibration; None without one.
        verdict: `normal`, `anomalous` or `uncertain`; None without a calibration.
        familiar: Whether the image looks like anything in the shots.
        modality: Which modality a joint detector took it for; None where it was told, or has one alone.
        note: One sentence where decision and verdict differ, or where there is neither, that says why.
        dice: Overlap of the map with the lesion at the fixed threshold of maps; None where no lesion is marked.
        surface_dice: Overlap of the outlines at a tolerance of 2 pixels; None where no lesion is marked.
        false_area: Share of the image's normal pixels that the map calls anomalous; None without such a threshold.
        scanner: Whether its file is a scanner's, whose name often is a patient's: pages do not show it.
    """

    name: str
    label: int
    score: float
    patient: str | None = None
    frame: int | None = None
    axis: str | None = None
    threshold: float | None = None
    decision: Decision | None = None
    probability: float | None = None
    p_value: float | None = None
    verdict: Verdict | None = None
    familiar: bool = True
    modality: str | None = None
    note: str = ""
    dice: float | None = None
    surface_dice: float | None = None
    false_area: float | None = None
    scanner: bool = False


@dataclass(frozen=True)
class GalleryItem:
    """One image to look at, at most a few hundred pixels large.

    Attributes:
        row: What is known of the image.
        groups: Why it is shown: `best`, `worst`, `nearest`.
        image: [h, w, 3] uint8; None where it was not read.
        map: [h, w] float32 in 0..1; None where there is none.
        mask: [h, w] bool; None where there is none.
    """

    row: ImageRow
    groups: tuple[str, ...]
    image: NDArray[np.uint8] | None = None
    map: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class EvaluationResult:
    """Everything that was measured, and what must be said beside it.

    Attributes:
        metrics: Estimates by name.
        rows: One for each image.
        threshold: The score from which an image is called anomalous, fixed beforehand; None where there is none.
        pixel_threshold: The value of a map from which a pixel is called anomalous; None where there is none.
        operating_point: How the threshold was chosen; `given` where it was not chosen from shots, or `none`.
        counts: Confusion at the threshold; None without one.
        curves: Points and bands of the curves that figures draw, as JSON values.
        gallery: Images to look at.
        provenance: Versions, seeds and hashes: whatever the caller knows.
        warnings: What to be careful about, a sentence each.
        level: Coverage that intervals aim at.
    """

    metrics: dict[str, Estimate]
    rows: list[ImageRow]
    threshold: float | None
    pixel_threshold: float | None
    operating_point: str
    counts: Confusion | None
    curves: dict[str, Any] = field(default_factory=dict)
    gallery: list[GalleryItem] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    level: float = 0.95

    @property
    def n_normal(self) -> int:
        """Number of normal images."""
        return sum(row.label == 0 for row in self.rows)

    @property
    def n_abnormal(self) -> int:
        """Number of abnormal images."""
        return sum(row.label == 1 for row in self.rows)

    @property
    def n_patients(self) -> int | None:
        """Number of patients, where every image names its own; else None."""
        known = [row.patient for row in self.rows]
        return None if None in known else len(set(known))

    @property
    def patients(self) -> list[dict[str, Any]]:
        """A summary of each patient; see `by_patient`."""
        return by_patient(self.rows)

    def to_json(self, *, images: bool = True) -> dict[str, Any]:
        """JSON values: each metric under its name, its interval as `NAME_ci`, its numerical error as `NAME_bound`.

        Args:
            images: Whether the lists of images and of patients are included.
        """
        out: dict[str, Any] = {"format": FORMAT, "level": self.level}
        for name, estimate in self.metrics.items():
            out[name] = estimate.value
            out[f"{name}_ci"] = None if estimate.low is None else [estimate.low, estimate.high]
            if estimate.bound:
                out[f"{name}_bound"] = estimate.bound
        out.setdefault("pixel_auroc_bound", None)
        return out | {
            "threshold": self.threshold,
            "operating_point": self.operating_point,
            "pixel_threshold": self.pixel_threshold,
            "n_normal": self.n_normal,
            "n_abnormal": self.n_abnormal,
            "n_patients": self.n_patients,
            "confusion": asdict(self.counts) if self.counts else None,
            "methods": {k: e.method for k, e in self.metrics.items() if e.method},
            "reasons": {k: e.reason for k, e in self.metrics.items() if e.reason},
            "provenance": self.provenance,
            "warnings": self.warnings,
            **({"images": [asdict(row) for row in self.rows], "patients": self.patients} if images else {}),
        }


def by_patient(rows: Sequence[ImageRow]) -> list[dict[str, Any]]:
    """A summary of each named patient: number of images, label of any, highest score, mean Dice of its lesions."""
    grouped: dict[str, list[ImageRow]] = {}
    for row in rows:
        if row.patient is not None:
            grouped.setdefault(row.patient, []).append(row)
    return [
        {
            "patient": patient,
            "images": len(own),
            "label": max(row.label for row in own),
            "score": max(row.score for row in own),
            "dice": _mean([row.dice for row in own if row.dice is not None]),
        }
        for patient, own in grouped.items()
    ]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
