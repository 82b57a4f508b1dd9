"""Formats that people drop beside images, and that are not read: they are named, with what to do."""

from __future__ import annotations

from madclip.data.readers.nifti import magic_word

_SIGNATURES = (
    (0, b"%PDF", "a PDF; export its pictures as PNG"),
    (4, b"ftyphei", "a HEIC photograph; save it as JPEG or PNG"),
    (4, b"ftypmif1", "a HEIC photograph; save it as JPEG or PNG"),
    (4, b"ftypavif", "an AVIF image; save it as PNG"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file; save its images as PNG, TIFF or .npy"),
    (0, b"PK\x03\x04", "a ZIP archive; unpack it"),
    (0, b"\x1f\x8b", "a gzip archive; unpack it"),
)
"""Offset, bytes and words."""


def foreign_format(head: bytes) -> str | None:
    """What a file is that no reader recognises and what to do with it, or None where that is not known either."""
    if magic_word(head) == b"ni":
        return "half of a NIfTI pair (.hdr and .img); save the volume as one file, .nii.gz"
    return next((words for offset, magic, words in _SIGNATURES if head[offset:].startswith(magic)), None)
