"""Fits in which nothing is trained: a memory of what normal images look like, and texts alone."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from madclip.calibration.calibration import Calibration
from madclip.errors import RecipeError
from madclip.head.memory import NormalMemory
from madclip.head.zero_shot import ZeroShot
from madclip.state import Fitted, Provenance
from madclip.training.out_of_fold import why_not_normal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.calibration.familiarity import Familiarity
    from madclip.fitting import Draws, Setting
    from madclip.training.encode import TrainingSet
    from madclip.training.shots import Shot

NORMAL_POINT = "spec=0.9"
"""Operating point where Youden's is asked for, which needs abnormal images, and there are none."""


def of_texts(setting: Setting, draws: Draws) -> Fitted:
    """What is known before any image is seen. For a refit all images of a data set count as added since.

    Raises:
        RecipeError: An epoch is to be selected, and there are none.
    """
    refuse_selection(draws)
    why = "not calibrated: it has seen no image, and texts alone promise nothing; `calibrate` adds thresholds"
    facts = Provenance.of((), draws.seed, select=draws.select, pool=(), uncalibrated=why)
    return Fitted(ZeroShot(setting.recipe, setting.backbone, setting.objective), setting.recipe, facts)


def of_normals(
    setting: Setting,
    shots: Sequence[Shot],
    training: TrainingSet,
    provenance: Provenance,
    familiarity: Familiarity | None,
    draws: Draws,
) -> Fitted:
    """A memory of normal patches; thresholds come from each image's score by the memory of the others.

    That costs next to nothing, so it is done for every number of folds.
    """
    tokens = torch.stack(training.plain)
    memory = NormalMemory.of(setting.recipe, setting.backbone, tokens)
    fitted = Fitted(memory, setting.recipe, provenance, familiarity=familiarity)
    calibration, reason = None, why_not_normal(shots)
    if not reason:
        point = NORMAL_POINT if draws.operating_point == "youden" else draws.operating_point
        scores = memory.held_out(tokens, [shot.group for shot in shots], fitted.readout)
        calibration = Calibration.of_normals(scores, point)
        reason = calibration.note
    known = dataclasses.replace(provenance, uncalibrated=reason and f"not calibrated: {reason}")
    return dataclasses.replace(fitted, provenance=known, calibration=None if reason else calibration)


def refuse_selection(draws: Draws) -> None:
    """Refuse to choose an epoch where there are none.

    Raises:
        RecipeError: One is to be chosen.
    """
    if draws.select != "last":
        raise RecipeError(f"--select {draws.select}: without abnormal images nothing is trained, in no epochs")
