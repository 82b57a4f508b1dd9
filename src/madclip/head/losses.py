"""The loss terms of all taps, as their equations are written (method: sections 5 and 10); the loss is their sum."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def siglip_loss(
    scores: torch.Tensor, labels: torch.Tensor, *, temperature: float = 1.0, bias: float = 0.0
) -> torch.Tensor:
    """Sigmoid loss of every patch against both prompts.

    Args:
        scores: [T, B, G, 2], S of the detection head.
        labels: [B], 0 normal, 1 abnormal.
        temperature: S is multiplied by t.
        bias: The bias b is added to t S.

    Returns:
        [T]: minus the mean over images of the sum over prompts of the mean over patches of log sigmoid(z (t S + b)),
        z = +1 where the prompt's class is the image's, otherwise -1.
    """
    classes = torch.stack([1 - labels, labels], -1).to(scores.dtype)
    sign = (2 * classes - 1)[None, :, None, :]
    return -F.logsigmoid(sign * (temperature * scores + bias)).mean(2).sum(-1).mean(-1)


def softmax_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Ablation e: binary cross-entropies of the patch means of the softmax, fed as logits as the released code does it.

    Args:
        scores: [T, B, G, 2], S of the detection head.
        labels: [B], 0 normal, 1 abnormal.

    Returns:
        [T].
    """
    normal, abnormal = scores.softmax(-1).mean(2).unbind(-1)
    target = labels.to(scores.dtype).expand_as(normal)
    losses = (
        F.binary_cross_entropy_with_logits(1 - normal, target, reduction="none"),
        F.binary_cross_entropy_with_logits(abnormal, target, reduction="none"),
    )
    return (losses[0] + losses[1]).mean(-1)


def dice_loss(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Dice loss: 1 - mean over images of (2 sum(p m) + 1) / (sum(p) + sum(m) + 1).

    Args:
        logits: [T, B, H, W], log-odds of "abnormal"; p is their sigmoid.
        masks: [B, H, W] bool, m.

    Returns:
        [T].
    """
    p, m = logits.sigmoid(), masks.to(logits.dtype)
    overlap, total = (p * m).sum((-2, -1)), p.sum((-2, -1)) + m.sum((-2, -1))
    return 1 - ((2 * overlap + 1) / (total + 1)).mean(-1)


def focal_loss(logits: torch.Tensor, masks: torch.Tensor, *, smoothing: float = 0.0) -> torch.Tensor:
    """Focal loss (gamma 2): mean over pixels of (1 - p_t)^2 (-log p_t), p_t the probability of the pixel's true class.

    Args:
        logits: [T, B, H, W], log-odds of "abnormal".
        masks: [B, H, W] bool.
        smoothing: s of the released code (1e-5), which clamps the one-hot target to [s, 1 - s] and adds s to p_t.

    Returns:
        [T].
    """
    true = torch.where(masks, logits, -logits)
    if smoothing:
        right = true.sigmoid() * (1 - 2 * smoothing) + 2 * smoothing
        return -((1 - right).square() * right.log()).mean((-3, -2, -1))
    return -((-true).sigmoid().square() * F.logsigmoid(true)).mean((-3, -2, -1))
