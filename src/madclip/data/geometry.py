"""Images, masks and maps between their native size and the square that the backbone sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image as Picture

from madclip.data.tiles import resized

if TYPE_CHECKING:
    import numpy.typing as npt

    from madclip.recipe import View


def fit_pixels(pixels: npt.NDArray[np.float32] | torch.Tensor, view: View) -> torch.Tensor:
    """Resizes by antialiased bicubic interpolation, as Pillow does, without rounding to 8 bits.

    Args:
        pixels: float32 [3, H, W] in 0..1.
        view: Side S of the square, and whether the shorter side is padded.

    Returns:
        float32 [3, S, S] in 0..1.
    """
    source = torch.as_tensor(pixels, dtype=torch.float32)
    top, left, height, width = box(source.shape[-2], source.shape[-1], view)
    if (height, width) == tuple(source.shape[-2:]):
        inner = source
    else:
        planes = source[:1] if _is_grey(source) else source
        inner = F.interpolate(planes[None], (height, width), mode="bicubic", antialias=True, align_corners=False)[0]
        inner = inner.expand(len(source), -1, -1)
    return _place(inner.clamp(0, 1), top, left, view.size)


def fit_mask(mask: npt.NDArray[np.bool_] | torch.Tensor, view: View) -> torch.Tensor:
    """Resizes bool [H, W] to bool [S, S] by nearest neighbours, padding with False."""
    source = np.asarray(mask, dtype=bool)
    top, left, height, width = box(source.shape[0], source.shape[1], view)
    # By Pillow itself, as in the published protocol: where a centre falls on the border of two pixels (512 to 240 has
    # many), which one is nearest depends on how the positions are summed.
    inner = Picture.fromarray(source).resize((width, height), Picture.Resampling.NEAREST)
    return _place(torch.from_numpy(np.array(inner)), top, left, view.size)


def restore_map(anomaly_map: torch.Tensor, native: tuple[int, int], view: View) -> npt.NDArray[np.float32]:
    """Brings a map back to the image's own size: the padding is cut away, the rest interpolated bilinearly.

    Args:
        anomaly_map: [S, S]; of an image that was seen in tiles of the size that `madclip.data.tiles.map_size` says.
        native: Height and width of the image.
        view: The one that the image was fitted with.

    Returns:
        float32 [H, W], in the range of the map.
    """
    inner = anomaly_map.detach().float().cpu()
    if not view.tile:
        top, left, height, width = box(*native, view)
        inner = inner[top : top + height, left : left + width]
    return resized(inner, native).contiguous().numpy()


def box(height: int, width: int, view: View) -> tuple[int, int, int, int]:
    """Top, left, height and width inside the square of an image of this height and width; around it is padding."""
    size = view.size
    if view.aspect == "stretch":
        return 0, 0, size, size
    scale = size / max(height, width)
    inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
    return (size - inner_height) // 2, (size - inner_width) // 2, inner_height, inner_width


def _is_grey(pixels: torch.Tensor) -> bool:
    """Whether all planes are equal, so that one needs to be scaled; a colour image shows in its first row."""
    return all(torch.equal(pixels[0, rows], plane[rows]) for rows in (0, slice(None)) for plane in pixels[1:])


def _place(inner: torch.Tensor, top: int, left: int, size: int) -> torch.Tensor:
    height, width = inner.shape[-2:]
    return F.pad(inner, (left, size - left - width, top, size - top - height))
