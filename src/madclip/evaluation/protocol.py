"""The one place that opens test images: a detector against a test set, with everything a reader needs to trust it."""

from __future__ import annotations

import platform
import tempfile
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from madclip.data.geometry import box, fit_mask, restore_map
from madclip.data.load import load_dataset, read_sample_mask
from madclip.data.readers import is_scanner_file, read_image, read_mask
from madclip.data.samples import Dataset, Reading, Sample
from madclip.data.tiles import map_size, resized
from madclip.errors import DataError
from madclip.evaluation.measure import Uncalibrated, evaluate_scores
from madclip.evaluation.result import EvaluationResult, ImageRow
from madclip.evaluation.unseen import listed, unseen
from madclip.memory import kept_memory
from madclip.prediction import raised
from madclip.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from madclip.backbones.spec import Backbone
    from madclip.calibration.calibration import Calibration
    from madclip.data.ref import ImageRef
    from madclip.prediction import Prediction
    from madclip.recipe import Recipe
    from madclip.state import Provenance

PixelSize = Literal["native", "recipe"]
"""Where pixel metrics are computed: at the masks' own size, or at the recipe's input size as the paper's tables are."""
_NO_MAP = np.zeros((0, 0), np.float32)


class Detector(Protocol):
    """What can be evaluated: MadCLIP, and the methods that it is compared with."""

    @property
    def objective(self) -> str:
        """What the images show."""

    @property
    def recipe(self) -> Recipe:
        """How it was fitted; its view is how maps lie over images."""

    @property
    def backbone(self) -> Backbone:
        """The frozen towers that it stands on."""

    @property
    def provenance(self) -> Provenance:
        """Where it came from and what it has seen."""

    @property
    def calibration(self) -> Calibration | None:
        """Where thresholds and probabilities come from; None where there are none."""

    @property
    def image_score(self) -> str:
        """The rule of the image score."""

    def predict_iter(self, inputs: Iterable[ImageRef], /, *, native: bool) -> Iterator[Prediction | DataError]:
        """A prediction, or the error that its file gave, for each image in order."""


def evaluate(
    detector: Detector,
    data: str | Path | Dataset,
    *,
    pixel_size: PixelSize = "native",
    objective: str | None = None,
    same_patient: bool = False,
    progress: Progress = silent,
) -> EvaluationResult:
    """Score the test images of a data set: `test/` where there is one, else the images of no split.

    Images that the detector has seen, for whatever purpose, are left out, and so are other images of their patients
    and volumes; files that cannot be used are too, and the rest goes on. The warnings of the result count and name
    them.

    Args:
        detector: A fitted one.
        data: A folder or a manifest, as for `load_dataset`, or a Dataset. One class will do, for what it alone says.
        pixel_size: Size at which pixel metrics are computed.
        objective: What the images show; a detector fitted for something else gets a warning.
        same_patient: Measure other images of patients and volumes that the detector has seen too. Such numbers are
            optimistic; the provenance of the result and its warnings say so.
        progress: Told of every image.

    Raises:
        DataError: There is nothing to evaluate, or the detector has seen all of it.
    """
    reading = Reading(axis=detector.recipe.axis)
    dataset = data if isinstance(data, Dataset) else load_dataset(data, reading, needed=())
    facts = detector.provenance
    samples, warnings = unseen(facts, dataset, same_patient=same_patient)
    warnings += _marks(detector, objective)
    # Maps wait on the disk, as large as the backbone sees images: metrics need all scores before the first map.
    with tempfile.TemporaryFile() as spool:
        scored, failed = _score(detector, samples, spool, progress)
        if failed:
            warnings.append(listed(f"{len(failed)} of {len(samples)} images could not be used", failed))
        if not scored:
            raise DataError(f"{dataset.root}: none of the {len(samples)} test images can be used; {failed[0]}")
        taken = Counter(prediction.modality for _, prediction in scored if prediction.modality)
        if taken:
            counted = ", ".join(f"{name} ({count})" for name, count in taken.most_common())
            warnings.append(f"Nobody said what the images show; they were taken for {counted}.")
        return evaluate_scores(
            [_row(dataset, sample, prediction) for sample, prediction in scored],
            _maps(detector, scored, spool, pixel_size),
            calibration=detector.calibration or Uncalibrated(facts.uncalibrated or "not calibrated", facts.verdict),
            image_of=lambda index: _picture(scored[index][0], detector.recipe.view.grey_range),
            provenance=_provenance(detector, dataset, pixel_size, same_patient=same_patient),
            warnings=warnings,
        )


def _marks(detector: Detector, objective: str | None) -> list[str]:
    """What everyone who reads a number of this detector must know, a sentence each."""
    said = []
    if detector.provenance.select == "test-best":
        said.append("The epoch was selected on test images, as published: every number here is optimistic.")
    if detector.provenance.calibrated_before_refit:
        said.append("Thresholds and probabilities are those of the detector before it was refitted.")
    if objective is not None and objective.casefold() != detector.objective.casefold():
        said.append(f"The detector was fitted for {detector.objective!r}, not for {objective!r}.")
    return said


def _row(dataset: Dataset, sample: Sample, prediction: Prediction) -> ImageRow:
    return ImageRow(
        dataset.name(sample.image),
        sample.label,
        prediction.score,
        patient=sample.patient,
        frame=sample.image.frame,
        axis=sample.image.axis or None,
        familiar=prediction.familiar,
        modality=prediction.modality,
        scanner=is_scanner_file(sample.image.path),
    )


@kept_memory()
def _score(
    detector: Detector, samples: Sequence[Sample], spool: IO[bytes], progress: Progress
) -> tuple[list[tuple[Sample, Prediction]], list[str]]:
    """Predictions of what can be read, without their maps, which go to the spool; and the errors of the rest."""
    scored: list[tuple[Sample, Prediction]] = []
    failed: list[str] = []
    predictions = detector.predict_iter((sample.image for sample in samples), native=False)
    for done, (sample, result) in enumerate(zip(samples, predictions, strict=True), 1):
        try:
            found = raised(result)
            read_sample_mask(sample, found.size)
        except DataError as error:
            failed.append(str(error))
        else:
            spool.write(found.anomaly_map.tobytes())
            scored.append((sample, replace(found, anomaly_map=_NO_MAP)))
        progress("evaluate", done, len(samples))
    return scored, failed


def _maps(
    detector: Detector, scored: Sequence[tuple[Sample, Prediction]], spool: IO[bytes], pixel_size: PixelSize
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]]:
    """Maps from the spool, and masks, at the size asked for."""
    view = detector.recipe.view
    spool.seek(0)
    for sample, prediction in scored:
        height, width = map_size(prediction.size, view)
        kept = np.frombuffer(spool.read(4 * height * width), np.float32).reshape(height, width)
        mask = None if sample.mask is None else read_mask(sample.mask)
        if pixel_size == "recipe":
            top, left, *inner = box(*prediction.size, view)
            rows, columns = slice(top, top + inner[0]), slice(left, left + inner[1])  # padding is no part of an image
            one = (
                resized(torch.from_numpy(kept.copy()), (inner[0], inner[1])).numpy()
                if view.tile
                else kept[rows, columns]
            )
            yield one, None if mask is None else fit_mask(mask, view).numpy()[rows, columns]
        else:
            yield restore_map(torch.from_numpy(kept.copy()), prediction.size, view), mask


def _picture(sample: Sample, grey_range: str) -> npt.NDArray[np.uint8]:
    """The image as uint8 [H, W, 3]."""
    pixels = read_image(sample.image, grey_range).pixels
    return np.ascontiguousarray(np.moveaxis((pixels * 255).round().astype(np.uint8), 0, -1))


def _provenance(detector: Detector, dataset: Dataset, pixel_size: PixelSize, *, same_patient: bool) -> dict[str, Any]:
    """Where the numbers come from, as JSON values."""
    spec = detector.backbone.spec
    return {
        "madclip": version("madclip"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "data": dataset.root.name,
        "layout": dataset.layout,
        "pixel_size": pixel_size,
        "same_patient": same_patient,
        "objective": detector.objective,
        "recipe": detector.recipe.to_dict(),
        "image_score": detector.image_score,
        "backbone": spec.id,
        "backbone_fingerprint": detector.backbone.fingerprint,
        "fit": detector.provenance.summary(),
    }
