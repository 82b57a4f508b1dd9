"""A frozen vision tower whose patch tokens the vision tower learns to predict beside its other losses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tools.pretrain.data import toned

from madclip.backbones.build import build
from madclip.backbones.fused import normalised, on_grid
from madclip.backbones.sources import find_checkpoint

if TYPE_CHECKING:
    from tools.pretrain.data import Batch
    from tools.pretrain.model import TowerConfig

PART = 16
"""Images that are read at once."""


class Teacher:
    """A tower as a fused backbone has it beside these towers: same grid, input size and norm of its tokens.

    Args:
        name: What `madclip.load_backbone` takes after a `+`.
        config: Of the towers that are trained.
        device: Where it goes.
        dtype: What it computes in.

    Raises:
        CheckpointError: The weights are missing or damaged.
        ValueError: It has another number of taps.
    """

    def __init__(self, name: str, config: TowerConfig, device: str = "cpu", dtype: str = "bfloat16") -> None:
        checkpoint, entry, known = find_checkpoint(name)
        self._grid = config.grid, config.grid
        self._tower = build(
            checkpoint,
            name=known,
            entry=entry,
            image_size=config.image_size,
            grid=self._grid,
            device=torch.device(device),
            dtype=getattr(torch, dtype),
        )
        self.width = self._tower.spec.width
        if (taps := len(self._tower.spec.taps)) != len(config.taps):
            raise ValueError(f"{name} has {taps} taps and these towers {len(config.taps)}: it cannot teach them")

    @torch.no_grad()
    def tokens(self, batch: Batch) -> torch.Tensor:
        """Tokens of the patches that are kept, from whole views of a step: float32 [T, B, K, d]."""
        parts = zip(batch.pixels.split(PART), batch.tones.split(PART), batch.kept.split(PART), strict=True)
        return torch.cat([self._read(*part) for part in parts], dim=1)

    def _read(self, pixels: torch.Tensor, tones: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        shown = toned(pixels.flatten(2), tones).view(pixels.shape)
        taps = torch.stack(self._tower.patch_tokens(shown)).float()
        placed = normalised(torch.stack([on_grid(tap, self._tower.grid, self._grid) for tap in taps]))
        index = kept.to(placed.device)[None, :, :, None].expand(len(placed), -1, -1, placed.shape[-1])
        return placed.gather(2, index)
