"""JPEG 2000. Pillow reads 8 bits in any colours, imagecodecs fewer and more, which Pillow would shift to 8."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from madclip.data.readers.pillow import stored_picture
from madclip.data.readers.protocol import MAX_CHANNELS, Stored, check_frame, check_size, depth_name, full_range
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from madclip.data.ref import ImageRef

_FILE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_CODESTREAM = b"\xff\x4f\xff\x51"
_SEARCHED = 2**20
"""The codestream begins within so many bytes of a JP2 file, behind boxes that describe it."""
_SRGB, _GREY = 16, 17
"""Enumerated colour spaces (ISO/IEC 15444-1, table I.10)."""


@dataclass(frozen=True)
class _Size:
    """The SIZ marker (ISO/IEC 15444-1, A.5.1), and what the boxes of the file around it say of colours.

    `bits` are those of each component, alpha among them; `colours` is 0 where no colour space is named.
    """

    width: int
    height: int
    components: int
    bits: tuple[int, ...]
    signed: bool
    colours: int
    indexed: bool


class JPEG2000:
    """JPEG 2000, as a JP2 file or a bare codestream."""

    name = "JPEG 2000"
    suffixes = (".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx")

    def recognises(self, head: bytes, path: Path) -> bool:  # noqa: ARG002  (the protocol's)
        """Whether a file begins as a JP2 file or a codestream does."""
        return head.startswith((_FILE, _CODESTREAM))

    def frames(self, path: Path, axis: str) -> tuple[ImageRef, ...]:  # noqa: ARG002  (the protocol's)
        """None: the file holds one image."""
        return ()

    def read(self, image: ImageRef, *, mask: bool) -> Stored:
        """One image, all of its bits."""
        check_frame(image, 1)
        size = _size(image.path)
        check_size(image.path, size.width, size.height)
        bits = _depth(image, size)
        if bits == 8 and not size.signed:
            from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile

            with image.path.open("rb") as file, Jpeg2KImageFile(file) as picture:
                check_size(image.path, *picture.size)
                return stored_picture(picture, mask=mask)
        if size.indexed or size.components > 4 or (size.components > 2 and size.colours not in (0, _SRGB)):
            raise DataError(f"{image}: JPEG 2000 colours of {bits} bits that are not RGB; save it as PNG or TIFF")
        return _decoded(image, size, bits, mask=mask)


def _depth(image: ImageRef, size: _Size) -> int:
    """Bits of grey or colours.

    Raises:
        DataError: They differ.
    """
    alpha = size.components in (2, 4)
    depths = set(size.bits[: size.components - 1] if alpha else size.bits)
    if len(depths) > 1:
        raise DataError(f"{image}: a JPEG 2000 image whose colours have different depths; save it as PNG or TIFF")
    return depths.pop()


def _decoded(image: ImageRef, size: _Size, bits: int, *, mask: bool) -> Stored:
    import imagecodecs

    values = np.asarray(imagecodecs.jpeg2k_decode(image.path.read_bytes()))
    opaque = not mask or size.components in (1, 3) or bool(np.ptp(values[..., -1]) == 0)
    if values.ndim == 3:
        values = values[..., 0] if values.shape[2] <= 2 else values[..., :3]
    return Stored(values, full_range(values.dtype, bits), depth_name(values.dtype, bits), opaque=opaque)


def _size(path: Path) -> _Size:
    with path.open("rb") as file:
        head = file.read(_SEARCHED)
    start = head.find(_CODESTREAM)
    if start < 0:
        raise ValueError("no JPEG 2000 codestream")
    right, bottom, left, top = struct.unpack_from(">4I", head, start + 8)
    (components,) = struct.unpack_from(">H", head, start + 40)
    bits = tuple((head[start + 42 + 3 * index] & 0x7F) + 1 for index in range(min(components, MAX_CHANNELS)))
    box = head.find(b"colr", 0, start)
    named = box >= 0 and head[box + 4] == 1
    colours = struct.unpack_from(">I", head, box + 7)[0] if named else 0
    signed, indexed = bool(head[start + 42] & 0x80), head.find(b"pclr", 0, start) >= 0
    return _Size(right - left, bottom - top, components, bits, signed, colours, indexed)
