"""What the methods that compare patches with texts share: how linear layers begin, and losses on maps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from madclip.head.fused import map_losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.training.shots import Shot


def linear_weights(*shape: int, generator: torch.Generator) -> torch.nn.Parameter:
    """Weights [..., out, in] drawn as `nn.Linear` draws them."""
    bound = 1 / math.sqrt(shape[-1])
    return torch.nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * bound)


def shot_masks(shots: Sequence[Shot]) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks [N, S, S] bool, and whether each shot says where it is abnormal [N]; nobody does where no mask is there."""
    size = shots[0].pixels.shape[1:]
    masks = torch.stack([torch.zeros(size, dtype=torch.bool) if s.mask is None else s.mask for s in shots])
    some = any(shot.label and shot.mask is not None for shot in shots)
    return masks, torch.tensor([some and (not shot.label or shot.mask is not None) for shot in shots])


def map_loss(logits: torch.Tensor, masks: torch.Tensor, masked: torch.Tensor) -> torch.Tensor:
    """Dice and focal terms summed over taps, of the images that have masks: logits [T, B, rows, columns] -> []."""
    if not bool(masked.any()):
        return logits.sum() * 0
    return torch.stack(tuple(map_losses(logits[:, masked], masks[masked]))).sum()
