"""The loss terms, each of one tap or of all at once (method: sections 5 and 10). Pure functions; sum them over taps."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F


def siglip_loss(
    scores: torch.Tensor, labels: torch.Tensor, *, temperature: float = 1.0, bias: float = 0.0
) -> torch.Tensor:
    """Sigmoid loss of every patch against both prompts.

    Args:
        scores: [T, B, G, 2], S of the detection head.
        labels: [B], 0 normal, 1 abnormal.
        temperature: t, multiplies S.
        bias: b, added to it.

    Returns:
        [T]: minus the mean over images of the sum over prompts of the mean over patches of log sigmoid(z (t S + b)),
        z = +1 where the prompt's class is the image's, otherwise -1.
    """
    classes = torch.stack([1 - labels, labels], -1).to(scores.dtype)
    sign = (2 * classes - 1)[None, :, None, :]
    return -F.logsigmoid(sign * (temperature * scores + bias)).mean(2).sum(-1).mean(-1)


def softmax_loss(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Ablation e: binary cross-entropies of the patch means of the softmax, fed as logits as the released code does.

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


class MapTerms(NamedTuple):
    """Dice and focal terms of the maps, each [T]."""

    dice: torch.Tensor
    focal: torch.Tensor


def map_losses(logits: torch.Tensor, masks: torch.Tensor, *, smoothing: float = 0.0) -> MapTerms:
    """Dice and focal terms of all taps.

    Dice: 1 - mean over images of (2 sum(p m) + 1) / (sum(p) + sum(m) + 1), p the probability of "abnormal".
    Focal (gamma 2): mean over pixels of (1 - p_t)^2 (-log p_t), p_t the probability of the pixel's true class.

    Args:
        logits: [T, B, H, W], log-odds of "abnormal".
        masks: [B, H, W] bool.
        smoothing: The released code clamps the one-hot target to [s, 1 - s] and adds s to p_t (s = 1e-5).
    """
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        return _map_terms(logits, masks.to(logits.dtype), smoothing)
    dice, focal = _MapLosses.apply(logits, masks, smoothing)  # type: ignore[no-untyped-call]
    return MapTerms(dice, focal)


def _map_terms(logits: torch.Tensor, lesion: torch.Tensor, smoothing: float) -> MapTerms:
    """The terms as they are written, for devices and compilers that join the passes over the pixels by themselves."""
    true = logits * (2 * lesion - 1)
    if smoothing:
        right = true.sigmoid() * (1 - 2 * smoothing) + 2 * smoothing
        log, missing = right.log(), 1 - right
    else:
        log, missing = F.logsigmoid(true), (-true).sigmoid()
    focal = -(missing.square() * log).mean((-2, -1))
    ill = logits.sigmoid()
    overlap = (ill * lesion).sum((-2, -1))
    dice = 1 - (2 * overlap + 1) / (ill.sum((-2, -1)) + lesion.sum((-2, -1)) + 1)
    return MapTerms(dice.mean(-1), focal.mean(-1))


class _MapLosses(torch.autograd.Function):
    """Both terms with their gradients in one pass over the pixels, which would otherwise take most of a step.

    Image by image, so that what is in between stays in the processor's cache.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, masks: torch.Tensor, smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        terms = []
        slopes = torch.empty(2, *logits.shape, dtype=logits.dtype, device=logits.device)
        for image, mask in enumerate(masks):
            *found, dice_slope, focal_slope = _image_terms(logits[:, image], mask.to(logits.dtype), smoothing)
            terms.append(torch.stack(found))
            slopes[0, :, image], slopes[1, :, image] = dice_slope, focal_slope
        ctx.save_for_backward(slopes)
        dice, focal = torch.stack(terms).mean(0)
        return dice, focal

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        images = slopes.shape[2]
        to_dice, to_focal = (gradient[:, None, None] / images for gradient in gradients)
        out = torch.empty_like(slopes[0])
        for image in range(images):
            torch.mul(slopes[0, :, image], to_dice, out=out[:, image]).addcmul_(slopes[1, :, image], to_focal)
        return out, None, None


def _image_terms(logits: torch.Tensor, lesion: torch.Tensor, smoothing: float) -> tuple[torch.Tensor, ...]:
    """Dice and focal of an image [T], and the gradient of each by the logits [T, H, W]; lesion [H, W] is 0 or 1."""
    sign = 2 * lesion - 1
    true = logits * sign
    right = true.sigmoid()  # probability of the true class, p_t
    wrong = 1 - right
    if smoothing:
        kept = right * (1 - 2 * smoothing) + 2 * smoothing
        log, missing = kept.log(), 1 - kept
        slope = (2 * missing * log - missing.square() / kept) * (1 - 2 * smoothing) * right * wrong
    else:
        log, missing = F.logsigmoid(true), wrong
        slope = (2 * right).mul_(log).sub_(wrong).mul_(wrong).mul_(wrong)
    focal = -(missing.square().mul_(log)).mean((-2, -1))
    # p = p_t on the lesion and 1 - p_t elsewhere, so that sum(p) = sum(1 - p_t) + 2 sum(p_t m) - sum(m).
    overlap = (right * lesion).sum((-2, -1))
    total = wrong.sum((-2, -1)) + 2 * overlap + 1
    ratio = (2 * overlap + 1) / total
    # d ratio / dp = (2 m - ratio) / total; d p / d logit = p_t (1 - p_t) whichever the class.
    weight = (2 * lesion - ratio[:, None, None]).div_(-total[:, None, None])
    return 1 - ratio, focal, weight.mul_(right).mul_(wrong), slope.mul_(sign).div_(lesion.numel())
