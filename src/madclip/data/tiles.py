"""Large images as tiles that overlap, and one map of all of theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.recipe import View

STEP = 0.75
"""Tiles lie at most this part of their side apart: what one has at its border is well inside of another."""

Corner = tuple[int, int]
Cut = TypeVar("Cut", npt.NDArray[np.float32], npt.NDArray[np.bool_], torch.Tensor)


def tile_size(size: tuple[int, int], view: View) -> tuple[int, int]:
    """Height and width of the tiles of an image of this height and width, pixels: the view's, or all that there is."""
    return min(view.tile, size[0]), min(view.tile, size[1])


def corners(size: tuple[int, int], view: View) -> list[Corner]:
    """Tops and lefts of the tiles that cover an image of this height and width at even distances, row by row."""
    tops, lefts = (_starts(length, side) for length, side in zip(size, tile_size(size, view), strict=True))
    return [(top, left) for top in tops for left in lefts]


def cut(values: Cut, corner: Corner, view: View) -> Cut:
    """The tile at a corner of what has its image's height and width in its last two axes."""
    height, width = tile_size((values.shape[-2], values.shape[-1]), view)
    top, left = corner
    found: Cut = values[..., top : top + height, left : left + width]
    return found


def _starts(length: int, side: int) -> list[int]:
    count = 1 + int(np.ceil((length - side) / (STEP * side)))
    return [int(start) for start in np.linspace(0, length - side, count).round()]


def map_size(size: tuple[int, int], view: View) -> tuple[int, int]:
    """Height and width of an image's map before it is brought to the image's size: a tile takes a square of it."""
    if not view.tile:
        return view.size, view.size
    height, width = (round(view.size * whole / part) for whole, part in zip(size, tile_size(size, view), strict=True))
    return max(view.size, height), max(view.size, width)


class Joined:
    """The map of an image from those of its tiles: where they overlap, each counts by the distance from its border.

    Args:
        size: Height and width of the image.
        view: How its tiles were cut.
    """

    def __init__(self, size: tuple[int, int], view: View) -> None:
        self._scale = [view.size / side for side in tile_size(size, view)]
        self._sum = torch.zeros(map_size(size, view))
        self._weight = torch.zeros(map_size(size, view))
        place = torch.arange(view.size)
        ramp = torch.minimum(place + 1, view.size - place).float()
        self._ramp = ramp[:, None] * ramp[None]

    def add(self, found: Sequence[Corner], maps: torch.Tensor) -> None:
        """Takes the maps [B, S, S] of tiles with these corners."""
        height, width = self._sum.shape
        side = len(self._ramp)
        for (top, left), one in zip(found, maps, strict=True):
            row = min(round(top * self._scale[0]), height - side)
            column = min(round(left * self._scale[1]), width - side)
            area = (slice(row, row + side), slice(column, column + side))
            self._sum[area] += self._ramp * one
            self._weight[area] += self._ramp

    def map(self) -> torch.Tensor:
        """The map, of the size `map_size`."""
        return self._sum / self._weight.clamp_min(1e-6)


def resized(one: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A map [h, w] at another height and width, interpolated bilinearly."""
    return F.interpolate(one[None, None], size, mode="bilinear", antialias=True, align_corners=False)[0, 0]
