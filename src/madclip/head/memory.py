"""Normal images alone: a memory of their patches, and how far each patch of another image is from all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F

from madclip.head import scoring
from madclip.head.scorer import Readout, Scorer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.backbones.spec import Backbone
    from madclip.recipe import Recipe

MOST_PATCHES = 8192
"""Patches that a memory keeps at most; more images give as many each as there is room for."""
SIGMA = 4.0
"""Smoothing of maps, pixels."""


class NormalMemory(Scorer):
    """Patches of normal images at unit length; far from all of them is abnormal.

    Each patch stands for its 3 x 3 neighbourhood at all taps, as in PatchCore. Every image gives the same number of
    patches, in whatever order images come: what is true of the memory without one of them holds for a new one.

    Args:
        recipe: How image scores come about.
        backbone: Its taps, grid and width count.
        images: How many normal images there are.

    Attributes:
        patches: [images x kept, T x d], unit length, image by image.
    """

    patches: torch.Tensor

    def __init__(self, recipe: Recipe, backbone: Backbone, *, images: int) -> None:
        super().__init__()
        self.grid, self.size = backbone.grid, backbone.image_size
        count = self.grid[0] * self.grid[1]
        self.kept = min(count, max(1, MOST_PATCHES // images))
        width = len(backbone.spec.taps) * backbone.spec.width
        self.register_buffer("patches", torch.zeros(images * self.kept, width, device=backbone.device))

    @classmethod
    def of(cls, recipe: Recipe, backbone: Backbone, tokens: torch.Tensor) -> Self:
        """The memory of normal images, by their patch tokens [N, T, G, d]."""
        memory = cls(recipe, backbone, images=len(tokens))
        parts = [spread_out(memory.features(one[None].to(backbone.device))[0], memory.kept) for one in tokens]
        memory.patches.copy_(torch.cat(parts))
        return memory

    def text(self) -> torch.Tensor:
        """No text: [0, 2]."""
        return self.patches.new_zeros(0, 2)

    def features(self, tokens: torch.Tensor) -> torch.Tensor:
        """What is compared: patch tokens [B, T, G, d] -> [B, G, T x d], unit length."""
        level = F.layer_norm(tokens.float(), tokens.shape[-1:])
        return F.normalize(local_features(level, self.grid), dim=-1)

    def judge(
        self,
        tokens: Sequence[torch.Tensor],
        text: torch.Tensor,
        readout: Readout,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Scorer.judge`."""
        return self._read(self.features(torch.stack(tuple(tokens), 1)), self.patches, readout)

    def held_out(self, tokens: torch.Tensor, groups: Sequence[str | None], readout: Readout) -> list[float]:
        """Score of each of the memory's own images by the memory of the others.

        Args:
            tokens: [N, T, G, d], those that the memory was made of.
            groups: [N], patients or volumes, which are left out whole; None is a group of its own.
            readout: How a score is read off.
        """
        own = self.patches.unflatten(0, (len(tokens), self.kept))
        scores = []
        for number, group in enumerate(groups):
            others = [i for i, other in enumerate(groups) if i != number and (group is None or other != group)]
            features = self.features(tokens[number][None].to(self.patches.device))
            scores.append(float(self._read(features, own[others].flatten(0, 1), readout)[0]))
        return scores

    def _read(
        self, features: torch.Tensor, memory: torch.Tensor, readout: Readout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        far = (1 - (features @ memory.mT).amax(-1)).clamp(0, 2) / 2
        maps = F.interpolate(far.unflatten(1, self.grid)[:, None], self.size, mode="bilinear")[:, 0]
        maps = smooth(maps, SIGMA)
        return scoring.image_score(readout.rule, far.mean(1), maps), maps


def spread_out(features: torch.Tensor, count: int) -> torch.Tensor:
    """So many of the rows [N, D] that lie farthest apart, by greedy k-centre selection from the most usual one on."""
    if count >= len(features):
        return features
    start = int(torch.cdist(features.mean(0, keepdim=True), features).argmin())
    return features[greedy_coreset(features, count, start)]


def greedy_coreset(features: torch.Tensor, size: int, start: int) -> list[int]:
    """Greedy k-centre selection (PatchCore, algorithm 1): each next row is the one farthest from those chosen.

    Args:
        features: [N, D].
        size: Rows to choose, at most N.
        start: The first of them.
    """
    chosen = [start]
    distance = torch.cdist(features, features[start : start + 1])[:, 0]
    while len(chosen) < size:
        chosen.append(int(distance.argmax()))
        distance = torch.minimum(distance, torch.cdist(features, features[chosen[-1:]])[:, 0])
    return chosen


def far_from_memory(features: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """One minus the largest cosine to a row of the memory: [..., d], [M, d] -> [..., ] in 0..2."""
    return 1 - (F.normalize(features, dim=-1) @ F.normalize(memory, dim=-1).mT).amax(-1)


def local_features(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Mean of each patch's 3 x 3 neighbourhood, taps concatenated: [B, T, G, d] -> [B, G, T x d].

    At the border the neighbourhood is what of it lies inside (PatchCore, Roth et al., CVPR 2022, section 3.1).
    """
    planes = tokens.transpose(2, 3).flatten(1, 2).unflatten(2, grid)
    means = F.avg_pool2d(planes, 3, stride=1, padding=1, count_include_pad=False)
    return means.flatten(2).transpose(1, 2).contiguous()


def smooth(maps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian smoothing, cut off at 4 sigma, the border repeated: [B, S, S]."""
    radius = round(4 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, device=maps.device) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(maps[:, None], (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]
