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
