"""Normal images alone: a memory of their patches, and how far each patch of another image is from all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F

from madclip.head import scoring
from madclip.head.scorer import Readout, Scorer
from madclip.head.zero_shot import ZeroShot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.backbones.spec import Backbone
    from madclip.recipe import Recipe

MOST_PATCHES = 2048
"""Patches that a memory keeps; more images give fewer each, and at least one."""
SIGMA = 4.0
"""Smoothing of maps, pixels."""


class NormalMemory(Scorer):
    """Patches of normal images, and texts beside them: far from all of them, or near to the abnormal text, is abnormal.

    Each patch stands for its 3 x 3 neighbourhood at all taps, as in PatchCore. Every image gives the same number of
    patches, in whatever order images come: what is true of the memory without one of them holds for a new one.

    Args:
        recipe: How image scores come about, and the weight of the texts.
        backbone: Its taps, grid and width count; its texts where they have a weight.
        objective: What the images show, in the words of the prompts.
        images: How many normal images there are.

    Attributes:
        patches: [images x kept, T x d], image by image.
        scale: [], usual distance of a patch to the nearest other one of its image.
        texts: What the texts say; None where they have no weight.
    """

    patches: torch.Tensor
    scale: torch.Tensor

    def __init__(self, recipe: Recipe, backbone: Backbone, objective: str, *, images: int) -> None:
        super().__init__()
        self.grid, self.size, self.weight = backbone.grid, backbone.image_size, recipe.text_weight
        self.prefix = backbone.spec.prefix_tokens
        count = self.grid[0] * self.grid[1]
        self.kept = min(count, max(1, MOST_PATCHES // images))
        width = len(backbone.spec.taps) * backbone.spec.width
        self.register_buffer("patches", torch.zeros(images * self.kept, width))
        self.register_buffer("scale", torch.ones(()))
        self.texts = ZeroShot(recipe, backbone, objective) if self.weight else None
        self.to(backbone.device)

    @classmethod
    def of(cls, recipe: Recipe, backbone: Backbone, objective: str, tokens: torch.Tensor) -> Self:
        """The memory of normal images, by their tokens [N, T, prefix + G, d]."""
        memory = cls(recipe, backbone, objective, images=len(tokens))
        features = [memory.features(one[None].to(backbone.device))[0] for one in tokens]
        memory.patches.copy_(torch.cat([spread_out(rows, memory.kept) for rows in features]))
        memory.scale.copy_(torch.stack([nearest_other(rows).mean() for rows in features]).mean().clamp_min(1e-6))
        return memory

    def text(self) -> torch.Tensor:
        """Text features [e, 2]: t_n, t_ab, of unit length; [0, 2] where texts have no weight."""
        return self.texts.text() if self.texts else self.patches.new_zeros(0, 2)

    def features(self, tokens: torch.Tensor) -> torch.Tensor:
        """What is compared: tokens [B, T, prefix + G, d] -> [B, G, T x d]."""
        return local_features(tokens[:, :, self.prefix :].float(), self.grid)

    def judge(
        self, tokens: Sequence[torch.Tensor], text: torch.Tensor, readout: Readout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Scorer.judge`."""
        return self._judge(torch.stack(tuple(tokens), 1), text, readout, self.patches)

    def held_out(self, tokens: torch.Tensor, groups: Sequence[str | None], readout: Readout) -> list[float]:
        """Score of each of the memory's own images by the memory of the others.

        Args:
            tokens: [N, T, prefix + G, d], those that the memory was made of.
            groups: [N], patients or volumes, which are left out whole; None is a group of its own.
            readout: How a score is read off.
        """
        own, scores = self.patches.unflatten(0, (len(tokens), self.kept)), []
        for number, group in enumerate(groups):
            others = [i for i, other in enumerate(groups) if i != number and (group is None or other != group)]
            image, memory = tokens[number][None].to(own.device), own[others].flatten(0, 1)
            scores.append(float(self._judge(image, self.text(), readout, memory)[0]))
        return scores

    def _judge(
        self, tokens: torch.Tensor, text: torch.Tensor, readout: Readout, memory: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(tokens)
        far = nearest_distance(features, memory)
        share = far / (far + self.scale)
        mean, maps = share.mean(1), F.interpolate(share.unflatten(1, self.grid)[:, None], self.size, mode="bilinear")
        maps = smooth(maps[:, 0], SIGMA)
        if self.texts:
            whole, told = self.texts.shares(tokens[:, -1], text)
            mean, maps = mean.lerp(whole, self.weight), maps.lerp(told, self.weight)
        return scoring.image_score(readout.rule, mean, maps), maps


def nearest_distance(features: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Euclidean distance to the nearest row of the memory: [B, G, D], [M, D] -> [B, G].

    A product of matrices finds which row that is; the distance itself is of the difference, exact also near 0.
    """
    distance: torch.Tensor = (features - memory[nearest_rows(features, memory)]).norm(dim=-1)
    return distance


def nearest_rows(features: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Which row of the memory is nearest: [B, G, D], [M, D] -> [B, G]."""
    return (features @ memory.mT - memory.square().sum(1) / 2).argmax(-1)


def nearest_other(features: torch.Tensor) -> torch.Tensor:
    """Distance of each row [N, D] to the nearest other one: [N]."""
    return torch.cdist(features, features).fill_diagonal_(torch.inf).amin(1)


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
