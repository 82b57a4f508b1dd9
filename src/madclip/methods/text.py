"""What the methods that compare patches with texts share: scores against both texts, and losses on maps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from madclip.head.fused import map_losses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.training.shots import Shot

TEMPERATURE = 0.01
"""CLIP's temperature after its pre-training: cosines are divided by it."""


def text_scores(features: torch.Tensor, text: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """Cosines to both texts over the temperature: [..., e], [e, 2] -> [..., 2], normal and abnormal."""
    return F.normalize(features.float(), dim=-1) @ text.float() / temperature


def abnormal_share(scores: torch.Tensor) -> torch.Tensor:
    """Channel "abnormal" of the softmax over both texts: [..., 2] -> [...]."""
    return (scores[..., 1] - scores[..., 0]).sigmoid()


def far_from_memory(features: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """One minus the largest cosine to a row of the memory: [..., d], [M, d] -> [..., ] in 0..2."""
    return 1 - (F.normalize(features, dim=-1) @ F.normalize(memory, dim=-1).mT).amax(-1)


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
