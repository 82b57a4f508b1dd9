"""What pre-training minimises: image to text, patch to text, and patch to a teacher's token."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def siglip(logits: torch.Tensor, match: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Sigmoid loss of all image-text pairs, summed over texts, mean over images (Zhai et al., SigLIP, 2023).

    Args:
        logits: [B, N], temperature times similarity plus bias.
        match: [B, N] bool, whether the text is true of the image.
        weight: [B, N], 0 for pairs of which that is not known.
    """
    sign = match.to(logits.dtype) * 2 - 1
    return -(F.logsigmoid(sign * logits) * weight).sum() / len(logits)


def dense(logits: torch.Tensor, areas: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every patch at every tap against the lesion's share of the patch.

    A sixth of a patch is enough to be called a lesion; less counts in proportion. Patches on small lesions weigh more,
    since there are few of them.

    Args:
        logits: [T, B, K].
        areas: [B, K], share of each patch that is lesion.

    Returns:
        [T], one loss for each tap.
    """
    target = (6 * areas).clamp(max=1)
    count = target.sum(dim=1, keepdim=True).clamp(min=1)
    weight = 1 + 8 * target * count.rsqrt()
    each = F.binary_cross_entropy_with_logits(logits, target.expand_as(logits), reduction="none")
    return (each * weight).sum(dim=(1, 2)) / weight.sum()


def distillation(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The part of the variance of a teacher's tokens that is not predicted at each tap: 1 where their mean is.

    Args:
        predicted: [T, B, K, d], the tokens less their mean over images and patches.
        target: [T, B, K, d], the tokens.

    Returns:
        [T], one loss for each tap.
    """
    target = target - target.mean((1, 2), keepdim=True)
    return (predicted - target).square().sum((1, 2, 3)) / target.square().sum((1, 2, 3))
