"""The one place that opens test images: a detector against a test set, with everything a reader needs to trust it."""

from __future__ import annotations

import platform
import tempfile
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from madclip.data.geometry import fit_mask, restore_map
from madclip.data.load import load_dataset, read_sample_mask
from madclip.data.readers import read_image, read_mask
from madclip.data.samples import Dataset, Sample
from madclip.errors import DataError
from madclip.evaluation.result import EvaluationResult, evaluate_scores
from madclip.memory import kept_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from madclip.backbones.spec import Backbone
    from madclip.calibration.calibration import Calibration
    from madclip.data.ref import ImageRef
    from madclip.prediction import Prediction
    from madclip.recipe import Recipe
    from madclip.state import Provenance

    Scored = tuple[Sample, Prediction]

PixelSize = Literal["native", "recipe"]
"""Where pixel metrics are computed: at the masks' own size, or at the recipe's input size as the paper's tables are."""
_NO_MAP = np.zeros((0, 0), np.float32)
SHOWN = 5
"""Files that a warning names."""


class Detector(Protocol):
    """What can be evaluated: MadCLIP, and the methods that it is compared with."""

    @property
    def objective(self) -> str:
        """What the images show."""

    @property
    def recipe(self) -> Recipe:
        """Of it the geometry of the maps."""

    @property
    def backbone(self) -> Backbone:
        """On which it stands."""

    @property
    def provenance(self) -> Provenance:
        """Where it came from and what it has seen."""

    @property
    def calibration(self) -> Calibration | None:
        """Where thresholds and probabilities come from."""

    @property
    def image_score(self) -> str:
        """The rule of the image score."""

    def predict_iter(self, inputs: Iterable[ImageRef], /, *, native: bool) -> Iterator[Prediction | DataError]:
        """A prediction or an error for each file in order."""


def evaluate(
    detector: Detector,
    data: str | Path | Dataset,
    *,
    pixel_size: PixelSize = "native",
    objective: str | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Score the test images of a data set: `test/` where there is one, else the images of no split.

    Images that the detector learned from are left out; files that cannot be used are too, and the rest goes on. The
    warnings of the result count and name them.

    Args:
        detector: A fitted one.
        data: As for `load_dataset`.
        pixel_size: Size at which pixel metrics are computed.
        objective: What the images show; a detector fitted for something else gets a warning.
        on_image: Called with (images done, images).

    Raises:
        DataError: There is nothing to evaluate, or the detector learned from all of it.
    """
    dataset = data if isinstance(data, Dataset) else load_dataset(data)
    samples, warnings = _unseen(detector, dataset)
    if detector.provenance.select == "test-best":
        warnings.append("The epoch was selected on test images, as published: every number here is optimistic.")
    if detector.provenance.calibrated_before_refit:
        warnings.append("Thresholds and probabilities are those of the detector before it was refitted.")
    if objective is not None and objective.casefold() != detector.objective.casefold():
        warnings.append(f"The detector was fitted for {detector.objective!r}, not for {objective!r}.")
    # Maps wait on the disk, as the backbone's square: metrics need all scores before the first map.
    with tempfile.TemporaryFile() as spool:
        scored, failed = _score(detector, samples, spool, on_image)
        if failed:
            warnings.append(_listed(f"{len(failed)} of {len(samples)} images could not be used", failed))
        if not scored:
            raise DataError(f"{dataset.root}: none of the {len(samples)} test images can be used; {failed[0]}")
        return evaluate_scores(
            [dataset.name(sample.image) for sample, _ in scored],
            [sample.label for sample, _ in scored],
            [prediction.score for _, prediction in scored],
            _maps(detector, scored, spool, pixel_size),
            patients=[sample.patient for sample, _ in scored],
            calibration=detector.calibration,
            familiar=[prediction.familiar for _, prediction in scored],
            image_of=lambda index: _picture(scored[index][0]),
            provenance=_provenance(detector, dataset, pixel_size),
            warnings=warnings,
        )


def _unseen(detector: Detector, dataset: Dataset) -> tuple[list[Sample], list[str]]:
    """Test images that the detector was neither fitted nor calibrated on, and what to say of the others."""
    pool = dataset.test_pool
    if not pool:
        raise DataError(f"{dataset.root}: no test images (no test/ folder, and all images belong to other splits)")
    seen = [sample for sample in pool if detector.provenance.saw(sample)]
    if len(seen) == len(pool):
        raise DataError(f"{dataset.root}: the detector learned from all {len(pool)} test images; evaluate on others")
    if not seen:
        return list(pool), []
    left = [sample for sample in pool if sample not in set(seen)]
    names = [dataset.name(sample.image) for sample in seen]
    return left, [
        _listed(f"{len(seen)} test images are among the shots or the calibration images and were left out", names)
    ]


@kept_memory()
def _score(
    detector: Detector,
    samples: Sequence[Sample],
    spool: IO[bytes],
    on_image: Callable[[int, int], None] | None,
) -> tuple[list[Scored], list[str]]:
    """Predictions of what can be read, their maps in the spool; and the errors of the rest."""
    scored: list[Scored] = []
    failed: list[str] = []
    predictions = detector.predict_iter((sample.image for sample in samples), native=False)
    for done, (sample, result) in enumerate(zip(samples, predictions, strict=True), 1):
        try:
            if isinstance(result, DataError):
                raise result
            read_sample_mask(sample, result.size)
        except DataError as error:
            failed.append(str(error))
        else:
            spool.write(result.anomaly_map.tobytes())
            scored.append((sample, replace(result, anomaly_map=_NO_MAP)))
        if on_image:
            on_image(done, len(samples))
    return scored, failed


def _maps(
    detector: Detector, scored: Sequence[Scored], spool: IO[bytes], pixel_size: PixelSize
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_] | None]]:
    """Maps from the spool, and masks, at the size asked for."""
    view = detector.recipe.view
    side = view.size
    spool.seek(0)
    for sample, prediction in scored:
        square = np.frombuffer(spool.read(4 * side * side), np.float32).reshape(side, side)
        mask = None if sample.mask is None else read_mask(sample.mask)
        if pixel_size == "recipe":
            yield square, None if mask is None else fit_mask(mask, view).numpy()
        else:
            yield restore_map(torch.from_numpy(square.copy()), prediction.size, view), mask


def _picture(sample: Sample) -> npt.NDArray[np.uint8]:
    pixels = read_image(sample.image).pixels
    return np.ascontiguousarray(np.moveaxis((pixels * 255).round().astype(np.uint8), 0, -1))


def _provenance(detector: Detector, dataset: Dataset, pixel_size: PixelSize) -> dict[str, Any]:
    from madclip import __version__

    spec = detector.backbone.spec
    return {
        "madclip": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "data": dataset.root.name,
        "layout": dataset.layout,
        "pixel_size": pixel_size,
        "objective": detector.objective,
        "recipe": detector.recipe.to_dict(),
        "image_score": detector.image_score,
        "backbone": spec.id,
        "backbone_fingerprint": detector.backbone.fingerprint,
        "fit": detector.provenance.summary(),
    }


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{what}: {'; '.join(names[:SHOWN])}{more}."
