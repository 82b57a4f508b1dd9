"""Where slices lie, as one matrix: from positions and directions of DICOM to an affine as NIfTI has it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from madclip.data.series import EVEN, SAME_PLACE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from madclip.data.series import Place

_TO_RAS = np.diag([-1.0, -1.0, 1.0])
"""From (left, posterior, superior), as DICOM has it, to (right, anterior, superior), as NIfTI has it."""
MOST_SLICES = 512
"""An even grid has at most so many slices."""
_STRAIGHT = 0.02
"""Millimetres by which slices may always lie beside their evenly spaced places; else by `EVEN` of a step."""


def even_runs(places: Sequence[Place]) -> list[range]:
    """The longest stretches of slices in order that are evenly spaced along one line, each slice in one of them.

    A slice at the place of the one before begins a new stretch, and so does one of another pixel spacing.
    """
    runs, start = [], 0
    for stop in range(1, len(places) + 1):
        if stop == len(places) or not _goes_on(places[start : stop + 1]):
            runs.append(range(start, stop))
            start = stop
    return runs


def _goes_on(places: Sequence[Place]) -> bool:
    """Whether the last of some slices goes on with the stretch that the others are."""
    before, last = places[-2:]
    if last.spacing != before.spacing or last.height - before.height < SAME_PLACE:
        return False
    if not np.allclose([last.row, last.column], [places[0].row, places[0].column], atol=1e-3):
        return False
    corners = np.array([place.corner for place in places])
    step = (corners[-1] - corners[0]) / (len(places) - 1)
    even = corners[0] + np.arange(len(places))[:, None] * step  # where the affine of all puts them: small steps add up
    return bool(np.abs(corners - even).max() <= max(_STRAIGHT, EVEN * float(np.linalg.norm(step))))


def affine_of(places: Sequence[Place], thickness: float = 1.0) -> npt.NDArray[np.float64]:
    """[4, 4], from (column, row, slice) of evenly spaced slices to millimetres to the right, front and head.

    A stack that leans, as of a tilted gantry, gives a matrix with shear.

    Args:
        places: Slices of one of `even_runs`.
        thickness: Millimetres between slices where there is but one.
    """
    first, last = places[0], places[-1]
    corner = np.array(first.corner)
    step = first.normal * thickness if len(places) == 1 else (np.array(last.corner) - corner) / (len(places) - 1)
    rows, columns = first.spacing
    made = np.eye(4)
    made[:3, :3] = _TO_RAS @ np.stack([np.array(first.row) * columns, np.array(first.column) * rows, step], axis=1)
    made[:3, 3] = _TO_RAS @ corner
    return made


def even_places(places: Sequence[Place]) -> tuple[Place, ...] | None:
    """Evenly spaced places between the first and the last of some slices in order, at least as near as the two nearest.

    None where slices between them would not lie on one line, or differ in direction or pixel spacing.
    """
    corners, heights = np.array([place.corner for place in places]), np.array([place.height for place in places])
    gaps, span = np.diff(heights), heights[-1] - heights[0]
    apart = gaps[gaps >= SAME_PLACE]
    ways = np.array([[*place.row, *place.column, *place.spacing] for place in places])
    if not apart.size or np.abs(ways - ways[0]).max() > 1e-3:
        return None
    share = (heights - heights[0]) / span
    line = corners[0] + share[:, None] * (corners[-1] - corners[0])
    if np.abs(corners - line).max() > max(_STRAIGHT, EVEN * float(apart.min())):
        return None
    count = min(MOST_SLICES, 1 + int(np.ceil(span / apart.min() - 1e-6)))
    between = corners[0] + np.linspace(0, 1, count)[:, None] * (corners[-1] - corners[0])
    return tuple(replace(places[0], corner=(float(x), float(y), float(z))) for x, y, z in between)


def interpolated(
    maps: npt.NDArray[np.float32], places: Sequence[Place], wanted: Sequence[Place]
) -> npt.NDArray[np.float32]:
    """Maps [N, H, W] of slices at some places, at others [M, H, W] between them: linear from one slice to the next.

    Where several slices lie at one place, the highest value counts.
    """
    heights = np.array([place.height for place in places])
    first = np.flatnonzero(np.diff(heights, prepend=-np.inf) >= SAME_PLACE)
    known, at = np.maximum.reduceat(maps, first), heights[first]
    made = np.empty((len(wanted), *maps.shape[1:]), np.float32)
    for number, place in enumerate(wanted):
        above = int(np.clip(np.searchsorted(at, place.height), 1, len(at) - 1))
        share = np.clip((place.height - at[above - 1]) / (at[above] - at[above - 1]), 0, 1)
        made[number] = known[above - 1] * np.float32(1 - share) + known[above] * np.float32(share)
    return made
