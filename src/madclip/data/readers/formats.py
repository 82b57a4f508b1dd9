"""All formats, and which of them a file is: its content decides, never its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from madclip.data.readers.dicom import DICOM
from madclip.data.readers.foreign import foreign_format
from madclip.data.readers.jpeg2000 import JPEG2000
from madclip.data.readers.nifti import NIfTI
from madclip.data.readers.npy import NumPy
from madclip.data.readers.pillow import BMP, GIF, JPEG, WEBP
from madclip.data.readers.png import PNG
from madclip.data.readers.protocol import UNREADABLE, Reader, Stored
from madclip.data.readers.text_volumes import NRRD, MetaImage
from madclip.data.readers.tiff import TIFF
from madclip.data.readers.volume import Volume, VolumeReader
from madclip.data.ref import ImageRef, as_ref
from madclip.errors import DataError
from madclip.files import first_line

if TYPE_CHECKING:
    from pathlib import Path

READERS: tuple[Reader, ...] = (
    DICOM(),
    PNG(),
    JPEG,
    TIFF(),
    NIfTI(),
    NRRD(),
    MetaImage(),
    BMP,
    GIF,
    WEBP,
    JPEG2000(),
    NumPy(),
)
"""One reader for each format, asked in this order: a DICOM file may begin as a TIFF, and be both."""
IMAGE_SUFFIXES = frozenset(suffix for reader in READERS for suffix in reader.suffixes)
"""What counts as an image when a folder is searched."""
_HEAD = 1024


def reader_of(path: Path) -> Reader:
    """The reader that recognises a file.

    Raises:
        DataError: The file cannot be opened, is empty, or of no format that is read; the message names the format
            where it is a known one.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror or error})") from error
    if not head:
        raise DataError(f"{path}: the file is empty")
    for reader in READERS:
        if reader.recognises(head, path):
            return reader
    known = foreign_format(head)
    if known:
        raise DataError(f"{path}: {known}")
    names = [reader.name for reader in READERS]
    raise DataError(f"{path}: not a {', '.join(names[:-1])} or {names[-1]} image, whatever its name says")


def holds_image(path: Path) -> bool:
    """Whether a file's content is of a format that is read, whatever its name; False where it cannot be opened."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return any(reader.recognises(head, path) for reader in READERS)


def is_volume(path: Path) -> bool:
    """Whether a file is a volume of NIfTI, NRRD or MetaImage.

    Raises:
        DataError: As `reader_of` does.
    """
    return isinstance(reader_of(path), VolumeReader)


def open_volume(path: Path) -> Volume:
    """The volume in a file for which `is_volume`.

    Raises:
        DataError: It is no volume, damaged, too large, or does not say how it lies in the patient.
        MissingExtraError: The library of its format is not installed.
    """
    reader = reader_of(path)
    if not isinstance(reader, VolumeReader):
        raise DataError(f"{path}: no volume of NIfTI, NRRD or MetaImage")
    return reader.open(path)


def is_scanner_file(path: Path) -> bool:
    """Whether a file is of a format that scanners write, whose names and headers often name a patient."""
    try:
        return isinstance(reader_of(path), (DICOM, VolumeReader))
    except DataError:
        return False


def may_be_scanner_file(path: Path) -> bool:
    """Whether a file is of such a format, or would be by its name, also where it is damaged."""
    named = (suffix for reader in READERS if isinstance(reader, (DICOM, VolumeReader)) for suffix in reader.suffixes)
    return path.name.lower().endswith(tuple(named)) or is_scanner_file(path)


def read_stored(image: ImageRef, *, mask: bool = False) -> Stored:
    """What a file holds of one image, by the reader of its format.

    Raises:
        DataError: The file cannot be read; one line that names it and says why.
    """
    reader = reader_of(image.path)
    try:
        return reader.read(image, mask=mask)
    except UNREADABLE as error:
        raise DataError(f"{image}: damaged or unsupported {reader.name} image ({first_line(error)})") from error


def frames_of(path: Path | str, axis: str = "axial") -> tuple[ImageRef, ...]:
    """The names of all images in a file: one for each frame, page or slice, or its own where it holds one image.

    Args:
        path: The file.
        axis: How a volume is cut: `axial`, `coronal`, `sagittal`, or across its axis `0`, `1` or `2` on disk.

    Raises:
        DataError: The file cannot be read.
    """
    whole = as_ref(path)
    reader = reader_of(whole.path)
    try:
        return reader.frames(whole.path, axis) or (whole,)
    except UNREADABLE as error:
        raise DataError(f"{path}: damaged or unsupported {reader.name} image ({first_line(error)})") from error
