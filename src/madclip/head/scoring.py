"""From features and text to scores, maps and image scores (method: section 4). Pure functions."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F


def directions(text: torch.Tensor, *, contrast: bool = True) -> torch.Tensor:
    """What each branch's features are projected on: t_n - t_ab and t_ab - t_n, or t_n and t_ab without contrast.

    Args:
        text: [e, 2], columns t_n and t_ab of unit length.
        contrast: False leaves out the opposite class (ablation d).

    Returns:
        [2, e]: normal, abnormal.
    """
    towards: torch.Tensor = (text - text.flip(1)).mT if contrast else text.mT
    return towards


def patch_scores(features: torch.Tensor, towards: torch.Tensor) -> torch.Tensor:
    """S of every patch, O_b . direction_b with O_b the features scaled to unit length.

    Args:
        features: [R, ..., e], R = 2 branches, or 1 that stands for both.
        towards: [2, e], from `directions`.

    Returns:
        [..., 2]: S_n, S_ab.
    """
    towards = towards.to(features.dtype)
    rows = features.reshape(len(features), -1, features.shape[-1])
    by_hand = rows.device.type == "cpu" and not torch.compiler.is_compiling()
    if by_hand and torch.is_grad_enabled() and rows.requires_grad:
        scores, _ = _PatchScores.apply(rows, towards)  # type: ignore[no-untyped-call]
    else:
        scores, _ = _project(rows, towards)
    found: torch.Tensor = scores.mT.reshape(*features.shape[1:-1], 2)
    return found


def _project(rows: torch.Tensor, towards: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows [R, M, e] of unit length on both directions [2, e]: [2, M], and their lengths [R, M]."""
    wide = torch.promote_types(rows.dtype, torch.float32)
    length = torch.linalg.vector_norm(rows, dim=-1, dtype=wide).clamp_min(1e-12)
    # Projected before scaled: the same numbers, without a scaled copy of the features.
    return torch.bmm(rows.expand(2, -1, -1), towards[:, :, None])[..., 0] / length, length


_BLOCK = 512
"""Rows at once, so that what is in between stays in the processor's cache."""


class _PatchScores(torch.autograd.Function):
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


def map_logits(
    scores: torch.Tensor, grid: tuple[int, int], size: tuple[int, int], *, align_corners: bool = False
) -> torch.Tensor:
    """Log-odds of "abnormal" for every pixel: interpolated S_ab - S_n; its sigmoid is channel 1 of the softmax.

    Args:
        scores: [T, B, G, 2], S of the taps.
        grid: Rows and columns of patches, G = rows x columns.
        size: Height and width of the map, pixels.
        align_corners: Of the bilinear interpolation.

    Returns:
        [T, B, height, width].
    """
    difference = (scores[..., 1] - scores[..., 0]).float().contiguous()
    if not difference.requires_grad:
        # As an operation of its own, which exports to int8 can leave as it is.
        flat = difference.view(-1, 1, *grid)
        drawn = F.interpolate(flat, size, mode="bilinear", align_corners=align_corners)
        return drawn.view(*difference.shape[:2], *size)
    matrix = _interpolation if torch.compiler.is_compiling() else _kept_interpolation
    rows, columns = (matrix(n, m, align_corners, difference.device) for n, m in zip(grid, size, strict=True))
    # Bilinear interpolation is a matrix product along each axis; its gradient then is one as well.
    return rows @ difference.view(*difference.shape[:2], *grid) @ columns.mT


def _interpolation(length: int, size: int, align_corners: bool, device: torch.device) -> torch.Tensor:
    """Matrix [size, length] that interpolates linearly along one axis."""
    unit = torch.eye(length, dtype=torch.float64, device=device)[None]
    return F.interpolate(unit, size, mode="linear", align_corners=align_corners)[0].mT.float().contiguous()


@cache
def _kept_interpolation(length: int, size: int, align_corners: bool, device: torch.device) -> torch.Tensor:
    with torch.inference_mode(mode=False):
        return _interpolation(length, size, align_corners, device)


def anomaly_map(logits: torch.Tensor) -> torch.Tensor:
    """Mean over taps of the maps: log-odds [T, B, height, width] -> [B, height, width] in 0..1."""
    return logits.sigmoid().mean(0)


def mean_score(scores: torch.Tensor) -> torch.Tensor:
    """Image score of the detection head: mean over taps and patches of softmax(S)[1]; [T, B, G, 2] -> [B] in 0..1."""
    return (scores[..., 1] - scores[..., 0]).sigmoid().mean((0, 2))
