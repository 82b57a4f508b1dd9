"""From the stored values of a DICOM frame to those that its windows are written in, and what the file says of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.data.readers.protocol import Stored, depth_name, full_range
from madclip.errors import DataError
from madclip.grey_range import window_limits

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from madclip.grey_range import Limits

    Values = npt.NDArray[Any]

_OPPOSITE = {"L": "R", "R": "L", "A": "P", "P": "A", "H": "F", "F": "H"}
_BURNED_IN = "It may have text burned into its pixels"


def of_frame(header: Dataset, index: int, sequence: str) -> Dataset:
    """Where a frame's attributes of one kind stand: in its own functional group, the shared one, or the image itself.

    Args:
        header: The image.
        index: The frame, from 0.
        sequence: The functional group's macro, such as `PixelMeasuresSequence`.
    """
    for groups, place in (("PerFrameFunctionalGroupsSequence", index), ("SharedFunctionalGroupsSequence", 0)):
        found = header.get(groups)
        if found and place < len(found) and found[place].get(sequence):
            one: Dataset = found[place][sequence].value[0]
            return one
    return header


def grey(header: Dataset, index: int, stored: Values) -> Stored:
    """One grey frame [H, W] as its modality means it: rescaled, with its padding, window and spacing.

    Raises:
        DataError: Its values lie beyond what its header says that they can be, or its window is none.
    """
    inverted = header.PhotometricInterpretation == "MONOCHROME1"
    bits = header.get("BitsStored") if stored.dtype.kind in "iu" else None
    stored = stored if bits is None else _within(header, stored, int(bits))
    padding = _padding(header, stored)
    padded = bool(padding.any())
    depth, limits = depth_name(stored.dtype, bits), full_range(stored.dtype, bits) if bits else None
    values, rescale = _rescaled(header, index, stored)
    full = None if limits is None else _ends(rescale(np.array(limits)))
    percentiles = None
    if padded:
        kept = values if padding.all() else values[~padding]
        values = np.where(padding, kept.max() if inverted else kept.min(), values)

        def percentiles(low: float, high: float) -> Limits:
            ends = np.percentile(kept, (low, high))
            return float(ends[0]), float(ends[1])

    named, curve = _shown(header, index, values)
    return Stored(
        values,
        full,
        depth,
        named=named,
        spacing=spacing_of(header, index),
        sides=sides_of(header, index),
        inverted=inverted,
        curve=curve,
        percentiles=percentiles,
        padding=padding if padded else None,
        note=note_of(header),
        at_detector=at_detector(header, index),
    )


def spacing_of(header: Dataset, index: int) -> tuple[float, float] | None:
    """Millimetres between rows and columns: in the patient where that is known, else on the detector, else None."""
    return _spacing(header, index, "PixelSpacing") or _spacing(header, index, "ImagerPixelSpacing")


def at_detector(header: Dataset, index: int) -> bool:
    """Whether nothing says how large the patient is, but only how large a projection of them is on the detector.

    Pixel Spacing is the detector's as well where it is the same and nothing says that it was corrected.
    """
    own, detector = _spacing(header, index, "PixelSpacing"), _spacing(header, index, "ImagerPixelSpacing")
    return detector is not None and (own is None or (own == detector and "PixelSpacingCalibrationType" not in header))


def _spacing(header: Dataset, index: int, name: str) -> tuple[float, float] | None:
    found = of_frame(header, index, "PixelMeasuresSequence").get(name) or header.get(name)
    return (float(found[0]), float(found[1])) if found and len(found) == 2 and min(found) > 0 else None


def sides_of(header: Dataset, index: int) -> str:
    """What of the patient lies to the left, right, top and bottom of a frame, a letter each; empty where unknown.

    An oblique frame gets the letters of the directions that it is closest to; a projection those that its header says.
    """
    ways = of_frame(header, index, "PlaneOrientationSequence").get("ImageOrientationPatient")
    if ways and len(ways) == 6 and all(np.isfinite(float(one)) for one in ways):
        right, bottom = (_letter([float(one) for one in part]) for part in (ways[:3], ways[3:]))
    else:
        said = [str(one)[:1] for one in header.get("PatientOrientation") or ()]
        right, bottom = said if len(said) == 2 and {*said} <= {*_OPPOSITE} else ("", "")
    return _OPPOSITE[right] + right + _OPPOSITE[bottom] + bottom if right and bottom else ""


def _letter(way: list[float]) -> str:
    """The letter of the direction that a vector (left, posterior, head) is closest to."""
    axis = int(np.argmax(np.abs(way)))
    return "LPH"[axis] if way[axis] > 0 else "RAF"[axis]


def note_of(header: Dataset) -> str:
    """What the file says that a reader must know: burned-in text, a picture of a screen."""
    if header.get("BurnedInAnnotation") == "YES":
        return f"{_BURNED_IN} (so says its header)."
    kinds = [str(kind) for kind in header.get("ImageType") or ()]
    captured = "SCREEN SAVE" in kinds or header.get("ConversionType") in ("WSD", "SI", "SYN", "DV", "DI")
    return f"{_BURNED_IN}: it is a picture of a screen." if captured else ""


def _within(header: Dataset, stored: Values, bits: int) -> Values:
    """Values of `bits` bits: without the overlay that older scanners kept above them, their sign where it was cut."""
    signed = stored.dtype.kind == "i"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    least, greatest = int(stored.min(initial=0)), int(stored.max(initial=0))
    if low <= least and greatest <= high:
        return stored
    overlay = any(header.get((group, 0x0102)) and header[group, 0x0102].value for group in range(0x6000, 0x6020, 2))
    if not overlay and not (signed and least >= 0 and greatest < 2**bits):
        raise DataError(
            f"its values reach from {least} to {greatest}, beyond the {bits} bits that its header states; it cannot be "
            "known which is wrong"
        )
    unsigned = stored.astype(np.int64) & (2**bits - 1)
    return np.asarray(np.where(unsigned > high, unsigned - 2**bits, unsigned), stored.dtype)


def _padding(header: Dataset, stored: Values) -> npt.NDArray[np.bool_]:
    """Which pixels are no part of the image."""
    value = header.get("PixelPaddingValue")
    if value is None or stored.dtype.kind not in "iu":
        return np.zeros(stored.shape, np.bool_)
    low, high = sorted((int(value), int(header.get("PixelPaddingRangeLimit", value))))
    if low == high:
        return np.asarray(stored == low)
    return np.asarray((stored >= low) & (stored <= high))


def _rescaled(header: Dataset, index: int, stored: Values) -> tuple[Values, Callable[[Values], Values]]:
    """Values in the units of the modality, by its table or else by slope and intercept, and what does that."""
    if header.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        table = [int(value) for value in header.ModalityLUTSequence[0].LUTDescriptor]
        ends = np.array([0, 2 ** (table[2] or 16) - 1])
        return apply_modality_lut(stored, header), lambda _: ends
    place = of_frame(header, index, "PixelValueTransformationSequence")
    slope, intercept = float(place.get("RescaleSlope", 1)), float(place.get("RescaleIntercept", 0))
    if not (np.isfinite(slope) and np.isfinite(intercept) and slope):
        raise DataError(f"its rescale slope is {slope:g} and its intercept {intercept:g}")
    if (slope, intercept) == (1, 0):
        return stored, lambda values: values
    exact = stored.dtype.itemsize <= 2 and slope.is_integer() and intercept.is_integer()
    kind = np.float32 if exact and abs(slope) * 2**16 + abs(intercept) < 2**24 else np.float64

    def rescale(values: Values) -> Values:
        made = values.astype(kind) if slope == 1 else np.multiply(values, slope, dtype=kind)
        return np.asarray(np.add(made, kind(intercept), out=made))

    return rescale(stored), rescale


def _ends(values: Values) -> Limits:
    return float(values.min()), float(values.max())


def _shown(header: Dataset, index: int, values: Values) -> tuple[Limits | None, Callable[[Values], Values] | None]:
    """How the file wants its values shown: the range of a straight line, or a curve that is none."""
    place = of_frame(header, index, "FrameVOILUTSequence")
    if place.get("VOILUTSequence"):
        if not (values == np.rint(values)).all():
            raise DataError("its VOI table is for whole numbers, and its values are none; name a range: --range full")
        return _ends(values), lambda shown: _through_table(place, shown)
    centre, width = _first(place.get("WindowCenter")), _first(place.get("WindowWidth"))
    if centre is None or width is None:
        return None, None
    function = place.get("VOILUTFunction") or "LINEAR"
    if function == "SIGMOID" and width > 0:
        return (centre - width / 2, centre + width / 2), lambda shown: 1 / (1 + np.exp(-4 * (shown - centre) / width))
    if function == "LINEAR_EXACT" and width > 0:
        return (centre - width / 2, centre + width / 2), None
    if width < 1:
        raise DataError(f"its window is {width:g} wide; name a range: --range full, or window:CENTRE,WIDTH")
    low, high = window_limits(centre, max(width, np.nextafter(1, 2)))
    return (low, high), None


def _through_table(place: Dataset, values: Values) -> Values:
    """Values by the table of the VOI, 0 to 1; its first entry counts below it and its last above."""
    from pydicom.pixels.processing import apply_voi

    bits = int(place.VOILUTSequence[0].LUTDescriptor[2])
    return np.asarray(apply_voi(np.rint(values).astype(np.int32), place) / (2**bits - 1))


def _first(value: Any) -> float | None:
    """The first of several windows, which is the one that is meant where a viewer shows one."""
    if value is None or value == "":
        return None
    one = value[0] if isinstance(value, (list, tuple)) or hasattr(value, "append") else value
    return None if one is None or not np.isfinite(float(one)) else float(one)
