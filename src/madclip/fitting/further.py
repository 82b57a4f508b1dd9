"""Thresholds from further images: of single images, and of whole volumes and series."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING

from madclip.calibration.calibration import Calibration
from madclip.errors import DataError, MadCLIPWarning, RecipeError
from madclip.fitting.untrained import NORMAL_POINT
from madclip.prediction import raised

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from madclip.data.ref import ImageRef
    from madclip.data.samples import Dataset, Sample
    from madclip.prediction import Prediction
    from madclip.state import Fitted, Provenance


def calibrate(
    before: Fitted,
    data: Dataset,
    predict: Callable[[Sequence[ImageRef]], Iterable[Prediction | DataError]],
    operating_point: str | None,
) -> Fitted:
    """A fitted state whose thresholds and probabilities come from a data set too; see `MadCLIP.calibrate`.

    Args:
        before: The state until now.
        data: All its images are used, but for those that were seen and others of their patients and volumes.
        predict: What is said of images, in order.
        operating_point: How the threshold is chosen; None keeps it.

    Raises:
        DataError: An image cannot be read, none is left, or the operating point needs a class that is missing.
        RecipeError: The state is of several modalities.
    """
    if before.modalities:
        raise RecipeError(f"each modality has its own thresholds: say of which, {' or '.join(before.modalities)}")
    samples = _unseen(before.provenance, data)
    volumes = whole_series(before.provenance, data)
    asked = [*dict.fromkeys([*(one.image for one in samples), *(image for one in volumes for image in one)])]
    score = dict(zip(asked, (raised(one).score for one in predict(asked)), strict=True))
    scores = [score[sample.image] for sample in samples]
    highest = [max(score[image] for image in one) for one in volumes]
    return calibrated_further(before, samples, scores, operating_point, highest)


def _unseen(seen: Provenance, data: Dataset) -> list[Sample]:
    """The images that stand for new ones: what was learned from scores better, and nothing counts twice.

    Raises:
        DataError: There are none.
    """
    left = [sample for sample in data.samples if not seen.saw(sample)]
    known = len(data.samples) - len(left)
    what = f"{known} of {len(data.samples)} images to calibrate on, or others of their patients, were seen before"
    if not left:
        raise DataError(f"{data.root}: {what}; give others")
    if known:
        warnings.warn(f"{what}: thresholds do not rest on them again", MadCLIPWarning, stacklevel=2)
    return left


def calibrated_further(
    before: Fitted,
    samples: Sequence[Sample],
    scores: Sequence[float],
    operating_point: str | None,
    highest: Sequence[float] = (),
) -> Fitted:
    """A fitted state whose thresholds and probabilities come from further images too; see `MadCLIP.calibrate`.

    Args:
        before: The state until now.
        samples: The images.
        scores: One for each.
        operating_point: How the threshold is chosen; None keeps it.
        highest: The highest score in each whole normal volume or series among them.
    """
    known = before.calibration
    labels = [sample.label for sample in samples]
    if known:
        scores = [*scores, *known.normal_scores, *known.abnormal_scores]
        labels += [0] * len(known.normal_scores) + [1] * len(known.abnormal_scores)
    point = operating_point or (known.operating_point if known else "youden")
    if point == "youden" and 1 not in labels and not (known and known.abnormal_scores):
        point = NORMAL_POINT
    pixel_threshold = known.pixel_threshold if known else None
    found = Calibration.fit(labels, scores, point, pixel_threshold=pixel_threshold)
    groups = [*(sample.group for sample in samples), *[None] * (len(labels) - len(samples))]
    used = {*before.provenance.calibrated_on, *(sample.image.digest() for sample in samples)}
    provenance = dataclasses.replace(before.provenance, calibrated_on=tuple(sorted(used)), uncalibrated="")
    return dataclasses.replace(
        before,
        calibration=found.of_patients(groups),
        provenance=provenance.with_groups(group for sample in samples for group in sample.groups),
        series=_of_series([*(before.series.normal_scores if before.series else ()), *highest]),
    )


def whole_series(seen: Provenance, data: Dataset) -> list[tuple[ImageRef, ...]]:
    """The whole normal volumes and series of a data set that a threshold for such may rest on.

    There is at most one of each patient, and none of whom the detector has seen anything: they stand for new ones.
    """
    of = {sample.volume: sample for sample in data.samples}
    chosen = {of[volume].group: images for volume, images in data.whole if not seen.saw_group(of[volume])}
    return [*chosen.values()]


def _of_series(highest: Sequence[float]) -> Calibration | None:
    """What the highest scores in whole normal volumes and series say; fewer than 9 give no threshold, which is said."""
    if not highest:
        return None
    found = Calibration.fit([0] * len(highest), highest, NORMAL_POINT)
    if found.note:
        warnings.warn(
            f"no threshold for whole series: nine whole normal ones are needed, and there are {len(highest)}",
            MadCLIPWarning,
            stacklevel=2,
        )
    return found
