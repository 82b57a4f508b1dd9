"""What a detector has to beat: trivial scores and maps that anybody could compute in a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from madclip.data.geometry import fit_pixels
from madclip.data.readers import read_image
from madclip.recipe import View

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from madclip.data.samples import Sample

SIDE = 240


def grey(sample: Sample, side: int = SIDE) -> NDArray[np.float32]:
    """Mean of the channels, [side, side]."""
    return fit_pixels(read_image(sample.image).pixels, View(side)).mean(0).numpy()


def logistic_scores(shots: Sequence[Sample], test: Sequence[Sample]) -> NDArray[np.float64]:
    """Logistic regression on 16 x 16 pixels, standardised on the shots."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def rows(samples: Sequence[Sample]) -> NDArray[np.float32]:
        return np.stack([fit_pixels(read_image(s.image).pixels, View(16)).flatten().numpy() for s in samples])

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(rows(shots), [sample.label for sample in shots])
    return np.asarray(model.predict_proba(rows(test))[:, 1])


def intensity_map(sample: Sample) -> NDArray[np.float32]:
    """Blurred intensity (sigma 6 pixels)."""
    return gaussian_filter(grey(sample), 6).clip(0, 1).astype(np.float32)


def centre_map(sample: Sample) -> NDArray[np.float32]:  # noqa: ARG001
    """1 in the middle, 0 in the corners, whatever the image."""
    axis = torch.linspace(-1, 1, SIDE)
    return (1 - (axis[:, None].square() + axis.square()).sqrt() / 2**0.5).clamp(0, 1).numpy()
