"""DICOM: frames of any transfer syntax that pydicom's decoders know, in the values of their modality.

Nothing of a header but what an image needs is kept, and no error of pydicom's is passed on: it may quote the patient.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.data.readers.codestreams import codestream_size
from madclip.data.readers.dicom_values import at_detector, grey, note_of, sides_of, spacing_of
from madclip.data.readers.protocol import (
    UNREADABLE,
    Stored,
    check_frame,
    check_size,
    depth_name,
    full_range,
    numbered,
)
from madclip.data.readers.segmentations import SEGMENTATIONS, drawn_on, marked
from madclip.errors import DataError, MissingExtraError
from madclip.files import until_changed

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from madclip.data.readers.segmentations import Drawn
    from madclip.data.ref import ImageRef

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT")
_CONTOURS = "1.2.840.10008.5.1.4.1.1.481.3"
_RLE = "1.2.840.10008.1.2.5"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_MAX_BYTES = 2**30
_MAX_INFLATED = 2**29
"""Bytes that a deflated data set may inflate to."""
_FEWEST_BYTES = 10
"""No compressed frame takes less of a file: so many frames fit in it at most."""
_NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")


class DICOM:
    """DICOM files with pixels, single-frame and multi-frame."""

    name = "DICOM"
    suffixes = (".dcm", ".dicom")

    def recognises(self, head: bytes, path: Path) -> bool:
        """A Part 10 file, or a data set without its preamble: its first tag lies in group 2 or 8."""
        if head[128:132] == b"DICM":
            return True
        first_tag = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"
        return first_tag and ((head[4:6].isalpha() and head[4:6].isupper()) or path.suffix.lower() in self.suffixes)

    def frames(self, path: Path, axis: str) -> tuple[ImageRef, ...]:  # noqa: ARG002  (frames, no volume)
        """The frames that its header states; of a segmentation one for each image that it was drawn on."""
        try:
            header = read_header(path)
            check_pixels(path, header)
            count = count_frames(path, header)
            return numbered(path, range(len(planes_of(path)) if is_segmentation(header) else count))
        except unreadable() as error:
            raise DataError(f"{path}: a damaged DICOM file ({type(error).__name__})") from None

    def read(self, image: ImageRef, *, mask: bool) -> Stored:
        """One frame: grey values in the units of the modality, or colours; as stored where a mask is meant.

        A segmentation gives what all its segments mark in one image.
        """
        try:
            return _read(image, mask=mask)
        except unreadable() as error:  # whose words may quote the header
            raise DataError(f"{image}: damaged or unsupported DICOM image ({type(error).__name__})") from None


def _read(image: ImageRef, *, mask: bool) -> Stored:
    path = image.path
    header = _whole(path)
    check_pixels(path, header)
    check_size(path, int(header.Columns), int(header.Rows))
    count = count_frames(path, header)
    if is_segmentation(header):
        if not mask:
            raise DataError(f"{path}: a DICOM segmentation, which is a mask and no image")
        return _read_segmentation(image, header)
    index = check_frame(image, count)
    photometric = str(header.get("PhotometricInterpretation", "")).strip()
    if photometric not in (*_GREY, *_COLOURS, "PALETTE COLOR"):
        raise DataError(f"{image}: a DICOM image whose photometric interpretation is not read; export it as PNG")
    _check_bits(path, header)
    values = _decoded(image, header, index)
    if photometric in _GREY:
        if mask:
            return Stored(values, full_range(values.dtype, header.get("BitsStored")), depth_name(values.dtype))
        try:
            return grey(header, index, values)
        except DataError as error:
            raise DataError(f"{image}: {error}") from None
    labels = photometric == "PALETTE COLOR"
    if labels and not mask:
        values = _through_palette(header, values)
    white = full_range(values.dtype, None if labels else header.get("BitsStored"))
    return Stored(
        values,
        white,
        depth_name(values.dtype),
        labels=labels,
        spacing=spacing_of(header, index),
        note=note_of(header),
        sides=sides_of(header, index),
        at_detector=at_detector(header, index),
    )


def _read_segmentation(image: ImageRef, header: Dataset) -> Stored:
    _check_bits(image.path, header)
    planes = [*planes_of(image.path).values()]
    frames = planes[check_frame(image, len(planes))]
    values = np.any([marked(header, _decoded(image, header, frame)) for frame in frames], axis=0).astype(np.uint8)
    return Stored(values, full_range(values.dtype, 1), depth_name(values.dtype, 1))


def is_segmentation(header: Dataset) -> bool:
    """Whether a header is that of a segmentation."""
    return header.get("SOPClassUID") in SEGMENTATIONS


@until_changed(2)
def planes_of(path: Path) -> dict[Drawn, list[int]]:
    """The images that a segmentation was drawn on, each with the frames that mark it.

    Raises:
        DataError: It does not say on which; the message names the file.
    """
    try:
        return drawn_on(read_header(path))
    except DataError as error:
        raise DataError(f"{path}: {error}; save its masks as images instead") from None


def check_pixels(path: Path, header: Dataset) -> None:
    """Refuses an object that holds no pixels.

    Raises:
        DataError: It holds none, as a report or contours.
    """
    if header.get("SOPClassUID") == _CONTOURS:
        raise DataError(f"{path}: contours (RTSTRUCT), which are not read; save them as a DICOM segmentation or NIfTI")
    if "Rows" not in header or "Columns" not in header:
        raise DataError(f"{path}: a DICOM object without pixels; name the images themselves")


def read_header(path: Path) -> Dataset:
    """All that a DICOM file says, without its pixels.

    Raises:
        DataError: It is damaged, or inflates beyond bounds.
        MissingExtraError: pydicom is not installed.
    """
    return _parse(path, stop_before_pixels=True)


@until_changed(2)
def _whole(path: Path) -> Dataset:
    """A file with its pixels, whose frames are read by several threads."""
    if path.stat().st_size > _MAX_BYTES:
        raise DataError(f"{path}: a DICOM file of more than {_MAX_BYTES // 2**20} MB is not read; split it into frames")
    return _parse(path, stop_before_pixels=False)


def _parse(path: Path, *, stop_before_pixels: bool) -> Dataset:
    import_pydicom()
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    try:
        _check_deflated(path)
        found = dcmread(path, stop_before_pixels=stop_before_pixels, force=True)
        if "TransferSyntaxUID" not in found.file_meta:
            implicit, little = found.original_encoding
            explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
            found.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    except unreadable() as error:
        raise DataError(f"{path}: a damaged DICOM file ({type(error).__name__})") from None
    return found


def import_pydicom() -> Any:
    """pydicom, told not to check the values of headers: its warnings would quote them."""
    try:
        import pydicom
    except ImportError:
        raise MissingExtraError.of("DICOM files", "dicom") from None
    from madclip.data.readers.dicom_codecs import register

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    register()
    return pydicom


def unreadable() -> tuple[type[Exception], ...]:
    """What pydicom raises where a file is damaged."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    return (*UNREADABLE, BytesLengthException, InvalidDicomError)


def _check_deflated(path: Path) -> None:
    """Refuses a deflated data set that would fill the memory."""
    from pydicom.filereader import read_file_meta_info

    with path.open("rb") as file:
        head = file.read(144)
        if head[128:132] != b"DICM":
            return
        length = int.from_bytes(head[140:], "little") if head[132:136] == b"\x02\0\0\0" else 0
        if not 0 < length < 2**16:
            length = int(read_file_meta_info(path).get("FileMetaInformationGroupLength") or 0)
        if _DEFLATED.encode() not in file.read(length):
            return
        inflater, inflated = zlib.decompressobj(-zlib.MAX_WBITS), 0
        while chunk := inflater.unconsumed_tail or file.read(2**16):
            inflated += len(inflater.decompress(chunk, 2**20))
            if inflated > _MAX_INFLATED:
                raise DataError(f"{path}: a deflated DICOM file of more than {_MAX_INFLATED // 2**20} MB is not read")


def count_frames(path: Path, header: Dataset) -> int:
    """The number of frames, where the file can hold so many."""
    stated = header.get("NumberOfFrames") or 1
    syntax = getattr(header.file_meta, "TransferSyntaxUID", "")
    least = _FEWEST_BYTES
    if syntax in _NATIVE:  # compressed frames may be of any size
        least = max(
            1,
            int(header.get("Rows") or 1) * int(header.get("Columns") or 1) * int(header.get("BitsAllocated") or 1) // 8,
        )
    if not 1 <= int(stated) <= max(1, path.stat().st_size // least):
        raise DataError(f"{path}: states {int(stated)} frames, which cannot be")
    return int(stated)


def _check_bits(path: Path, header: Dataset) -> None:
    allocated, stored = header.get("BitsAllocated"), header.get("BitsStored")
    if allocated is None or "FloatPixelData" in header or "DoubleFloatPixelData" in header:
        return
    if allocated not in (1, 8, 16, 32) or not stored or not 1 <= stored <= allocated:
        raise DataError(f"{path}: states {stored} bits stored of {allocated} allocated, which cannot be")
    if header.get("HighBit", stored - 1) != stored - 1:
        raise DataError(f"{path}: its values do not begin at the lowest bit; export it as PNG or TIFF")


def _decoded(image: ImageRef, dataset: Dataset, index: int) -> npt.NDArray[Any]:
    """The stored values of a frame: [H, W], or [H, W, 3] in RGB."""
    from pydicom.encaps import get_frame
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        # Only the name of a known syntax: a damaged file may hold anything in its place.
        called = syntax.name if syntax.is_transfer_syntax else "an unknown transfer syntax"
        raise DataError(f"{image}: its pixels are stored as {called}, which is not read; decompress it")
    try:
        if syntax.is_encapsulated:
            frame = get_frame(dataset.PixelData, index, number_of_frames=count_frames(image.path, dataset))
            stated = codestream_size(frame)
            if stated not in (None, (dataset.Columns, dataset.Rows)):  # a decoder would believe it
                raise DataError(f"{image}: its pixels are of another size than its header states")
        # Bits above those that are stored are looked at (`dicom_values`), not cut off: what they hold may be the image.
        # Of the decoders of RLE only pydicom's own raises errors that can be caught where a file is damaged.
        plugin = "pydicom" if syntax == _RLE else ""
        return np.asarray(pixel_array(dataset, index=index, decoding_plugin=plugin, correct_unused_bits=False))
    except unreadable() as error:
        raise DataError(f"{image}: damaged or unsupported DICOM pixels ({type(error).__name__})") from None


def _through_palette(header: Dataset, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    from pydicom.pixels.processing import apply_color_lut

    return np.asarray(apply_color_lut(values, header))
