"""Formats that people drop beside images, and that are not read: they are named, with what to do."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

_NIFTI_HEADERS = {348: ((344, b"n+1\0"), (344, b"ni1\0")), 540: ((4, b"n+2\0"), (4, b"ni2\0"))}
"""Where the magic words of NIfTI-1 and NIfTI-2 stand, by the length of the header that the file begins with."""
_SIGNATURES = (
    (0, b"%PDF", "a PDF; export its pictures as PNG"),
    (4, b"ftyphei", "a HEIC photograph; save it as JPEG or PNG"),
    (4, b"ftypmif1", "a HEIC photograph; save it as JPEG or PNG"),
    (4, b"ftypavif", "an AVIF image; save it as PNG"),
    (0, b"NRRD", "an NRRD volume; save its slices as PNG or TIFF"),
    (0, b"ObjectType = Image", "a MetaImage volume; save its slices as PNG or TIFF"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file; save its images as PNG, TIFF or .npy"),
    (0, b"PK\x03\x04", "a ZIP archive; unpack it"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it"),
)
"""Offset, bytes and words."""


def foreign_format(head: bytes, path: Path) -> str | None:
    """What a file is that no reader recognises and what to do with it, or None where that is not known either."""
    if _is_dicom(head, path):
        return "a DICOM file; DICOM is not read, export its frames as PNG or TIFF"
    if _is_nifti(_inflated(head)):
        return "a NIfTI volume; NIfTI is not read, save its slices as PNG or TIFF"
    return next((words for offset, magic, words in _SIGNATURES if head[offset:].startswith(magic)), None)


def _is_dicom(head: bytes, path: Path) -> bool:
    """A Part 10 file, or a data set without its preamble: its first tag lies in group 2 or 8."""
    if head[128:132] == b"DICM":
        return True
    first_tag = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"
    return first_tag and ((head[4:6].isalpha() and head[4:6].isupper()) or path.suffix.lower() in (".dcm", ".dicom"))


def _is_nifti(head: bytes) -> bool:
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        length = int.from_bytes(head[:4], order)
        if any(head[at : at + 4] == magic for at, magic in _NIFTI_HEADERS.get(length, ())):
            return True
    return False


def _inflated(head: bytes) -> bytes:
    """The first bytes of what is compressed by gzip, or the bytes as they are."""
    if not head.startswith(b"\x1f\x8b"):
        return head
    try:
        return zlib.decompressobj(wbits=31).decompress(head, 1024)
    except zlib.error:
        return head
