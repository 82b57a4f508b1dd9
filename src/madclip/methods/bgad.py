"""BGAD (Yao et al., Explicit Boundary Guided Semi-Push-Pull Contrastive Learning, CVPR 2023) on tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F

from madclip.errors import DataError
from madclip.methods.cflow import likelihood_loss
from madclip.methods.flow import TokenFlows
from madclip.methods.tokens import abnormal_patches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.methods.learning import Learning
    from madclip.training.shots import Shot

EPOCHS = (2, 6)
"""On normal patches alone, then on both kinds."""
REUSED = 5
"""How often an epoch shows each abnormal patch."""
SCALE, QUANTILE, MARGIN = 10.0, 0.05, 0.1
"""Log-likelihoods per channel are divided by the first; the boundaries are its quantile, and that less the margin."""
NORMAL_FOCUS, ABNORMAL_FOCUS = (11.7, 0.5), (0.53, 2.0)
"""Factor and exponent of the focal weights."""


class BGAD(TokenFlows):
    """CFLOW-AD's flows, and two boundaries of likelihood: normal patches are pulled above, marked ones pushed below.

    The authors paste augmented anomalies into normal images as well; here marked patches are only shown more often.
    """

    name: ClassVar[str] = "bgad"
    title: ClassVar[str] = "BGAD on tokens (Yao et al., CVPR 2023)"
    learns_from: ClassVar[Literal["nothing", "normal", "both"]] = "both"
    needs_masks: ClassVar[bool] = True

    def _learn(self, shots: Sequence[Shot], run: Learning) -> None:
        told = [shot for shot in shots if not shot.label or shot.mask is not None]
        if not any(shot.label for shot in told):
            raise DataError("bgad learns from patches that masks mark: no abnormal shot has a mask")
        tokens, marked = self.shot_tokens(told, run), abnormal_patches(told, self.backbone.grid).flatten()
        normal = tokens[torch.tensor([shot.label == 0 for shot in told])]
        self._start(normal, run)
        values = self.standard(tokens).transpose(1, 2).flatten(0, 1)
        patches = torch.arange(tokens.shape[2]).repeat(len(told))
        first, second = EPOCHS
        self._train(values[~marked], patches[~marked], lambda one, _: likelihood_loss(one), first, run)
        often = torch.cat([torch.arange(len(marked)), marked.nonzero()[:, 0].repeat(REUSED - 1)])
        abnormal = marked[often]
        self._train(values[often], patches[often], lambda one, rows: boundary_loss(one, abnormal[rows]), second, run)
        self._finish(normal)


def boundaries(likelihoods: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What normal patches should exceed, and abnormal ones not, from scaled log-likelihoods of normal ones [N]."""
    above = likelihoods.detach().quantile(QUANTILE)
    return above, above - MARGIN


def boundary_loss(likelihoods: torch.Tensor, abnormal: torch.Tensor) -> torch.Tensor:
    """Likelihood of the normal patches, pull of those below their boundary, push of abnormal ones above theirs.

    Each term is a mean over the patches of its kind with focal weights: a patch on the wrong side weighs more.

    Args:
        likelihoods: Logarithms per channel, [B].
        abnormal: Which of them masks mark, [B]; at least one is not.
    """
    scaled = likelihoods / SCALE
    normal, marked = scaled[~abnormal], scaled[abnormal]
    if not len(normal):
        return likelihoods.sum() * 0
    above, below = boundaries(normal)
    weight = focal_weight(1 - normal.detach().exp(), NORMAL_FOCUS)
    loss = (weight * -F.logsigmoid(likelihoods[~abnormal])).mean() + (weight * (above - normal).clamp_min(0)).mean()
    if len(marked):
        weight = focal_weight(marked.detach().exp(), ABNORMAL_FOCUS)
        loss = loss + (weight * (marked - below).clamp_min(0)).mean()
    return loss


def focal_weight(wrong: torch.Tensor, focus: tuple[float, float]) -> torch.Tensor:
    """Factor times how wrong each patch is (cut to 0..1), to the exponent."""
    return focus[0] * wrong.clamp(0, 1) ** focus[1]
