"""From scores and maps to everything that a report says: one pure function."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from madclip.calibration.calibration import Calibration
from madclip.errors import DataError
from madclip.evaluation.gallery import choose_gallery, gallery_items
from madclip.evaluation.pixels import (
    NO_MAPS,
    NO_MASKED,
    NO_THRESHOLD,
    MapsRead,
    map_cautions,
    overlap_metrics,
    pixel_metrics,
    read_maps,
)
from madclip.evaluation.result import EvaluationResult
from madclip.metrics import image as metrics
from madclip.metrics import intervals
from madclip.metrics.image import Estimate
from madclip.metrics.scored import Scored
from madclip.prediction import Prediction, judged

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

    from madclip.calibration.calibration import Verdict
    from madclip.evaluation.pixels import Maps
    from madclip.evaluation.result import ImageRow
    from madclip.prediction import Decision

FEW = 30
"""Images of a class below which a report says that there are few."""
GALLERY = 6
"""Images of each group that are shown."""
NO_PROBABILITY = "the detector is not calibrated to probabilities"
_NO_MAP = np.zeros((0, 0), np.float32)


@dataclass(frozen=True)
class Uncalibrated:
    """What decides where there is no calibration.

    Attributes:
        why: Why there is none, in one sentence.
        verdict: What is said of every image then.
        threshold: The score from which an image is called anomalous, fixed by other means; None where it was not.
        pixel_threshold: The value of a map from which a pixel is called anomalous, fixed by other means.
    """

    why: str = ""
    verdict: Verdict | None = None
    threshold: float | None = None
    pixel_threshold: float | None = None


Judge: TypeAlias = Calibration | Uncalibrated


def evaluate_scores(
    rows: Sequence[ImageRow],
    maps: Maps | None = None,
    *,
    calibration: Judge | None = None,
    image_of: Callable[[int], NDArray[np.uint8]] | None = None,
    provenance: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    level: float = 0.95,
    seed: int = 0,
) -> EvaluationResult:
    """Every metric of a test set with its interval. Maps are read once, in the order of the images, and not kept.

    Args:
        rows: [N], what is known of each image: name, label, raw score, and where they are known patient, frame and
            familiarity. Names are shown, so they must name no patient. What the calibration says is filled in here.
        maps: N pairs of an anomaly map [H, W] in 0..1 and its mask [H, W], sizes free; mask None for normal images
            and for abnormal ones without (whose pixels are then unknown and left out).
        calibration: The detector's, from which thresholds, probabilities, p-values and verdicts come; or `Uncalibrated`
            with thresholds that were fixed by other means; None where nothing was.
        image_of: Reads image i as uint8 [H, W, 3]; called for the gallery only.
        provenance: Versions, seeds, hashes, as JSON values.
        warnings: Sentences that come before those that follow from the numbers.
        level: Coverage that intervals aim at; they resample patients where some patient has several images.
        seed: Determines every bootstrap.

    Raises:
        DataError: There are no images; a score, label or map cannot be used (the image is named); the number of maps
            is not that of images; a mask marks a lesion in an image labelled normal.
    """
    if not rows:
        raise DataError("there are no images to evaluate: the test folder is empty")
    judge = calibration if calibration is not None else Uncalibrated()
    data = _scored(rows)
    rows = [_judged(row, judge) for row in rows]
    chosen = choose_gallery(data, judge.threshold, GALLERY)
    read = MapsRead(list(rows)) if maps is None else read_maps(rows, maps, judge.pixel_threshold, chosen)
    missing = NO_MAPS if maps is None else NO_MASKED
    no_overlap = NO_THRESHOLD if judge.pixel_threshold is None and maps is not None else missing
    result = EvaluationResult(
        metrics={
            **_image_metrics(data, judge, level, seed),
            **pixel_metrics(read, data, level, seed, missing=missing),
            **overlap_metrics(read.rows, data, level, seed, missing=no_overlap),
        },
        rows=read.rows,
        threshold=judge.threshold,
        pixel_threshold=judge.pixel_threshold,
        operating_point=_operating_point(judge),
        counts=None if judge.threshold is None else metrics.confusion(data, judge.threshold),
        curves=_curves(data, judge, level, seed),
        gallery=gallery_items(read.rows, chosen, read.shown, image_of),
        provenance=dict(provenance or {}),
        level=level,
    )
    cautions = [*map_cautions(read, result.n_abnormal), *_cautions(result, judge, clustered=data.patients is not None)]
    return replace(result, warnings=[*warnings, *cautions])


def _scored(rows: Sequence[ImageRow]) -> Scored:
    """Labels, scores and patients, where intervals must resample these because some patient has several images."""
    data = Scored.of(
        [row.label for row in rows],
        [row.score for row in rows],
        names=[row.name for row in rows],
        patients=[row.patient for row in rows],
    )
    return data if data.clustered else replace(data, patients=None)


def _judged(row: ImageRow, judge: Judge) -> ImageRow:
    """A row with what the detector says of its score, in the words of `predict`."""
    plain = Prediction(row.score, _NO_MAP, (0, 0), familiar=row.familiar)
    if isinstance(judge, Calibration):
        said = judged(plain, judge)
    else:
        said = judged(plain, None, judge.why, judge.verdict)
        if judge.threshold is not None:
            decision: Decision = "anomalous" if row.score >= judge.threshold else "normal"
            said = replace(said, threshold=judge.threshold, decision=decision)
    return replace(
        row,
        threshold=said.threshold,
        decision=said.decision,
        probability=said.probability,
        p_value=said.p_value,
        verdict=said.verdict,
        note=said.note,
    )


def _operating_point(judge: Judge) -> str:
    if isinstance(judge, Calibration):
        return judge.operating_point
    return "none" if judge.threshold is None else "given"


def _probability(data: Scored, judge: Judge) -> NDArray[np.float64] | None:
    return judge.probability(data.scores) if isinstance(judge, Calibration) else None


def _image_metrics(data: Scored, judge: Judge, level: float, seed: int) -> dict[str, Estimate]:
    def drawn(statistic: intervals.WeightedStatistic, scores: ArrayLike = data.scores) -> Estimate:
        return intervals.bootstrap_interval(data.rescored(scores), level, statistic=statistic, seed=seed)

    def share(success: NDArray[np.bool_], of: NDArray[np.bool_]) -> Estimate:
        return intervals.share_interval(success[of], level, patients=data.clusters[of].tolist())

    found = {
        "image_auroc": intervals.delong_interval(data, level),
        "image_auroc_bootstrap": drawn(intervals.weighted_auroc),
        "image_ap": drawn(intervals.weighted_average_precision),
    }
    if data.patients is not None:
        found["patient_auroc"] = intervals.delong_interval(_patients(data), level)
    if judge.threshold is None:
        found |= dict.fromkeys(("sensitivity", "specificity", "f1"), Estimate(None, reason=NO_THRESHOLD))
    else:
        called = data.scores >= judge.threshold
        found["sensitivity"] = share(called, data.labels)
        found["specificity"] = share(~called, ~data.labels)
        found["f1"] = drawn(intervals.weighted_f1, called)
    probability = _probability(data, judge)
    if probability is None:
        return found | dict.fromkeys(("brier", "ece"), Estimate(None, reason=NO_PROBABILITY))
    found["brier"] = drawn(intervals.weighted_mean, (probability - data.labels) ** 2)
    found["ece"] = drawn(intervals.weighted_calibration_error, probability)
    return found


def _patients(data: Scored) -> Scored:
    """Patients in place of images, each with its highest score, and abnormal where any of its images is."""
    count = data.clusters.max() + 1
    worst, abnormal = np.full(count, -np.inf), np.zeros(count, np.bool_)
    np.maximum.at(worst, data.clusters, data.scores)
    np.logical_or.at(abnormal, data.clusters, data.labels)
    return Scored.of(abnormal, worst)


def _curves(data: Scored, judge: Judge, level: float, seed: int) -> dict[str, Any]:
    """Points of the curves, a thousand at most, and pointwise bands."""
    curves: dict[str, Any] = {}
    roc, pr = metrics.roc_curve(data), metrics.precision_recall_curve(data)
    if roc is not None and pr is not None:
        grid = np.linspace(0, 1, 101)
        bands = intervals.curve_bands(data, grid, level, seed=seed)
        for name, (x, y), band in (("roc", roc, bands[0]), ("pr", pr, bands[1])):
            kept = np.unique(np.linspace(0, len(x) - 1, 1000).round().astype(int))
            curves[name] = {"x": x[kept].tolist(), "y": y[kept].tolist(), "grid": grid.tolist(), "band": band.tolist()}
    probability = _probability(data, judge)
    if probability is not None:
        mean, frequency, count = metrics.reliability(data.rescored(probability))
        spans = [intervals.wilson_interval(f * n, n, level) for f, n in zip(frequency, count, strict=True)]
        curves["reliability"] = {
            "mean": mean.tolist(),
            "frequency": frequency.tolist(),
            "count": count.tolist(),
            "band": [[s.low for s in spans], [s.high for s in spans]],
        }
    return curves


def _cautions(result: EvaluationResult, judge: Judge, *, clustered: bool) -> list[str]:
    """What a reader must know, from the numbers themselves."""
    said = []
    for count, word in ((result.n_normal, "normal"), (result.n_abnormal, "abnormal")):
        if not count:
            said.append(f"No {word} images: how well normal and abnormal ones are told apart is not measured.")
        elif count < FEW:
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
    if isinstance(judge, Calibration):
        return [*said, *_calibration_cautions(result, judge)]
    if judge.why:
        said.append(f"There is no probability and no verdict: {judge.why.rstrip('.')}.")
    return said


def _calibration_cautions(result: EvaluationResult, calibration: Calibration) -> list[str]:
    """What the calibration cannot promise, a sentence each."""
    said = []
    if calibration.note:
        said.append(f"Threshold: {calibration.note}.")
    zeros, ones = len(calibration.normal_scores), len(calibration.abnormal_scores)
    least = f"p-value is never below {1 / (zeros + 1):.3f}"
    if rests := calibration.rests():
        said.append(f"{rests} A {least}.")
    else:
        said.append(
            f"Calibrated on {zeros} normal and {ones} abnormal images: a {least}, and verdicts may err on "
            f"{calibration.levels_kept[0]:.0%} of normal and {calibration.levels_kept[1]:.0%} of abnormal images, "
            "averaged over draws of the shots."
        )
    prevalence = result.n_abnormal / len(result.rows)
    if calibration.method != "none" and abs(prevalence - calibration.prevalence) > 0.1:
        said.append(
            f"Probabilities hold for {calibration.prevalence:.0%} abnormal images, as in the shots; here it is "
            f"{prevalence:.0%}, which Brier score and calibration error pay for."
        )
    return said
