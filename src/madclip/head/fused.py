"""What a training step spends its time on, in fewer passes over memory; each form is held equal to the plain one."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F

from madclip.head.losses import dice_loss, focal_loss

_BLOCK = 512
"""Rows at once, so that what is in between stays in the processor's cache."""


class MapTerms(NamedTuple):
    """Dice and focal terms of the maps, each [T]."""

    dice: torch.Tensor
    focal: torch.Tensor


def map_losses(logits: torch.Tensor, masks: torch.Tensor, *, smoothing: float = 0.0) -> MapTerms:
    """`dice_loss` and `focal_loss` of all taps; on a processor with their gradients in one pass over the pixels.

    Args:
        logits: [T, B, H, W], log-odds of "abnormal".
        masks: [B, H, W] bool.
        smoothing: See `focal_loss`.
    """
    if logits.device.type != "cpu":
        return MapTerms(dice_loss(logits, masks), focal_loss(logits, masks, smoothing=smoothing))
    dice, focal = _MapLosses.apply(logits, masks, smoothing)  # type: ignore[no-untyped-call]
    return MapTerms(dice, focal)


def project(rows: torch.Tensor, towards: torch.Tensor) -> torch.Tensor:
    """Rows [R, M, e] scaled to unit length, on both directions [2, e]: [2, M]."""
    learning = torch.is_grad_enabled() and rows.requires_grad
    by_hand = learning and rows.device.type == "cpu"
    scores: torch.Tensor = (_Project.apply if by_hand else _project)(rows, towards)[0]
    return scores


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


def _project(rows: torch.Tensor, towards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`project`, and the lengths of the rows, [R, M]."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    length = torch.linalg.vector_norm(rows, dim=-1, dtype=wide).clamp_min(1e-12)
    # Projected before scaled: the same numbers, without a scaled copy of the features.
    return torch.bmm(rows.expand(2, -1, -1), towards[:, :, None])[..., 0] / length, length


class _Project(torch.autograd.Function):
    """`_project` with its gradient in two passes over the features, which would otherwise take ten."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, towards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores, length = _project(rows, towards)
        ctx.save_for_backward(rows, towards, scores, length)
        ctx.mark_non_differentiable(length)
        return scores, length

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows, towards, scores, length = ctx.saved_tensors
        # s = r . t / |r|: ds/dr = t / |r| - s r / |r|^2, ds/dt = r / |r|.
        outward = gradients[0] / length
        inward = -outward * scores / length
        if len(rows) == 1:
            inward = inward.sum(0, keepdim=True)
        to_rows, scale, weight = torch.empty_like(rows), inward[..., None].to(rows.dtype), outward.to(rows.dtype)
        for start in range(0, rows.shape[1], _BLOCK):
            block = slice(start, start + _BLOCK)
            torch.mul(rows[:, block], scale[:, block], out=to_rows[:, block])
            for branch in (0, 1):
                to_rows[branch % len(rows), block].addr_(weight[branch, block], towards[branch])
        to_towards = torch.bmm(weight[:, None], rows.expand(2, -1, -1))[:, 0]
        return to_rows, to_towards


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
