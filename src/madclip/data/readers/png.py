"""PNG. Pillow reads up to 8 bits, imagecodecs 16, of which Pillow would keep 8 in colours."""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import IO, TYPE_CHECKING

import numpy as np

from madclip.data.readers.pillow import orientation_of, seek_frame, stored_picture
from madclip.data.readers.protocol import UNREADABLE, Stored, check_frame, check_size, numbered, upright
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from madclip.data.ref import ImageRef

MAGIC = b"\x89PNG\r\n\x1a\n"
_HEADER = 29
"""Bytes up to the end of the header's fields."""
_KEPT = frozenset({b"eXIf", b"acTL", b"fcTL", b"fdAT"})
"""Ancillary chunks that change what is seen: orientation and frames."""
_MAX_BYTES = 2**30
"""More than any image of `MAX_PIXELS` takes."""


class PNG:
    """Portable network graphics, also animated ones."""

    name = "PNG"
    suffixes = (".png", ".apng")

    def recognises(self, head: bytes, path: Path) -> bool:  # noqa: ARG002  (the protocol's)
        """Whether a file has the signature of PNG."""
        return head.startswith(MAGIC)

    def frames(self, path: Path, axis: str) -> tuple[ImageRef, ...]:  # noqa: ARG002  (no volume)
        """The frames of an animated PNG."""
        from PIL.PngImagePlugin import PngImageFile

        with path.open("rb") as file, PngImageFile(_essential(file)) as picture:
            return numbered(path, range(picture.n_frames))

    def read(self, image: ImageRef, *, mask: bool) -> Stored:
        """One image; text, profiles and other chunks that do not touch its pixels cannot make it unreadable."""
        with image.path.open("rb") as file:
            header = file.read(_HEADER)
            if len(header) >= 24:
                # Of a file that ends after its header, Pillow would only say that it is damaged.
                check_size(image.path, *struct.unpack(">II", header[16:24]))
            bits = header[24]
            if os.fstat(file.fileno()).st_size <= _MAX_BYTES:
                try:
                    return _read(file, image, bits, mask=mask)
                except UNREADABLE:
                    pass  # it may be only a chunk that does not matter
            return _read(_essential(file), image, bits, mask=mask)


def _read(file: IO[bytes], image: ImageRef, bits: int, *, mask: bool) -> Stored:
    from PIL.PngImagePlugin import PngImageFile

    file.seek(0)
    with PngImageFile(file) as picture:
        check_size(image.path, *picture.size)
        if bits <= 8:
            seek_frame(picture, image)
            return stored_picture(picture, mask=mask, bits=bits)
        if check_frame(image, picture.n_frames):
            raise DataError(f"{image}: an animated PNG of 16 bits; save the frame as a file of its own")
        orientation = orientation_of(picture)
        values = _sixteen_bit(file)
    opaque = not mask or values.ndim == 2 or values.shape[2] in (1, 3) or bool(np.ptp(values[..., -1]) == 0)
    if values.ndim == 3:
        values = values[..., 0] if values.shape[2] <= 2 else values[..., :3]
    return Stored(upright(values, orientation), (0.0, 65535.0), "16-bit", opaque=opaque)


def _sixteen_bit(file: IO[bytes]) -> npt.NDArray[np.uint16]:
    import imagecodecs

    return np.asarray(imagecodecs.png_decode(_essential(file).getvalue()))


def _essential(file: IO[bytes]) -> io.BytesIO:
    """A PNG without the chunks that do not touch its pixels, such as text and colour profiles."""
    file.seek(0)
    kept, size = [file.read(len(MAGIC))], 0
    while len(header := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", header)
        if not (kind[:1].isupper() or kind in _KEPT):
            file.seek(length + 4, os.SEEK_CUR)
            continue
        size += length
        if size > _MAX_BYTES:
            raise ValueError("more compressed data than any image that is read can need")
        body = file.read(length + 4)
        intact = struct.pack(">I", zlib.crc32(kind + body[:-4])) == body[-4:]
        if not intact and kind != b"eXIf":
            raise ValueError(f"wrong checksum of its {kind.decode(errors='replace')} chunk")
        if intact:
            kept += [header, body]
        if kind == b"IEND":
            break
    return io.BytesIO(b"".join(kept))
