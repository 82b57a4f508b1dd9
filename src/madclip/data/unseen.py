"""What of an image a detector never sees: lesions lost when a mask is resized, and the rim beyond the last patch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from madclip.data.geometry import fit_mask

if TYPE_CHECKING:
    import numpy.typing as npt

    from madclip.recipe import View


@dataclass(frozen=True)
class LostLesions:
    """Lesions of one image of which no pixel is left in the resized mask.

    Attributes:
        lost: How many there are.
        of: How many lesions the mask has (pixels that touch, also at corners, are one).
        width: The longer side of the largest of the lost ones: pixels.
        size: The longer side of the image: pixels.
    """

    lost: int
    of: int
    width: int
    size: int

    @property
    def everything(self) -> bool:
        """Whether nothing is left of the mask."""
        return self.lost == self.of

    def __str__(self) -> str:
        several = f" ({self.lost} of {self.of})" if self.of > 1 else ""
        return f"a {self.width} px lesion in {self.size:,} px is gone{several}"


def lost_lesions(mask: npt.NDArray[np.bool_], view: View) -> LostLesions | None:
    """Finds the lesions of a mask [H, W] that vanish when it is resized to a view, or None where none does.

    Training resizes masks by nearest neighbours, so that a lesion narrower than the step between the pixels kept may
    fall between them.
    """
    if max(mask.shape) <= view.size:
        return None  # what is not made smaller keeps every pixel
    if view.tile and max(mask.shape) > view.tile:
        return None  # it is seen in tiles, and each is looked at by itself
    from scipy import ndimage

    lesions, count = ndimage.label(mask, structure=np.ones((3, 3)))
    if not count:
        return None
    # One resized mask for each binary digit of the lesions' numbers tells which of them are left.
    left = np.zeros((view.size, view.size), np.int64)
    for digit in range(int(count).bit_length()):
        left |= fit_mask((lesions >> digit & 1).astype(bool), view).numpy().astype(np.int64) << digit
    lost = sorted({*range(1, count + 1)} - {*np.unique(left).tolist()})
    if not lost:
        return None
    boxes = ndimage.find_objects(lesions)
    width = max(max(side.stop - side.start for side in boxes[number - 1]) for number in lost)
    return LostLesions(len(lost), int(count), int(width), max(mask.shape))


def said_of_patches(size: int, patch: int) -> str:
    """One sentence where the side of the input is no multiple of the patch, or an empty string where it is: pixels."""
    rest = size % patch
    if not rest:
        return ""
    below = size - rest
    options = f"{below} or {below + patch}" if below else f"{patch}"
    return (
        f"image_size {size} is no multiple of the patch of {patch} px: {rest} px at the right and at the bottom "
        f"({rest / size:.1%} of each side) are not seen; take {options}"
    )
