"""MKD (Salehi et al., Multiresolution Knowledge Distillation for Anomaly Detection, CVPR 2021) on tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F

from madclip.head.memory import smooth
from madclip.methods.base import Baseline, squash
from madclip.methods.distillation import (
    SIGMA,
    WIDTH,
    Residual,
    downsampling,
    image_distance,
    patch_distance,
    seeded,
    to_planes,
)
from madclip.methods.learning import Adam, Learning, optimise
from madclip.methods.tokens import Standard
from madclip.training.encode import backbone_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.training.shots import Shot

EPOCHS = 100
WEIGHT = 0.01
"""Weight of the squared distance beside that of directions."""
SCORED = 3
"""The last taps, of which the image score is made."""


class MKD(Baseline):
    """A small convolutional student that says of the same pixels what the tower says; it fails on the abnormal.

    The authors read the map off the gradient of the distance with respect to the pixels; here it is the distance of
    each patch, which needs no gradient through the tower.
    """

    name: ClassVar[str] = "mkd"
    title: ClassVar[str] = "MKD on tokens (Salehi et al., CVPR 2021)"
    learns_from: ClassVar[Literal["nothing", "normal", "both"]] = "normal"
    image_score: ClassVar[str] = "distance of whole taps, the last three"

    def _learn(self, shots: Sequence[Shot], run: Learning) -> None:
        tokens = self.shot_tokens(shots, run)
        self.standard = Standard.of(tokens)
        planes = to_planes(self.standard(tokens), self.backbone.grid)
        pixels = self._pixels(torch.stack([shot.pixels for shot in shots]))
        self.student = seeded(lambda: Cloner(tokens.shape[1], tokens.shape[3], self.backbone.grid), run.seed)

        def loss_of(rows: torch.Tensor) -> torch.Tensor:
            return distances(self.student(pixels[rows]), planes[rows]).mean(0).sum()

        optimise(self.student.parameters(), len(planes), loss_of, Adam(EPOCHS, betas=(0.9, 0.999)), run)
        self.student.eval()

    def _pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        return backbone_pixels(self.backbone, self.recipe.view, pixels).float().cpu()

    @torch.inference_mode()
    def score(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Baseline.score`."""
        planes = to_planes(self.standard(self.image_tokens(pixels)), self.backbone.grid)
        said = self.student(self._pixels(pixels))
        maps = smooth(self.upsample(patch_distance(said, planes).mean(1) / 2), SIGMA).clamp(0, 1)
        return squash(distances(said, planes)[:, -SCORED:].sum(1)), maps


class Cloner(torch.nn.Module):
    """The student: pixels to an eighth of their size, to the grid of patches, and from block to block to each tap."""

    def __init__(self, taps: int, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.stem = torch.nn.Sequential(downsampling(3, 16), downsampling(16, 32), downsampling(32, WIDTH))
        self.blocks = torch.nn.ModuleList(Residual() for _ in range(taps))
        self.say = torch.nn.ModuleList(torch.nn.Conv2d(WIDTH, channels, 1) for _ in range(taps))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [B, 3, S, S] -> planes of the taps [B, T, d, R, C]."""
        hidden = F.adaptive_avg_pool2d(self.stem(pixels), self.grid)
        said = []
        for block, say in zip(self.blocks, self.say, strict=True):
            hidden = block(hidden)
            said.append(say(hidden))
        return torch.stack(said, 1)


def distances(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Distance of directions, and a little of values, tap by tap: planes [B, T, d, R, C] twice -> [B, T]."""
    return image_distance(student, teacher) + WEIGHT * (student - teacher).square().flatten(2).mean(2)
