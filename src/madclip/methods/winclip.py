"""WinCLIP+ (Jeong et al., WinCLIP, CVPR 2023): windows of the image against texts and against normal windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from madclip.head.memory import far_from_memory
from madclip.head.prompts import fixed_text_features
from madclip.head.scoring import abnormal_share, text_scores
from madclip.methods.base import Baseline
from madclip.training.encode import backbone_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.methods.learning import Learning
    from madclip.training.shots import Shot

SCALES = (2, 3)
"""Sides of the windows, in patches."""
TEMPERATURE = 0.07


class WinCLIP(Baseline):
    """Texts alone say something of every window; normal shots, where there are any, say what windows should look like.

    The paper's ensemble of prompts is that of the fixed prompts here: states in templates around the objective.
    """

    name: ClassVar[str] = "winclip"
    title: ClassVar[str] = "WinCLIP+ (Jeong et al., CVPR 2023)"
    learns_from: ClassVar[Literal["nothing", "normal", "both"]] = "normal"
    image_score: ClassVar[str] = "text score of the image and largest distance to normal windows, their mean"

    def _learn(self, shots: Sequence[Shot], run: Learning) -> None:  # noqa: ARG002  -- nothing is left to chance
        self.text = fixed_text_features(self.backbone, self.objective).float().cpu()
        seen = [self._look(shot.pixels[None]) for shot in shots]
        *self.windows, self.patches = (
            torch.cat(level).flatten(0, 1) for level in zip(*(s[1] for s in seen), strict=True)
        )

    @torch.inference_mode()
    def _look(self, pixels: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Embeddings of images [B, e]; of their windows at each scale [B, W, e], and their last patches [B, G, d]."""
        ready = backbone_pixels(self.backbone, self.recipe.view, pixels)
        last = self.backbone.encode_image(ready)[-1]
        levels = []
        for side in SCALES:
            windows = window_patches(self.backbone.grid, side)
            streams = self.backbone.encode_image(ready, windows=windows)[-1]
            levels.append(self.backbone.embed_image(streams).float().cpu().unflatten(0, (len(pixels), len(windows))))
        levels.append(last[:, self.backbone.spec.prefix_tokens :].float().cpu())
        return self.backbone.embed_image(last).float().cpu(), levels

    @torch.inference_mode()
    def score(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Baseline.score`."""
        image, (*levels, patches) = self._look(pixels)
        grid = self.backbone.grid
        whole = abnormal_share(text_scores(image, self.text, TEMPERATURE))
        told, unusual = [whole[:, None].expand(-1, grid[0] * grid[1])], []
        for side, windows, normal in zip(SCALES, levels, self.windows, strict=True):
            covers = window_patches(grid, side)
            told.append(spread(abnormal_share(text_scores(windows, self.text, TEMPERATURE)), covers))
            unusual.append(spread(far_from_memory(windows, normal) / 2, covers))
        unusual.append(far_from_memory(patches, self.patches) / 2)
        seen = torch.stack(unusual).mean(0)
        maps = self.upsample((harmonic_mean(torch.stack(told), 0) + seen) / 2)
        return (whole + seen.amax(1)) / 2, maps.clamp(0, 1)


def window_patches(grid: tuple[int, int], side: int) -> torch.Tensor:
    """Numbers of the patches of every window of side x side patches, row by row: [W, side x side]."""
    side = min(side, *grid)
    numbers = torch.arange(grid[0] * grid[1]).view(grid)
    return numbers.unfold(0, side, 1).unfold(1, side, 1).reshape(-1, side * side)


def spread(scores: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
    """Harmonic mean at each patch of the windows that cover it (section 3.2): [B, W], [W, K] -> [B, G]."""
    patches = int(windows.max()) + 1
    inverse = (1 / scores.clamp_min(1e-6))[..., None].expand(-1, -1, windows.shape[1]).flatten(1)
    index = windows.flatten().expand(len(scores), -1)
    total = torch.zeros(len(scores), patches).scatter_add_(1, index, inverse)
    return windows.flatten().bincount(minlength=patches) / total


def harmonic_mean(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Harmonic mean of positive values along a dimension."""
    return values.shape[dim] / (1 / values.clamp_min(1e-6)).sum(dim)
