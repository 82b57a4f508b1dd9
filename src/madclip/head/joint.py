"""Several modalities in one head: adapters that all of them share, prompts of each, which of them an image shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from madclip.head import scoring
from madclip.head.adapters import DETECTION, SEGMENTATION
from madclip.head.head import Head, Scores
from madclip.head.scorer import Readout, Scorer, pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.backbones.spec import Backbone
    from madclip.calibration.familiarity import Familiarity
    from madclip.recipe import Recipe


def new_heads(recipe: Recipe, backbone: Backbone, objectives: Sequence[str], *, seed: int = 0) -> list[Head]:
    """A head for each objective; all have the adapters of the first, and prompts of their own."""
    heads = [Head(recipe, backbone, objective, seed=seed) for objective in objectives]
    for head in heads[1:]:
        head.adapters = heads[0].adapters
    return heads


class JointHead(Scorer):
    """Heads that share their adapters; each image is judged by that of the modality whose shots it is most like.

    Args:
        heads: One for each modality, from `new_heads`.
        familiarity: What images of each modality look like.
        readouts: How scores and maps are read off each.
    """

    keeps_prefix: ClassVar[bool] = False
    shots: torch.Tensor
    masked: torch.Tensor

    def __init__(self, heads: Sequence[Head], familiarity: Sequence[Familiarity], readouts: Sequence[Readout]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self._each = tuple(heads)  # the same, by their type
        self._rules = [readout.rule for readout in readouts]
        self.counts = [len(one.features) for one in familiarity]
        every = torch.cat([torch.tensor(one.features) for one in familiarity])
        self.register_buffer("shots", every, persistent=False)
        self.register_buffer("masked", torch.tensor([one.has_masks for one in readouts]), persistent=False)
        self.to(heads[0].text().device)

    def text(self) -> torch.Tensor:
        """Text features of all modalities, [e, 2 x modalities]."""
        return torch.cat([head.text() for head in self._each], 1)

    def route(self, pooled: torch.Tensor) -> torch.Tensor:
        """Number of the modality with the nearest shot, [B], from pooled tokens [B, features]; see `Familiarity`."""
        nearness = F.normalize(pooled.to(self.shots), dim=-1) @ self.shots.mT
        return torch.stack([part.amax(1) for part in nearness.split(self.counts, 1)], 1).argmax(1)

    def judge(
        self,
        tokens: Sequence[torch.Tensor],
        text: torch.Tensor,
        readout: Readout,  # noqa: ARG002  (each modality has its own)
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Scorer.judge`."""
        first, route = self._each[0], self.route(pool(torch.stack([*tokens], 1)))
        towards = [scoring.directions(one, contrast=first.recipe.contrast) for one in text.split(2, 1)]
        taps = []
        for features in first.adapters(tokens):
            each = features.movedim(1, 3)
            taps.append(torch.stack([scoring.patch_scores(each, one) for one in towards]))
        image = torch.arange(route.shape[0], device=route.device)
        own = torch.stack(taps)[:, route, image].movedim(-2, 0)  # of its modality alone
        scores = Scores(own[DETECTION], own[SEGMENTATION if first.recipe.separate_heads else DETECTION])
        masked = self.masked[route][:, None, None]
        logits = first.map_logits(torch.where(masked, scores.segmentation, scores.detection))
        maps, mean = scoring.anomaly_map(logits), scoring.mean_score(scores.detection)
        return torch.stack([scoring.image_score(rule, mean, maps) for rule in self._rules])[route, image], maps
