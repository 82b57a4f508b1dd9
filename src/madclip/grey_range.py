"""Which stored values become black and white: one rule for all grey values, written the same everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from madclip.errors import RecipeError

if TYPE_CHECKING:
    import numpy.typing as npt

Limits = tuple[float, float]
"""The value that becomes black, and the greater one that becomes white."""


@dataclass(frozen=True)
class GreyRange:
    """A rule that says which stored values become black and white; values beyond them are cut off.

    An image that has no extent between the ends that `data` or `percentiles` give it (a constant one, or one of which
    all but a few pixels are background) is no error: its least value is black and whatever is greater is white, which
    is where a range ends up that shrinks to nothing. So a single empty slice does not stop a data set, and it looks
    alike at every value.

    Attributes:
        kind: `file`: the range that the file itself names, or its full range where it names none, as ordinary images
            do. `full`: all that the file's depth can hold. `data`: from the image's least value to its greatest.
            `values`: from `low` to `high`, in stored values. `percentiles`: between these percentiles of the image.
        low: Lower end, for `values` and `percentiles`.
        high: Upper end, for `values` and `percentiles`.
    """

    kind: Literal["file", "full", "data", "values", "percentiles"] = "file"
    low: float = 0.0
    high: float = 0.0

    def __str__(self) -> str:
        """The rule as it is typed; two spellings of one rule give the same text."""
        mark = {"values": "", "percentiles": "p"}.get(self.kind)
        return self.kind if mark is None else f"{mark}{_short(self.low)},{mark}{_short(self.high)}"

    def limits(self, values: npt.NDArray[Any], full: Limits | None, named: Limits | None = None) -> Limits | None:
        """Black and white of one image, or None where the rule asks for its full range and none is known.

        Both are the same where an image has no extent; what is greater than them is white then.

        Args:
            values: The stored values, of any shape; all channels of a colour image have one range.
            full: What the file's depth can hold.
            named: The range that the file itself names.
        """
        if self.kind == "file":
            return named or full
        if self.kind == "full":
            return full
        if self.kind == "values":
            return self.low, self.high
        import numpy as np

        if self.kind == "data":
            return float(values.min()), float(values.max())
        numbers = values.astype(np.uint8) if values.dtype.kind == "b" else values
        low, high = np.percentile(numbers, (self.low, self.high))
        return float(low), float(high)


@lru_cache(maxsize=64)
def parse_grey_range(text: str) -> GreyRange:
    """A rule as typed: `file`, `full`, `data`, `LOW,HIGH` in stored values, or `pLOW,pHIGH` in percentiles.

    Raises:
        RecipeError: The text is none of these, or the lower end is not below the upper one.
    """
    if text in ("file", "full", "data"):
        return GreyRange(text)  # type: ignore[arg-type]  # one of the kinds
    parts = [part.strip() for part in text.split(",")]
    percentiles = all(part.startswith("p") for part in parts)
    try:
        low, high = (float(part.removeprefix("p") if percentiles else part) for part in parts)
    except ValueError:
        raise RecipeError(
            f"grey range {text!r}: give file, full, data, LOW,HIGH in stored values, or pLOW,pHIGH in percentiles"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise RecipeError(f"grey range {text!r}: the first number must be below the second")
    if percentiles and not 0 <= low < high <= 100:
        raise RecipeError(f"grey range {text!r}: percentiles lie between 0 and 100")
    return GreyRange("percentiles" if percentiles else "values", low, high)


def _short(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
