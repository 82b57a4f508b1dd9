"""Fits in which nothing is trained: a memory of what normal images look like, and texts alone."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from madclip.calibration.calibration import Calibration
from madclip.calibration.familiarity import Familiarity
from madclip.errors import RecipeError
from madclip.head.memory import NormalMemory
from madclip.head.scorer import pool
from madclip.head.zero_shot import ZeroShot
from madclip.state import Fitted, Provenance
from madclip.training.encode import backbone_pixels
from madclip.training.out_of_fold import why_not_normal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.fitting import Draws, Run, Setting
    from madclip.progress import Progress
    from madclip.training.shots import Shot

BATCH = 16
"""Images that are encoded at once."""
TILES_SAY_LITTLE = "a few tiles of each shot say little of whole images; calibrate it on further images"
"""Why shots that are seen in tiles give no threshold."""
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
    setting: Setting, shots: Sequence[Shot], provenance: Provenance, operating_point: str, run: Run
) -> Fitted:
    """A memory of normal patches; thresholds come from each image's score by the memory of the others.

    That costs next to nothing, so it is done for every number of folds.
    """
    tokens, groups = _tokens(setting, shots, run.progress), [shot.group for shot in shots]
    memory = NormalMemory.of(setting.recipe, setting.backbone, setting.objective, tokens)
    patches = tokens[:, :, setting.backbone.spec.prefix_tokens :]
    fitted = Fitted(memory, setting.recipe, provenance, familiarity=familiarity_of(pool(patches), groups))
    calibration, reason = None, TILES_SAY_LITTLE if setting.recipe.tile else why_not_normal(shots)
    if not reason:
        point = NORMAL_POINT if operating_point == "youden" else operating_point
        scores = memory.held_out(tokens, groups, fitted.readout)
        calibration = Calibration.of_normals(scores, point)
        reason = calibration.note
        if run.held_out and not reason:
            run.held_out(scores)
        calibration = None if reason else calibration.of_patients(groups)
    known = dataclasses.replace(provenance, uncalibrated=reason and f"not calibrated: {reason}")
    return dataclasses.replace(fitted, provenance=known, calibration=calibration)


def familiarity_of(pooled: torch.Tensor, groups: Sequence[str | None]) -> Familiarity | None:
    """The out-of-distribution check from pooled tokens [N, d], where there are shots enough for one."""
    return Familiarity.fit(pooled, groups) if Familiarity.possible(groups) else None


@torch.inference_mode()
def _tokens(setting: Setting, shots: Sequence[Shot], progress: Progress) -> torch.Tensor:
    """Tokens of shots as they are, [N, T, prefix + G, d], on the CPU."""
    found, view = [], setting.recipe.view
    for start in range(0, len(shots), BATCH):
        pixels = torch.stack([shot.pixels for shot in shots[start : start + BATCH]])
        streams = setting.backbone.encode_image(backbone_pixels(setting.backbone, view, pixels))
        found.append(torch.stack(streams, 1).cpu())
        progress("encode", min(start + BATCH, len(shots)), len(shots))
    return torch.cat(found)


def refuse_selection(draws: Draws) -> None:
    """Refuse to choose an epoch where there are none.

    Raises:
        RecipeError: One is to be chosen.
    """
    if draws.select != "last":
        raise RecipeError(f"--select {draws.select}: without abnormal images nothing is trained, in no epochs")
