"""Predictions of whole slides as files: as those of images, drawn on the slide made small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from madclip.clinical.slides import predict_slide
from madclip.data.readers import Image
from madclip.data.readers.slides import open_slide
from madclip.data.tiles import resized
from madclip.errors import DataError
from madclip.progress import Progress, silent
from madclip.report.plan import Output, detector_fingerprint
from madclip.report.predictions import PredictionFolder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from madclip.data.ref import ImageRef
    from madclip.data.slides import Magnification
    from madclip.detector import MadCLIP
    from madclip.prediction import Prediction


class SlideFolder(PredictionFolder):
    """Writes predictions of slides as `PredictionFolder` does: numbered, since their names often are a patient's."""

    numbered = True

    def _shown(self, image: ImageRef, prediction: Prediction) -> tuple[Image, npt.NDArray[np.float32]]:
        with open_slide(image.path) as slide:
            picture, spacing = slide.overview()
        pixels = np.moveaxis(picture, -1, 0).astype(np.float32)
        pixels /= 255
        heat = resized(torch.from_numpy(prediction.anomaly_map), picture.shape[:2]).numpy()
        return Image(pixels, "8-bit", spacing=spacing), heat

    def _pixel_size(self, image: ImageRef, prediction: Prediction) -> tuple[float, float] | None:
        with open_slide(image.path) as slide:
            finest = slide.levels[0]
        height, width = prediction.anomaly_map.shape
        return finest.mpp and (
            finest.mpp[0] * finest.height / height / 1000,
            finest.mpp[1] * finest.width / width / 1000,
        )


def predict_slides(
    detector: MadCLIP,
    paths: Sequence[Path],
    folder: Path,
    at: Magnification,
    *,
    output: Output,
    overwrite: bool = False,
    about: dict[str, str],
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Score slides into a folder; an unfinished run of the same call goes on with the first slide that has no row.

    Args:
        detector: A fitted detector.
        paths: The slides, as `find_slides` finds them.
        folder: As in `PredictionFolder`, like `output`, `overwrite` and `about`.
        at: The magnification at which they are read.
        output: What is written beside the tables.
        overwrite: Whether predictions that are there already are removed first.
        about: Facts for the head of the page, among them the `Engine` that computes.
        progress: Told of the tiles of each slide.

    Returns:
        A row for each slide; where it could not be used, its `error` is not None.

    Raises:
        DataError: See `PredictionFolder`.
        MissingExtraError: The library of a format is not installed.
    """
    known = f"{detector_fingerprint(detector, about['Engine'])} {at}"
    facts = {**about, "Objective": detector.objective, "Backbone": detector.backbone.spec.id}
    with SlideFolder(folder, paths, detector=known, output=output, overwrite=overwrite, about=facts) as made:
        for image in made.left:
            try:
                result: Prediction | DataError = predict_slide(detector, image.path, at, progress)
            except DataError as error:
                result = error
            made.add(image, result)
    return made.rows
