"""From scores and maps to everything that a report says: a pure function and what it returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.errors import DataError
from madclip.metrics import image as metrics
from madclip.metrics import intervals
from madclip.metrics.image import Confusion, Estimate
from madclip.metrics.pixel import PixelHistogram, check_map, dice, surface_dice
from madclip.metrics.quantiles import PixelQuantiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from madclip.calibration.calibration import Calibration

    Floats = NDArray[np.float64]

FORMAT = 1
FEW = 30
"""Images of a class below which a report says that there are few."""
NO_MAPS = "no anomaly maps were given"
NO_MASKED = "no anomalous image has a mask"
NO_PROBABILITY = "the detector is not calibrated to probabilities"
NO_THRESHOLD = "no threshold was fixed beforehand"


@dataclass(frozen=True)
class ImageRow:
    """One image of the test set.

    Attributes:
        name: File name relative to the data root.
        patient: As the manifest names it; None where it does not.
        label: 0 normal, 1 anomalous.
        score: Raw score.
        probability: Calibrated; None without a calibration.
        p_value: Conformal, against the normals of the calibration.
        verdict: What the detector says.
        familiar: Whether the image looks like anything in the shots.
        dice: At the fixed threshold of maps; None where the image has no lesion marked.
        surface_dice: Of the outline, at a tolerance of 2 pixels.
        false_area: Share of its normal pixels that the map calls anomalous.
    """

    name: str
    patient: str | None
    label: int
    score: float
    probability: float | None = None
    p_value: float | None = None
    verdict: str | None = None
    familiar: bool = True
    dice: float | None = None
    surface_dice: float | None = None
    false_area: float | None = None


@dataclass(frozen=True)
class GalleryItem:
    """One image to look at, small: image [h, w, 3] uint8, map [h, w] float32, mask [h, w] bool; None where missing."""

    row: ImageRow
    groups: tuple[str, ...]
    image: NDArray[np.uint8] | None = None
    map: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None


@dataclass
class EvaluationResult:
    """Everything that was measured, and what must be said beside it.

    Attributes:
        metrics: Estimates by name.
        rows: One per image.
        threshold: Of image scores, fixed beforehand; None where there is none.
        pixel_threshold: Of maps.
        operating_point: How the threshold was chosen.
        counts: Confusion at the threshold.
        curves: What figures draw, as JSON values.
        gallery: Images to look at.
        provenance: Versions, seeds, hashes: whatever the caller knows.
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
        """Normal images."""
        return sum(row.label == 0 for row in self.rows)

    @property
    def n_abnormal(self) -> int:
        """Anomalous images."""
        return sum(row.label == 1 for row in self.rows)

    @property
    def n_patients(self) -> int | None:
        """Patients, where every image names its own; else None."""
        known = [row.patient for row in self.rows]
        return None if None in known else len(set(known))

    @property
    def patients(self) -> list[dict[str, Any]]:
        """A summary of each named patient: images, label of any, highest score, mean Dice of images with a lesion."""
        grouped: dict[str, list[ImageRow]] = {}
        for row in self.rows:
            if row.patient is not None:
                grouped.setdefault(row.patient, []).append(row)
        return [
            {
                "patient": patient,
                "images": len(rows),
                "label": max(row.label for row in rows),
                "score": max(row.score for row in rows),
                "dice": _mean([row.dice for row in rows if row.dice is not None]),
            }
            for patient, rows in grouped.items()
        ]

    def to_json(self, *, images: bool = True) -> dict[str, Any]:
        """JSON values: each metric under its name, `_ci` its interval, `_bound` its numerical error.

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


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def evaluate_scores(
    names: Sequence[str],
    labels: ArrayLike,
    scores: ArrayLike,
    maps: Iterable[tuple[NDArray[np.floating], NDArray[np.bool_] | None]] | None = None,
    *,
    patients: Sequence[str | None] | None = None,
    calibration: Calibration | None = None,
    threshold: float | None = None,
    pixel_threshold: float | None = None,
    familiar: Sequence[bool] | None = None,
    image_of: Callable[[int], NDArray[np.uint8]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    gallery: int = 6,
    level: float = 0.95,
    seed: int = 0,
) -> EvaluationResult:
    """Every metric of a test set with its interval. Maps are read once, in the order of the images, and not kept.

    Args:
        names: [N], file names relative to the data root: they are shown, so they must name no patient.
        labels: [N], 0 normal, 1 anomalous.
        scores: [N], raw.
        maps: N pairs of an anomaly map [H, W] in 0..1 and its mask [H, W], sizes free; mask None for normal images
            and for anomalous ones without (whose pixels are then unknown and left out).
        patients: [N]; intervals resample patients where at least one has several images.
        calibration: Of the detector; gives threshold, probabilities, p-values and verdicts.
        threshold: Of image scores, in place of the calibration's.
        pixel_threshold: Of maps, in place of the calibration's.
        familiar: [N], whether each image looks like the shots.
        image_of: Reads image i as uint8 [H, W, 3]; called for the gallery only.
        provenance: Versions, seeds, hashes, as JSON values.
        warnings: Sentences to add.
        gallery: Images of each group: best, worst, nearest to the threshold.
        level: Coverage that intervals aim at.
        seed: Of every bootstrap.

    Raises:
        DataError: There are no images; a score, label or map cannot be used (the image is named); the number of maps
            is not that of images; a mask marks a lesion in an image labelled normal.
    """
    positive, values = metrics.check_scores(labels, scores, names)
    if not len(values):
        raise DataError("there are no images to evaluate: the test folder is empty")
    if calibration is not None:
        threshold = calibration.threshold if threshold is None else threshold
        pixel_threshold = calibration.pixel_threshold if pixel_threshold is None else pixel_threshold
    units = (
        patients if patients is not None and len({*patients} - {None}) + [*patients].count(None) < len(values) else None
    )
    rows = _rows(names, positive, values, patients, calibration, familiar)
    found = _image_metrics(positive, values, units, threshold, calibration, level, seed)
    result = EvaluationResult(
        metrics=found,
        rows=rows,
        threshold=threshold,
        pixel_threshold=pixel_threshold,
        operating_point=calibration.operating_point if calibration else "given" if threshold is not None else "none",
        counts=None if threshold is None else metrics.confusion(positive, values, threshold),
        curves=_curves(positive, values, units, rows, level, seed),
        provenance=dict(provenance or {}),
        warnings=list(warnings),
        level=level,
    )
    chosen = choose_gallery(positive, values, threshold, gallery)
    _read_maps(result, maps, chosen, units, image_of, seed)
    result.warnings += _cautions(result, calibration, units is not None)
    return result


def _rows(
    names: Sequence[str],
    positive: NDArray[np.bool_],
    values: Floats,
    patients: Sequence[str | None] | None,
    calibration: Calibration | None,
    familiar: Sequence[bool] | None,
) -> list[ImageRow]:
    known = [True] * len(values) if familiar is None else [bool(f) for f in familiar]
    owners = [None] * len(values) if patients is None else [None if p is None else str(p) for p in patients]
    if len(known) != len(values) or len(owners) != len(values):
        raise DataError(f"{len(values)} images, {len(owners)} patients and {len(known)} familiarities do not match")
    probability = calibration.probability(values) if calibration else None
    p_value = calibration.p_value(values) if calibration else None
    return [
        ImageRow(
            name=str(names[i]),
            patient=owners[i],
            label=int(positive[i]),
            score=float(values[i]),
            probability=None if probability is None else float(probability[i]),
            p_value=None if p_value is None else float(p_value[i]),
            verdict=calibration.verdict(float(values[i]), familiar=known[i]) if calibration else None,
            familiar=known[i],
        )
        for i in range(len(values))
    ]


def _image_metrics(
    positive: NDArray[np.bool_],
    values: Floats,
    units: Sequence[Any] | None,
    threshold: float | None,
    calibration: Calibration | None,
    level: float,
    seed: int,
) -> dict[str, Estimate]:
    def drawn(statistic: intervals.WeightedStatistic, scores: ArrayLike = values) -> Estimate:
        return intervals.bootstrap_interval(positive, scores, level, patients=units, statistic=statistic, seed=seed)

    def share(success: ArrayLike, of: NDArray[np.bool_]) -> Estimate:
        members = None if units is None else [u for u, chosen in zip(units, of, strict=True) if chosen]
        return intervals.share_interval(success, level, patients=members)

    found = {
        "image_auroc": intervals.delong_interval(positive, values, level, patients=units),
        "image_auroc_bootstrap": drawn(intervals.weighted_auroc),
        "image_ap": drawn(intervals.weighted_average_precision),
    }
    if units is not None:
        keys = intervals.patient_index(units, len(values))
        worst, any_positive = np.full(keys.max() + 1, -np.inf), np.zeros(keys.max() + 1, np.bool_)
        np.maximum.at(worst, keys, values)
        np.logical_or.at(any_positive, keys, positive)
        found["patient_auroc"] = intervals.delong_interval(any_positive, worst, level)
    if threshold is None:
        found |= dict.fromkeys(("sensitivity", "specificity", "f1"), Estimate(None, reason=NO_THRESHOLD))
    else:
        called = values >= threshold
        found["sensitivity"] = share(called[positive], positive)
        found["specificity"] = share(~called[~positive], ~positive)
        found["f1"] = drawn(intervals.weighted_f1, called)
    probability = calibration.probability(values) if calibration else None
    if probability is None:
        return found | dict.fromkeys(("brier", "ece"), Estimate(None, reason=NO_PROBABILITY))
    found["brier"] = drawn(intervals.weighted_mean, (probability - positive) ** 2)
    found["ece"] = drawn(intervals.weighted_calibration_error, probability)
    return found


def _curves(
    positive: NDArray[np.bool_],
    values: Floats,
    units: Sequence[Any] | None,
    rows: Sequence[ImageRow],
    level: float,
    seed: int,
) -> dict[str, Any]:
    """Points of the curves, a thousand at most, and pointwise bands."""
    curves: dict[str, Any] = {}
    roc, pr = metrics.roc_curve(positive, values), metrics.precision_recall_curve(positive, values)
    if roc is not None and pr is not None:
        grid = np.linspace(0, 1, 101)
        bands = intervals.curve_bands(positive, values, grid, level, patients=units, seed=seed)
        for name, (x, y), band in (("roc", roc, bands[0]), ("pr", pr, bands[1])):
            kept = np.unique(np.linspace(0, len(x) - 1, 1000).round().astype(int))
            curves[name] = {"x": x[kept].tolist(), "y": y[kept].tolist(), "grid": grid.tolist(), "band": band.tolist()}
    if rows[0].probability is not None:
        probability = [row.probability or 0.0 for row in rows]
        mean, frequency, count = metrics.reliability(positive, probability)
        spans = [intervals.wilson_interval(f * n, n, level) for f, n in zip(frequency, count, strict=True)]
        curves["reliability"] = {
            "mean": mean.tolist(),
            "frequency": frequency.tolist(),
            "count": count.tolist(),
            "band": [[s.low for s in spans], [s.high for s in spans]],
        }
    return curves


def choose_gallery(
    positive: NDArray[np.bool_], values: Floats, threshold: float | None, count: int
) -> dict[int, tuple[str, ...]]:
    """Images to look at: `best` and `worst` ranked of each class, half of each, and `nearest` to the threshold."""
    ones = np.flatnonzero(positive)[np.argsort(-values[positive], kind="stable")].tolist()
    zeros = np.flatnonzero(~positive)[np.argsort(values[~positive], kind="stable")].tolist()
    half = max(1, count // 2)
    groups = {"best": ones[:half] + zeros[:half], "worst": ones[::-1][:half] + zeros[::-1][:half]}
    if threshold is not None:
        groups["nearest"] = np.argsort(np.abs(values - threshold), kind="stable")[:count].tolist()
    chosen: dict[int, tuple[str, ...]] = {}
    for group, members in groups.items():
        for index in members if count else []:
            chosen[index] = (*chosen.get(index, ()), group)
    return chosen


def _read_maps(
    result: EvaluationResult,
    maps: Iterable[tuple[NDArray[np.floating], NDArray[np.bool_] | None]] | None,
    chosen: dict[int, tuple[str, ...]],
    units: Sequence[Any] | None,
    image_of: Callable[[int], NDArray[np.uint8]] | None,
    seed: int,
) -> None:
    """Pixel metrics, per-image overlap and the gallery, in one pass over the maps."""
    histogram, quantiles, members = PixelHistogram(), PixelQuantiles(), []
    count = 0
    looked: dict[int, tuple[NDArray[np.float32] | None, NDArray[np.bool_] | None]] = dict.fromkeys(chosen, (None, None))
    for index, (scores, mask) in enumerate(maps if maps is not None else ()):
        count += 1
        if index >= len(result.rows):
            break
        row = result.rows[index]
        checked = check_map(np.asarray(scores), mask, row.name)
        if mask is not None and row.label == 0 and mask.any():
            raise DataError(f"{row.name}: labelled normal, but its mask marks {int(mask.sum())} anomalous pixels")
        if index in looked:
            looked[index] = checked, mask
        if row.label == 1 and mask is None:
            continue
        histogram.update(checked, mask, row.name)
        quantiles.update(checked, mask)
        members.append(index)
        if result.pixel_threshold is not None:
            result.rows[index] = _overlap(row, checked, mask, result.pixel_threshold)
    if maps is not None and count != len(result.rows):
        raise DataError(f"there are {count} anomaly maps for {len(result.rows)} images; one each is needed")
    missing = NO_MAPS if maps is None else NO_MASKED
    _pixel_metrics(result, histogram, quantiles, members, units, seed, missing)
    _overlap_metrics(result, units, seed, missing)
    result.gallery = [
        _gallery_item(result.rows[index], chosen[index], image_of(index) if image_of else None, *looked[index])
        for index in chosen
    ]


def _pixel_metrics(
    result: EvaluationResult,
    histogram: PixelHistogram,
    quantiles: PixelQuantiles,
    members: Sequence[int],
    units: Sequence[Any] | None,
    seed: int,
    reason: str,
) -> None:
    """AUROC, average precision and AUPRO of the images `members`, and what their masks lack."""
    names = ("pixel_auroc", "pixel_ap", "aupro")
    masked = [index for index in members if result.rows[index].label == 1]
    if not masked:
        result.metrics |= dict.fromkeys(names, Estimate(None, reason=reason))
        return
    owners = None if units is None else [units[index] for index in members]
    found = quantiles.intervals(histogram, result.level, patients=owners, seed=seed)
    result.metrics |= dict(zip(names, found, strict=True))
    if missing := result.n_abnormal - len(masked):
        result.warnings.append(
            f"{missing} of {result.n_abnormal} anomalous images have no mask; pixel metrics leave them out."
        )
    if bare := len(masked) - sum(quantiles.has_lesion):
        result.warnings.append(f"{bare} anomalous images have an empty mask: no lesion to find in them, so no Dice.")


def _overlap(row: ImageRow, scores: NDArray[np.float32], mask: NDArray[np.bool_] | None, threshold: float) -> ImageRow:
    called = scores >= threshold
    lesion = np.zeros(scores.shape, np.bool_) if mask is None else mask
    outside = int((~lesion).sum())
    area = float((called & ~lesion).sum() / outside) if outside else None
    if not lesion.any():
        return ImageRow(**{**asdict(row), "false_area": area})
    overlap = {"dice": dice(called, lesion), "surface_dice": surface_dice(called, lesion), "false_area": area}
    return ImageRow(**{**asdict(row), **overlap})


def _overlap_metrics(result: EvaluationResult, units: Sequence[Any] | None, seed: int, missing: str) -> None:
    """Means over images of what the fixed threshold of maps gives."""
    if result.pixel_threshold is None and missing != NO_MAPS:
        missing = NO_THRESHOLD
    for name in ("dice", "surface_dice", "false_area"):
        held = [(i, getattr(row, name)) for i, row in enumerate(result.rows) if getattr(row, name) is not None]
        if not held:
            result.metrics[name] = Estimate(None, reason=missing)
            continue
        result.metrics[name] = intervals.bootstrap_interval(
            [result.rows[i].label for i, _ in held],
            [value for _, value in held],
            result.level,
            patients=None if units is None else [units[i] for i, _ in held],
            statistic=intervals.weighted_mean,
            seed=seed,
        )

    overlap = [patient["dice"] for patient in result.patients if patient["dice"] is not None]
    if units is not None and overlap:
        result.metrics["patient_dice"] = intervals.bootstrap_interval(
            [1] * len(overlap),
            overlap,
            result.level,
            patients=range(len(overlap)),
            statistic=intervals.weighted_mean,
            seed=seed,
        )


def _gallery_item(
    row: ImageRow,
    groups: tuple[str, ...],
    image: NDArray[np.uint8] | None,
    scores: NDArray[np.float32] | None,
    mask: NDArray[np.bool_] | None,
    side: int = 224,
) -> GalleryItem:
    """Everything scaled down so that the longer side is `side` pixels at most."""
    from PIL import Image

    shape = next((a.shape[:2] for a in (scores, image) if a is not None), (side, side))
    scale = min(1.0, side / max(shape))
    size = max(1, round(shape[1] * scale)), max(1, round(shape[0] * scale))

    def small(array: NDArray[Any], how: Image.Resampling) -> NDArray[Any]:
        return np.asarray(Image.fromarray(array).resize(size, how))

    return GalleryItem(
        row=row,
        groups=groups,
        image=None if image is None else small(image, Image.Resampling.LANCZOS),
        map=None if scores is None else small(scores, Image.Resampling.BILINEAR),
        mask=None if mask is None else small(mask.astype(np.uint8), Image.Resampling.NEAREST).astype(np.bool_),
    )


def _cautions(result: EvaluationResult, calibration: Calibration | None, clustered: bool) -> list[str]:
    """What a reader must know, from the numbers themselves."""
    said = []
    for count, word in ((result.n_normal, "normal"), (result.n_abnormal, "anomalous")):
        if count < FEW:
            said.append(f"Only {count} {word} images: the intervals are wide, and they are what to read.")
    if result.n_patients is None:
        said.append(
            "Patients are not known, so images count as independent; several of one patient make intervals too short."
        )
    elif clustered:
        said.append(
            f"{len(result.rows)} images of {result.n_patients} patients: intervals treat patients as the units."
        )
    unfamiliar = sum(not row.familiar for row in result.rows)
    if unfamiliar:
        said.append(
            f"{unfamiliar} of {len(result.rows)} images: unlike anything in the shots (wrong modality or view?)."
        )
    area = result.metrics["image_auroc"]
    if area.low is not None and area.low <= 0.5:
        said.append("The interval of the image AUROC reaches 0.5: ranking by chance is not excluded.")
    if calibration is None:
        return said
    if calibration.note:
        said.append(f"Threshold: {calibration.note}.")
    zeros, ones = len(calibration.normal_scores), len(calibration.abnormal_scores)
    said.append(
        f"Calibrated on {zeros} normal and {ones} anomalous images: a p-value is never below {1 / (zeros + 1):.3f}, "
        f"and verdicts may err on {calibration.levels_kept[0]:.0%} of normal and {calibration.levels_kept[1]:.0%} of "
        "anomalous images, averaged over draws of the shots."
    )
    prevalence = result.n_abnormal / len(result.rows)
    if calibration.method != "none" and abs(prevalence - calibration.prevalence) > 0.1:
        said.append(
            f"Probabilities hold for {calibration.prevalence:.0%} anomalous images, as in the shots; here it is "
            f"{prevalence:.0%}, which Brier score and calibration error pay for."
        )
    return said
