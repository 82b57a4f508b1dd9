"""What a reader of one format is, what it gives, and the checks that every reader shares.

To add a format, write a class with the members of `Reader` into a file of its own and name it in `formats.py`.
Sizes are checked (`check_size`) before anything is decoded, and frames by `check_frame`; errors of the decoder may
pass through, since whoever calls `read` turns those in `UNREADABLE` into one line that names the file.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from tokenize import TokenError
from typing import TYPE_CHECKING, Any, Protocol

from madclip.data.ref import ImageRef
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from madclip.grey_range import Percentiles

MAX_PIXELS = 64 * 2**20
"""Larger images are refused from their header, before anything is decoded."""
MAX_CHANNELS = 5
"""Most samples per pixel: four inks and alpha."""

UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    RuntimeError,
    EOFError,
    ArithmeticError,
    struct.error,
    TokenError,
    zlib.error,
)
"""What decoders raise when a file is damaged."""


@dataclass(frozen=True)
class Stored:
    """What a file holds of one image, before any grey range is applied.

    Attributes:
        values: Grey values or labels [H, W], or colours [H, W, 3]; upright, integers or floats.
        full: The least and the greatest value that its depth can hold; None where that says nothing (32-bit integers).
        depth: The depth of its values: "8-bit", "12-bit", "float", ...
        labels: Whether the values are labels whatever they look like, as the indices of a palette are in a mask.
        opaque: Whether the image has one transparency throughout; readers look only where a mask is meant.
        named: The range of grey values that the file itself asks for, such as a window; None where it names none.
        spacing: Millimetres between rows and between columns, where the format knows them.
        inverted: Whether the least value is white, as in MONOCHROME1; `values` are as stored all the same.
        curve: What the file itself makes of its values where that is no straight line (a table, a sigmoid): values
            [H, W] to 0..1. It counts where the grey range is `file`.
        percentiles: The values at two percentiles, where `values` do not tell: of a slice's volume, or without padding.
        padding: Where a pixel is no part of the image, bool [H, W], and becomes black; None where all are.
        note: Sentences on what was assumed of the file, or an empty string.
        assumed: A sentence where `named` is an assumption, and not what the file says.
        sides: What of the patient lies to the left, the right, the top and the bottom, a letter each as DICOM has
            them (R, L, A, P, H, F); empty where the format does not say it.
        at_detector: Whether `spacing` is that of a detector, on which the patient looks larger than they are.
    """

    values: npt.NDArray[Any]
    full: tuple[float, float] | None
    depth: str
    labels: bool = False
    opaque: bool = True
    named: tuple[float, float] | None = None
    spacing: tuple[float, float] | None = None
    inverted: bool = False
    curve: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None
    percentiles: Percentiles | None = None
    padding: npt.NDArray[np.bool_] | None = None
    note: str = ""
    assumed: str = ""
    sides: str = ""
    at_detector: bool = False


class Reader(Protocol):
    """One format."""

    @property
    def name(self) -> str:
        """What people call it; stands in errors."""
        ...

    @property
    def suffixes(self) -> tuple[str, ...]:
        """How such files usually end, in lower case; only used to find images in folders."""
        ...

    def recognises(self, head: bytes, path: Path) -> bool:
        """Whether a file is of this format, from its first 1,024 bytes; what they do not tell is read from the file."""
        ...

    def frames(self, path: Path, axis: str) -> tuple[ImageRef, ...]:
        """The names of the images in a file, from its header; empty where it holds one image, named by its path.

        `axis` says how volumes are cut (one of `AXES`); other formats do not look at it.
        """
        ...

    def read(self, image: ImageRef, *, mask: bool) -> Stored:
        """One image; `mask` asks for labels where a format tells them from colours.

        Raises:
            DataError: It is too large, of a kind that is not read, or the frame is missing or not named.
        """
        ...


def check_size(path: Path | str, width: int, height: int) -> None:
    """Refuses what is empty or too large, before it is decoded.

    Raises:
        DataError: There are no pixels, or more than `MAX_PIXELS`.
    """
    if min(width, height) < 1:
        raise DataError(f"{path}: {width} x {height} pixels; there is nothing to read")
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path}: {width} x {height} pixels; images of more than {MAX_PIXELS // 2**20} megapixels are not read, "
            "crop or shrink it, or read a whole slide by predict --mpp or --level"
        )


def check_frame(image: ImageRef, count: int) -> int:
    """The frame to read of a file that holds `count`: one image has one name.

    Raises:
        DataError: The file has several frames and none is named, has one and a frame is named, or has too few.
    """
    if count <= 1:
        if image.frame is not None:
            raise DataError(f"{image}: the file holds one image; name it without a frame")
        return 0
    if image.frame is None:
        raise DataError(
            f"{image}: holds {count} frames; name one as {image.path.name}#0 to #{count - 1}, in a manifest by the "
            "column frame"
        )
    if not 0 <= image.frame < count:
        raise DataError(f"{image}: there is no such frame; they are numbered 0 to {count - 1}")
    return image.frame


def numbered(path: Path, numbers: Sequence[int]) -> tuple[ImageRef, ...]:
    """The names of the frames of a file; none where it has but one, which is named by its path."""
    return tuple(ImageRef(path, number) for number in numbers) if len(numbers) > 1 else ()


def full_range(dtype: np.dtype[Any], bits: int | None = None) -> tuple[float, float] | None:
    """What values of a type can hold: all that `bits` bits can, 0 to 1 for floats, None beyond 16 bits."""
    bits = bits or 8 * dtype.itemsize
    if dtype.kind in "fb":
        return 0.0, 1.0
    if bits > 16:
        return None
    return (0.0, 2.0**bits - 1) if dtype.kind == "u" else (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1)


def inflated(head: bytes) -> bytes:
    """The first bytes of what is compressed by gzip, or the bytes as they are."""
    if not head.startswith(b"\x1f\x8b"):
        return head
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 1024)
    except zlib.error:
        return head


def depth_name(dtype: np.dtype[Any], bits: int | None = None) -> str:
    """How the depth of values is called: "float", "8-bit", "signed 16-bit"."""
    if dtype.kind == "f":
        return "float"
    bits = bits or (1 if dtype.kind == "b" else 8 * dtype.itemsize)
    return f"{'signed ' if dtype.kind == 'i' else ''}{bits}-bit"


def upright(values: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Undoes the orientation (1 to 8) that EXIF or TIFF states of values [H, W, ...]."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values
