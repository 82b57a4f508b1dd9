"""From what a file holds to pixels in 0..1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.data.readers.formats import read_stored
from madclip.data.ref import ImageRef, as_ref
from madclip.errors import DataError
from madclip.grey_range import GreyRange, parse_grey_range

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from madclip.data.readers.protocol import Stored

MIN_SIDE = 8
"""Smaller images hold nothing to detect: pixels."""
DARK = 1 / 8
"""An image that uses less than this share of its full range looks black (or grey all over) to a backbone."""


@dataclass(frozen=True)
class Image:
    """One image, as read.

    Attributes:
        pixels: float32 [3, H, W] in 0..1; grey images have three equal channels.
        depth: Depth of its values in the file: "8-bit", "12-bit", "signed 16-bit", "float", ...
        note: A sentence where its values use so little of what their depth can hold that a range should be named for
            them, or have no extent in the range that was; None where there is nothing to say.
        spacing: Millimetres between rows and between columns; None where the format does not carry them (the dots per
            inch of PNG, JPEG and TIFF say nothing about the patient).
        sides: What of the patient lies to the left, the right, the top and the bottom, such as `RLAP`; empty where
            the format does not say it.
        at_detector: Whether `spacing` is that of a detector, on which the patient looks larger than they are.
    """

    pixels: npt.NDArray[np.float32]
    depth: str = "float"
    note: str | None = None
    spacing: tuple[float, float] | None = None
    sides: str = ""
    at_detector: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[1], self.pixels.shape[2]


def read_image(image: ImageRef | Path | str, grey_range: str = "file") -> Image:
    """Reads an image of any format in `formats.READERS` and of any colour type.

    Palettes, CMYK, YCbCr and CIELAB become RGB, alpha is dropped (not composited: the colours below it are kept), and
    the orientation that EXIF or TIFF states is applied. Colour profiles are not.

    Args:
        image: The file, or a frame or page of it.
        grey_range: Which stored values become 0 and 1, as `parse_grey_range` reads it. By default what the file's depth
            can hold: 8-bit values are divided by 255, 12-bit ones by 4,095, 16-bit ones by 65,535, signed 16-bit ones
            reach from -32,768 to 32,767, and floats must lie in 0..1.

    Raises:
        DataError: The file is missing, damaged, not an image, too large, too small, or its values have no known scale.
        RecipeError: The grey range is none.
    """
    ref = as_ref(image)
    stored = read_stored(ref)
    rule = parse_grey_range(grey_range)
    limits = _limits(stored, rule, str(ref))
    pixels, note = _scaled(stored, rule, limits), _note(stored, rule, limits)
    return Image(pixels, stored.depth, note, stored.spacing, stored.sides, stored.at_detector)


def to_pixels(stored: Stored, rule: GreyRange, what: str) -> npt.NDArray[np.float32]:
    """Pixels float32 [3, H, W] in 0..1 from stored values; `what` stands first in errors.

    Raises:
        DataError: The image is too small, has NaN or infinite values, or values without a known scale.
    """
    return _scaled(stored, rule, _limits(stored, rule, what))


def _scaled(stored: Stored, rule: GreyRange, limits: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Pixels float32 [3, H, W], where black and white are known; grey values are computed once, and copied."""
    values = stored.values
    pixels = np.empty((3, *values.shape[:2]), np.float32)
    planes, made = (values, pixels[0]) if values.ndim == 2 else (values.transpose(2, 0, 1), pixels)
    low, high = limits
    exact = _exact(values.dtype, low, high - low)
    if stored.curve is not None and rule.kind == "file":
        made[:] = stored.curve(values)
    elif low == high:
        np.greater(planes, low, out=made, casting="unsafe")
    elif low == 0:
        np.divide(planes, high, out=made, casting="unsafe", dtype=exact)
    elif exact is np.float32:
        np.subtract(planes, low, out=made, casting="unsafe", dtype=exact)
        np.divide(made, high - low, out=made, dtype=exact)
    else:
        np.divide(np.subtract(planes, low, dtype=exact), high - low, out=made, casting="unsafe", dtype=exact)
    if limits != stored.full:
        np.clip(made, 0, 1, out=made)
    if stored.inverted:
        np.subtract(1, made, out=made)
    if stored.padding is not None:
        made[stored.padding] = 0
    if values.ndim == 2:
        pixels[1:] = made
    return pixels


def _exact(dtype: np.dtype[Any], low: float, width: float) -> type[np.float32 | np.float64]:
    """The type to scale values in: float32 where it loses nothing of them, or of where the range lies."""
    whole = dtype.itemsize <= 2 and dtype.kind != "f"
    lossless = dtype == np.float32 and np.float32(low) == low and np.float32(width) == width
    return np.float32 if whole or lossless else np.float64


def _limits(stored: Stored, rule: GreyRange, what: str) -> tuple[float, float]:
    values = stored.values
    if min(values.shape[:2]) < MIN_SIDE:
        raise DataError(
            f"{what}: {values.shape[1]} x {values.shape[0]} pixels; an image needs at least {MIN_SIDE} on each side"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{what}: has NaN or infinite values; replace them")
    try:
        limits = rule.limits(values, stored.full, stored.named, stored.percentiles)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    if limits is None:
        raise DataError(f"{what}: values of type {values.dtype} have no known scale; {_REMEDY}")
    if limits == stored.full and values.dtype.kind == "f":
        least, greatest = float(values.min()), float(values.max())
        if least < limits[0] or greatest > limits[1]:
            raise DataError(
                f"{what}: float values from {least:g} to {greatest:g}; rescale them to 0..{limits[1]:g}, or {_REMEDY}"
            )
    return limits


_REMEDY = "name their range: --range LOW,HIGH or --range data (grey_range in Python)"


def _note(stored: Stored, rule: GreyRange, limits: tuple[float, float]) -> str | None:
    """What was assumed of a file, and what should be said of its use of its range where no other range was named."""
    assumed = stored.assumed if rule.kind == "file" else ""
    return " ".join(filter(None, (stored.note, assumed, _unused_range(stored, rule, limits)))) or None


def _unused_range(stored: Stored, rule: GreyRange, limits: tuple[float, float]) -> str | None:
    if limits[0] == limits[1]:
        found = "all its values are" if stored.values.max() <= limits[0] else f"at both ends of {rule} its values are"
        return f"{found} {limits[0]:g}, which is black; whatever is greater is white"
    if stored.full is None or rule.kind not in ("file", "full") or (rule.kind == "file" and stored.named):
        return None
    low, high = stored.full
    least, greatest = float(stored.values.min()) if low < 0 else 0.0, float(stored.values.max())
    if not 0 < greatest - least < DARK * (high - low):
        return None
    example = "" if high < 2**15 - 1 or low < 0 else f", such as {'0,4095' if greatest < 2**12 else '0,8191'}"
    return (
        f"its values reach from {_plain(least)} to {_plain(greatest)}, of the {_plain(low)} to {_plain(high)} that its "
        f"depth can hold; name their range with --range LOW,HIGH{example}"
    )


def _plain(value: float) -> str:
    return str(int(value)) if value == int(value) else f"{value:g}"
