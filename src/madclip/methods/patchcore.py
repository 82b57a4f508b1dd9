"""PatchCore (Roth et al., Towards Total Recall in Industrial Anomaly Detection, CVPR 2022) on the taps of a CLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from madclip.head.memory import greedy_coreset, local_features, smooth
from madclip.methods.base import Baseline, squash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.methods.learning import Learning
    from madclip.training.shots import Shot

CORESET = 0.1
NEIGHBOURS = 9
SIGMA = 4.0


class PatchCore(Baseline):
    """A memory of normal patches; far from all of them is abnormal. Blocks of the taps stand in for ResNet levels."""

    name: ClassVar[str] = "patchcore"
    title: ClassVar[str] = "PatchCore (Roth et al., CVPR 2022)"
    learns_from: ClassVar[Literal["nothing", "normal", "both"]] = "normal"
    image_score: ClassVar[str] = "largest patch distance, reweighted"

    def _learn(self, shots: Sequence[Shot], run: Learning) -> None:
        patches = local_features(self.shot_tokens(shots, run), self.backbone.grid).flatten(0, 1)
        start = int(torch.randint(len(patches), (), generator=run.generator()))
        self.memory = patches[greedy_coreset(patches, max(1, round(CORESET * len(patches))), start)]

    @torch.inference_mode()
    def score(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Baseline.score`."""
        patches = local_features(self.image_tokens(pixels), self.backbone.grid)
        nearest = [_distances(image, self.memory).min(1) for image in patches]
        scores = [
            reweighted_score(image, found.values, found.indices, self.memory)
            for image, found in zip(patches, nearest, strict=True)
        ]
        maps = smooth(self.upsample(torch.stack([found.values for found in nearest])), SIGMA)
        return squash(torch.stack(scores)), squash(maps)


def reweighted_score(
    patches: torch.Tensor, distances: torch.Tensor, nearest: torch.Tensor, memory: torch.Tensor
) -> torch.Tensor:
    """Image score (equations 6 and 7): the largest patch distance, less where its memory is itself isolated.

    The weight is 1 - exp |m_test - m*| / sum over the 9 memories m nearest to m* (itself among them) of
    exp |m_test - m|. A memory of one has no neighbours, and the distance stays as it is.

    Args:
        patches: [G, D] of one image.
        distances: [G], to the nearest memory.
        nearest: [G], which memory that is.
        memory: [M, D].
    """
    worst = int(distances.argmax())
    if len(memory) == 1:
        return distances[worst]
    found = int(nearest[worst])
    around = _distances(memory[found : found + 1], memory)[0]
    around[found] = -1  # itself first, before duplicates
    neighbours = memory[around.topk(min(NEIGHBOURS, len(memory)), largest=False).indices]
    weight = 1 - _distances(patches[worst : worst + 1], neighbours)[0].softmax(0)[0]
    return weight * distances[worst]


def _distances(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Euclidean, [N, D], [M, D] -> [N, M]; of large ones by a matrix product, exact to some 1e-3 of the length."""
    return torch.cdist(first, second)
