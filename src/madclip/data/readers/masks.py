"""What the values of a lesion mask mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.data.readers.formats import read_stored
from madclip.data.ref import ImageRef, as_ref
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

MAX_LABEL = 15
"""Whole numbers up to this one are labels in any type; greater ones need a type or a palette that says so."""
_FEW = 32
"""So many labels need not cover areas to be believed."""
_WHITES = (255, 65535)
"""Greatest values that an interpolated mask has, also where it was saved in a larger type."""


def read_mask(mask: ImageRef | Path | str) -> npt.NDArray[np.bool_]:
    """Reads a lesion mask as bool [H, W], by the rule of `to_mask`.

    The indices of a palette (PNG, TIFF, BMP, GIF) are labels: 0 is background, whatever its colour and transparency.
    In other colour masks black is background. Anything ambiguous is refused: an interpolated or JPEG-compressed mask
    has to be thresholded by who knows where its lesions end.

    Raises:
        DataError: The file cannot be read, its values are not those of a mask, or its transparency varies.
    """
    ref = as_ref(mask)
    stored = read_stored(ref, mask=True)
    if not stored.opaque:
        raise DataError(
            f"{ref}: a mask whose transparency varies; the lesion may be in the colour or in the alpha channel: save "
            "it without alpha"
        )
    return to_mask(stored.values, stored.full[1] if stored.full else None, str(ref), labels=stored.labels)


def to_mask(values: npt.NDArray[Any], white: float | None, what: str, *, labels: bool = False) -> npt.NDArray[np.bool_]:
    """Tells lesion from background in values [H, W] or colours [H, W, 3], or refuses them.

    A mask holds 0 and white only, or it is a label map, in which everything but 0 is lesion. The indices of a palette
    are labels, and so are whole numbers from 0 to 15 in any type, and greater ones in a type of more than 8 bits. The
    last are refused where they look like an interpolated mask: the greatest of several is white (255, 65,535 or the
    type's), or there are more than 32 of them and at least half cover lone pixels and lines only.

    Colours are read by the strongest of their three values where that makes a mask by the rule above. Otherwise up to
    32 colours on black are labels, as in PASCAL VOC, unless they look interpolated or JPEG-compressed: two nearly
    agree, or one lies between two others and covers no square of 3 x 3 pixels.

    Args:
        values: As stored.
        white: The greatest value that their depth can hold, where that is known.
        what: Stands first in the error.
        labels: Whether they are indices of a palette.

    Raises:
        DataError: They may be something else than a mask.
    """
    colours = None if values.ndim == 2 else values
    values = values if colours is None else _without_colour(colours, what)
    found = np.unique(values)
    marked = found[found != 0]
    if not (marked == white).all() and not _is_label_map(values, marked, white, indexed=labels):
        if colours is not None and (colours != colours[..., :1]).any():
            _check_colours(colours, white, what)
            return np.asarray(values != 0)
        shown = ", ".join(f"{value:g}" for value in found[:5]) + (", ..." if len(found) > 5 else "")
        raise DataError(
            f"{what}: not a mask, it has values {shown}; threshold it to 0 and {white or 255:g}, "
            f"or use labels from 0 to {MAX_LABEL}"
        )
    return np.asarray(values != 0)


def _is_label_map(values: npt.NDArray[Any], marked: npt.NDArray[Any], white: float | None, *, indexed: bool) -> bool:
    whole = np.isfinite(marked).all() and (marked == np.floor(marked)).all() and (marked > 0).all()
    if indexed or not whole or marked.max() <= MAX_LABEL:
        return bool(whole)
    if values.dtype.itemsize == 1 or (len(marked) > 1 and marked.max() in (*_WHITES, white)):
        return False
    if len(marked) <= _FEW:
        return True
    row, column = values[:, 1:] == values[:, :-1], values[1:] == values[:-1]
    inside = values[1:, 1:][row[1:] & column[:, 1:]]
    return bool(2 * np.isin(marked, inside).sum() >= len(marked))


def _without_colour(values: npt.NDArray[Any], what: str) -> npt.NDArray[Any]:
    """Grey values of a mask stored in colours [H, W, 3]: 0 where it is black, else the greatest of the three."""
    strongest = values.max(axis=2)
    if strongest.min() > 0 and (values != values[..., :1]).any():
        raise DataError(f"{what}: a mask in colours without black; make its background black")
    return np.asarray(strongest)


def _check_colours(colours: npt.NDArray[Any], white: float | None, what: str) -> None:
    """Refuses colours [H, W, 3] that are not the flat ones of a label map on black.

    Raises:
        DataError: They are too many, or look interpolated or JPEG-compressed.
    """
    remedy = "save one flat colour for each label on black, without smoothing and not as JPEG, or labels as grey values"
    palette, places = _palette(colours)
    if palette is None or white is None:
        raise DataError(f"{what}: not a mask, it has more than {_FEW} colours; {remedy}")
    near = white / _FEW
    for number, colour in enumerate(palette):
        others = np.delete(palette, number, axis=0)
        if (np.abs(others - colour).max(axis=1) < near).any():
            raise DataError(f"{what}: not a mask, some of its colours nearly agree; {remedy}")
        if colour.any() and _between(colour, others, near) and not _has_square(places == number):
            raise DataError(f"{what}: not a mask, its colours run into one another; {remedy}")


def _palette(colours: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float64] | None, npt.NDArray[np.int64]]:
    """The colours [N, 3] and for each pixel [H, W] which it has, or None where they are too many for labels."""
    codes = np.zeros(colours.shape[:2], np.int64)
    for channel in range(3):
        levels, places = np.unique(colours[..., channel], return_inverse=True)
        if len(levels) > _FEW + 1:
            return None, codes
        codes = codes * len(levels) + places.reshape(codes.shape)
    found, first, places = np.unique(codes, return_index=True, return_inverse=True)
    if len(found) > _FEW + 1:
        return None, codes
    return colours.reshape(-1, 3)[first].astype(np.float64), places.reshape(codes.shape)


def _between(colour: npt.NDArray[np.float64], others: npt.NDArray[np.float64], near: float) -> bool:
    """Whether a colour [3] is a mixture of two of some others [N, 3], up to a difference."""
    start, end = others[:, None], others[None]
    length = ((end - start) ** 2).sum(axis=-1)
    share = ((colour - start) * (end - start)).sum(axis=-1) / np.where(length, length, 1)
    mixed = start + share[..., None] * (end - start)
    return bool(((share > 0) & (share < 1) & (np.abs(mixed - colour).max(axis=-1) < near)).any())


def _has_square(region: npt.NDArray[np.bool_]) -> bool:
    """Whether a region [H, W] covers a square of 3 x 3 pixels anywhere."""
    rows = region[2:] & region[1:-1] & region[:-2]
    return bool((rows[:, 2:] & rows[:, 1:-1] & rows[:, :-2]).any())
