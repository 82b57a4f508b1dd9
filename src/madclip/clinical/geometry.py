"""Where slices lie, as one matrix: from positions and directions of DICOM to an affine as NIfTI has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from madclip.data.series import EVEN, SAME_PLACE

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from madclip.data.series import Place

_TO_RAS = np.diag([-1.0, -1.0, 1.0])
"""From (left, posterior, superior), as DICOM has it, to (right, anterior, superior), as NIfTI has it."""
_STRAIGHT = 0.02
"""Millimetres by which slices may lie beside the line of the others."""


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
    corners = np.array([place.corner for place in places])
    steps = np.diff(corners, axis=0)
    if places[-1].spacing != places[-2].spacing or places[-1].height - places[-2].height < SAME_PLACE:
        return False
    if not np.allclose([places[-1].row, places[-1].column], [places[-2].row, places[-2].column], atol=1e-3):
        return False
    length = np.linalg.norm(steps[0])
    return bool(np.abs(steps[-1] - steps[0]).max() <= max(_STRAIGHT, EVEN * length))


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
