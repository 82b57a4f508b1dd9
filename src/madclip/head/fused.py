"""What a training step spends its time on, in fewer passes over memory; each form is held equal to the plain one."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from madclip.head.losses import dice_loss, focal_loss


class MapTerms(NamedTuple):
    """Dice and focal terms of the maps, each [T]."""

    dice: torch.Tensor
    focal: torch.Tensor


def map_losses(
    logits: torch.Tensor, masks: torch.Tensor, *, align_corners: bool = False, smoothing: float = 0.0
) -> MapTerms:
    """`dice_loss` and `focal_loss` of all taps; on a processor with their gradients in one pass over the pixels.

    Args:
        logits: [T, B, rows, columns], log-odds of "abnormal"; interpolated to the size of the masks.
        masks: [B, H, W] bool.
        align_corners: See `interpolate`.
        smoothing: See `focal_loss`.
    """
    if logits.device.type != "cpu":
        maps = interpolate(logits, (masks.shape[1], masks.shape[2]), align_corners=align_corners)
        return MapTerms(dice_loss(maps, masks), focal_loss(maps, masks, smoothing=smoothing))
    dice, focal = _MapLosses.apply(logits, masks, align_corners, smoothing)  # type: ignore[no-untyped-call]
    return MapTerms(dice, focal)


def interpolate(patches: torch.Tensor, size: tuple[int, int], *, align_corners: bool) -> torch.Tensor:
    """Bilinear interpolation, [T, B, rows, columns] -> [T, B, height, width]; as matrix products where it is learned.

    Its gradient then is a matrix product along each axis as well.
    """
    if not patches.requires_grad:
        # As an operation of its own, which exports to int8 can leave as it is.
        flat = patches.flatten(0, 1)[:, None]
        drawn = F.interpolate(flat, size, mode="bilinear", align_corners=align_corners)
        return drawn.view(*patches.shape[:2], *size)
    rows, columns = (
        _interpolation(n, m, align_corners, patches.device) for n, m in zip(patches.shape[2:], size, strict=True)
    )
    return rows @ patches @ columns.mT


@cache
def _interpolation(length: int, size: int, align_corners: bool, device: torch.device) -> torch.Tensor:
    """Matrix [size, length] that interpolates linearly along one axis."""
    with torch.inference_mode(mode=False):
        unit = torch.eye(length, dtype=torch.float64, device=device)[None]
        return F.interpolate(unit, size, mode="linear", align_corners=align_corners)[0].mT.float().contiguous()


class _MapLosses(torch.autograd.Function):
    """Both terms with their gradients in one pass over the pixels, which would otherwise take most of a step.

    Image by image, so that what is in between stays in the processor's cache; gradients are kept at the size of the
    logits, not at that of the masks.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, masks: torch.Tensor, align_corners: bool, smoothing: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows, columns = (
            _interpolation(n, m, align_corners, logits.device).to(logits.dtype)
            for n, m in zip(logits.shape[2:], masks.shape[1:], strict=True)
        )
        terms = []
        slopes = logits.new_empty(2, *logits.shape)
        for image, mask in enumerate(masks):
            drawn = rows @ logits[:, image] @ columns.mT
            dice, focal, *gradients = _image_terms(drawn, mask.to(logits.dtype), smoothing)
            terms.append(torch.stack((dice, focal)))
            for slope, gradient in zip(slopes, gradients, strict=True):
                slope[:, image] = rows.mT @ (gradient @ columns)
        ctx.save_for_backward(slopes)
        dice, focal = torch.stack(terms).mean(0)
        return dice, focal

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (slopes,) = ctx.saved_tensors
        to_dice, to_focal = (gradient[:, None, None, None] / slopes.shape[2] for gradient in gradients)
        return slopes[0] * to_dice + slopes[1] * to_focal, None, None, None


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
        squared = missing.square()
    else:
        log, squared = F.logsigmoid(true), wrong.square()
        slope = torch.addcmul(wrong, right, log, value=-2).mul_(squared).neg_()
    focal = -torch.linalg.vecdot(squared.flatten(1), log.flatten(1)) / lesion.numel()
    # p = p_t on the lesion and 1 - p_t elsewhere, so that sum(p) = sum(1 - p_t) + 2 sum(p_t m) - sum(m).
    overlap = right.flatten(1) @ lesion.flatten()
    total = wrong.sum((-2, -1)) + 2 * overlap + 1
    ratio = (2 * overlap + 1) / total
    # d ratio / dp = (2 m - ratio) / total; d p / d logit = p_t (1 - p_t) whichever the class.
    weight = (2 * lesion - ratio[:, None, None]).div_(-total[:, None, None])
    return 1 - ratio, focal, weight.mul_(right).mul_(wrong), slope.mul_(sign).div_(lesion.numel())
