"""Which stored values become black and white: one rule for all grey values, written the same everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from madclip.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

Limits = tuple[float, float]
"""The value that becomes black, and the greater one that becomes white."""
Percentiles: TypeAlias = "Callable[[float, float], Limits]"
"""The values at two percentiles, from 0 to 100."""

WINDOWS: dict[str, Limits] = {
    "abdomen": (40, 400),
    "bone": (400, 1800),
    "brain": (40, 80),
    "liver": (30, 150),
    "lung": (-600, 1500),
    "mediastinum": (50, 350),
    "stroke": (40, 40),
    "subdural": (75, 215),
}
"""Usual windows of CT by name: centre and width in Hounsfield units."""


@dataclass(frozen=True)
class GreyRange:
    """A rule that says which stored values become black and white; values beyond them are cut off.

    An image that has no extent between the ends that `data` or `percentiles` give it (a constant one, or one of which
    all but a few pixels are background) is no error: its least value is black and whatever is greater is white, which
    is where a range ends up that shrinks to nothing. So a single empty slice does not stop a data set, and it looks
    alike at every value.

    Attributes:
        kind: `file`: the range that the file itself names, or its full range where it names none, as ordinary images
            do. `full`: all that the file's depth can hold. `data`: from the least value to the greatest, of the image
            or of the volume that it is a slice of. `values`: from `low` to `high`, in stored values. `percentiles`:
            between these percentiles of the image or of its volume. `window`: centre `low` and width `high`, as DICOM
            has them.
        low: Lower end, for `values` and `percentiles`; centre of a window.
        high: Upper end, for `values` and `percentiles`; width of a window.
    """

    kind: Literal["file", "full", "data", "values", "percentiles", "window"] = "file"
    low: float = 0.0
    high: float = 0.0

    def __str__(self) -> str:
        """The rule as it is typed; two spellings of one rule give the same text."""
        if self.kind == "window":
            return f"window:{_short(self.low)},{_short(self.high)}"
        mark = {"values": "", "percentiles": "p"}.get(self.kind)
        return self.kind if mark is None else f"{mark}{_short(self.low)},{mark}{_short(self.high)}"

    def limits(
        self,
        values: npt.NDArray[Any],
        full: Limits | None,
        named: Limits | None = None,
        percentiles: Percentiles | None = None,
    ) -> Limits | None:
        """Black and white of one image, or None where the rule asks for its full range and none is known.

        Both are the same where an image has no extent; what is greater than them is white then.

        Args:
            values: The stored values, of any shape; all channels of a colour image have one range.
            full: What the file's depth can hold.
            named: The range that the file itself names.
            percentiles: The values at two percentiles, where others than `values` count: those of a whole volume, or
                those that are no padding.
        """
        if self.kind == "file":
            return named or full
        if self.kind == "full":
            return full
        if self.kind == "values":
            return self.low, self.high
        if self.kind == "window":
            return window_limits(self.low, self.high)
        import numpy as np

        ends = (0.0, 100.0) if self.kind == "data" else (self.low, self.high)
        if percentiles is not None:
            return percentiles(*ends)
        if self.kind == "data":
            return float(values.min()), float(values.max())
        numbers = values.astype(np.uint8) if values.dtype.kind == "b" else values
        low, high = np.percentile(numbers, ends)
        return float(low), float(high)


@lru_cache(maxsize=64)
def parse_grey_range(text: str) -> GreyRange:
    """A rule as typed: `file`, `full`, `data`, `LOW,HIGH` in stored values, `pLOW,pHIGH` in percentiles, or a window.

    Windows are `window:CENTRE,WIDTH` or `window:NAME` with a name of `WINDOWS`.

    Raises:
        RecipeError: The text is none of these, or the lower end is not below the upper one.
    """
    if text in ("file", "full", "data"):
        return GreyRange(text)  # type: ignore[arg-type]  # one of the kinds
    if text.startswith("window:"):
        return _parse_window(text)
    parts = [part.strip() for part in text.split(",")]
    percentiles = all(part.startswith("p") for part in parts)
    try:
        low, high = (float(part.removeprefix("p") if percentiles else part) for part in parts)
    except ValueError:
        raise RecipeError(
            f"grey range {text!r}: give file, full, data, LOW,HIGH in stored values, pLOW,pHIGH in percentiles, or "
            "window:CENTRE,WIDTH"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RecipeError(f"grey range {text!r}: the first number must be below the second")
    if percentiles and not 0 <= low < high <= 100:
        raise RecipeError(f"grey range {text!r}: percentiles lie between 0 and 100")
    return GreyRange("percentiles" if percentiles else "values", low, high)


def window_limits(centre: float, width: float) -> Limits:
    """Black and white of a window whose function is LINEAR (DICOM PS3.3 C.11.2.1.2.1)."""
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def _parse_window(text: str) -> GreyRange:
    asked = text.removeprefix("window:")
    if asked in WINDOWS:
        return GreyRange("window", *WINDOWS[asked])
    try:
        centre, width = (float(part) for part in asked.split(","))
    except ValueError:
        raise RecipeError(
            f"grey range {text!r}: give window:CENTRE,WIDTH, or a window of {', '.join(WINDOWS)}"
        ) from None
    if not (math.isfinite(centre) and math.isfinite(width) and width > 1):
        raise RecipeError(f"grey range {text!r}: a window is wider than 1")
    return GreyRange("window", centre, width)


def _short(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
