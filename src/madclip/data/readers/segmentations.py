"""DICOM segmentations as masks: on which images one was drawn, and which of its frames mark each of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.data.readers.dicom_values import of_frame
from madclip.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt
    from pydicom.dataset import Dataset

SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""Segmentations of bits or fractions, and those of labels."""

Drawn = tuple[str, int]
"""An image as a segmentation refers to it: UID of its instance, and its frame from 1, or 0 for an instance of one."""


def drawn_on(header: Dataset) -> dict[Drawn, list[int]]:
    """The images that a segmentation was drawn on in the order of its frames, each with the frames that mark it.

    There is a frame for each segment in each image, where empty ones are not left out.

    Raises:
        DataError: A frame does not say which image it was drawn on, or names several.
    """
    found: dict[Drawn, list[int]] = {}
    for number in range(int(header.get("NumberOfFrames") or 1)):
        named = {one for source in _sources(header, number) for one in _images(source)}
        if len(named) != 1:
            what = "says of no image that it was drawn on it" if not named else "was drawn on several images"
            raise DataError(f"a DICOM segmentation whose frame {number + 1} {what}")
        found.setdefault(named.pop(), []).append(number)
    return found


def _sources(header: Dataset, number: int) -> list[Dataset]:
    derived = of_frame(header, number, "DerivationImageSequence")
    if derived is not header:
        return list(derived.get("SourceImageSequence") or ())
    series = list(header.get("ReferencedSeriesSequence") or ())
    instances = [one for each in series for one in each.get("ReferencedInstanceSequence") or ()]
    return instances if len(instances) == 1 else []  # the whole was drawn on one image


def _images(source: Dataset) -> list[Drawn]:
    uid, frames = str(source.get("ReferencedSOPInstanceUID") or ""), source.get("ReferencedFrameNumber")
    if not uid:
        return []
    return [(uid, int(frame)) for frame in np.atleast_1d(0 if frames is None else frames)]


def marked(header: Dataset, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Where a frame [H, W] of stored values marks something: of fractions, half or more."""
    if str(header.get("SegmentationType")) == "FRACTIONAL":
        return np.asarray(2 * values.astype(np.int64) >= int(header.MaximumFractionalValue))
    return np.asarray(values != 0)
