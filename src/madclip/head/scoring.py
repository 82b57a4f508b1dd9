"""From features and text to scores, maps and image scores (method: section 4). Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from madclip.head import fused

if TYPE_CHECKING:
    from madclip.recipe import ImageScore

TEMPERATURE = 0.01
"""CLIP's temperature after its pre-training: cosines are divided by it."""


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
    rows = features.reshape(len(features), -1, features.shape[-1])
    wide = torch.promote_types(rows.dtype, torch.float32)
    length = torch.linalg.vector_norm(rows, dim=-1, dtype=wide).clamp_min(1e-12)
    # Projected before scaled: the same numbers, without a scaled copy of the features.
    scores = torch.bmm(rows.expand(2, -1, -1), towards.to(rows.dtype)[:, :, None])[..., 0] / length
    found: torch.Tensor = scores.mT.reshape(*features.shape[1:-1], 2)
    return found


def patch_logits(scores: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Log-odds of "abnormal" of every patch, S_ab - S_n: [T, B, G, 2] -> [T, B, rows, columns]."""
    logits: torch.Tensor = (scores[..., 1] - scores[..., 0]).float().contiguous().unflatten(2, grid)
    return logits


def map_logits(
    scores: torch.Tensor, grid: tuple[int, int], size: tuple[int, int], *, align_corners: bool = False
) -> torch.Tensor:
    """Log-odds of "abnormal" for every pixel: interpolated S_ab - S_n; its sigmoid is channel 1 of the softmax.

    Args:
        scores: [T, B, G, 2], S of the taps.
        grid: Rows and columns of patches, G = rows x columns.
        size: Height and width of the map, pixels.
        align_corners: Whether the bilinear interpolation maps corner patches to corner pixels.

    Returns:
        [T, B, height, width].
    """
    return fused.interpolate(patch_logits(scores, grid), size, align_corners=align_corners)


def anomaly_map(logits: torch.Tensor) -> torch.Tensor:
    """Mean over taps of the maps: log-odds [T, B, height, width] -> [B, height, width] in 0..1."""
    return logits.sigmoid().mean(0)


def mean_score(scores: torch.Tensor) -> torch.Tensor:
    """Image score of the detection head: mean over taps and patches of softmax(S)[1]; [T, B, G, 2] -> [B] in 0..1."""
    return (scores[..., 1] - scores[..., 0]).sigmoid().mean((0, 2))


def image_score(rule: ImageScore, mean: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Image score [B] by its rule: `mean` [B] of the image as a whole, the `max` of its map [B, H, W], or `both`."""
    largest = maps.amax((1, 2))
    return {"mean": mean, "max": largest, "both": (mean + largest) / 2}[rule]


def text_scores(features: torch.Tensor, text: torch.Tensor, temperature: float = TEMPERATURE) -> torch.Tensor:
    """Cosines to both texts over the temperature: [..., e], [e, 2] -> [..., 2], normal and abnormal."""
    return F.normalize(features.float(), dim=-1) @ text.float() / temperature


def abnormal_share(scores: torch.Tensor) -> torch.Tensor:
    """Channel "abnormal" of the softmax over both texts: [..., 2] -> [...]."""
    return (scores[..., 1] - scores[..., 0]).sigmoid()
