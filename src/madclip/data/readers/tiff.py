"""TIFF: pages, sizes and raw values by tifffile; what the values mean is said in `tiff_colour.py`."""

from __future__ import annotations

import io
import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.data.readers.protocol import MAX_CHANNELS, MAX_PIXELS, Stored, check_frame, check_size, numbered, upright
from madclip.data.readers.tiff_colour import ORIENTATION, is_raw_ycbcr, stored_page, ycbcr_as_rgb
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from madclip.data.ref import ImageRef

# tifffile logs what it also raises; without any handler Python would print that beside our one line.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_BYTE_CODECS = frozenset({1, 2, 3, 4, 5, 8, 32773, 32946, 34925, 50000})
"""Compressions that give no more bytes than there is room for: none, CCITT, LZW, deflate, PackBits, LZMA, zstd."""
_JPEG2000 = "Jpeg2KImagePlugin.Jpeg2KImageFile"
_IMAGE_CODECS = {
    6: "JpegImagePlugin.JpegImageFile",
    7: "JpegImagePlugin.JpegImageFile",
    33003: _JPEG2000,
    33005: _JPEG2000,
    34712: _JPEG2000,
    34933: "PngImagePlugin.PngImageFile",
    50001: "WebPImagePlugin.WebPImageFile",
}
"""Compressions whose strips and tiles are images with sizes of their own, and Pillow's plug-in that reads those."""


class TIFF:
    """TIFF and BigTIFF, page by page."""

    name = "TIFF"
    suffixes = (".tif", ".tiff")

    def recognises(self, head: bytes, path: Path) -> bool:  # noqa: ARG002  (the protocol's)
        """Whether a file begins as TIFF or BigTIFF does, in either byte order."""
        return head.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"))

    def frames(self, path: Path, axis: str) -> tuple[ImageRef, ...]:  # noqa: ARG002  (no volume)
        """The pages that are images; thumbnails and levels of a pyramid are passed over."""
        import tifffile

        with tifffile.TiffFile(path) as tiff:
            return numbered(path, _full_pages(tiff))

    def read(self, image: ImageRef, *, mask: bool) -> Stored:
        """One page, which a frame names by its number in the file, all of its bits."""
        import tifffile

        with tifffile.TiffFile(image.path) as tiff:
            number = _page_number(tiff, image)
            page = tiff.pages[number].aspage()
            _check_page(tiff, page, image)
            values = ycbcr_as_rgb(page, image, number) if is_raw_ycbcr(page) else _values(page)
            stored = stored_page(page, values, str(image), mask=mask)
            orientation = page.tags.valueof(ORIENTATION, default=1)
        return Stored(upright(stored.values, orientation), stored.full, stored.depth, stored.labels, stored.opaque)


def _full_pages(tiff: Any) -> tuple[int, ...]:
    found, offsets = [], set()
    for number, page in enumerate(tiff.pages):
        if page.offset in offsets:
            raise ValueError("its pages go in a circle")
        offsets.add(page.offset)
        if not page.aspage().is_reduced:
            found.append(number)
    return tuple(found)


def _page_number(tiff: Any, image: ImageRef) -> int:
    """Which page is meant. All pages are looked through only where none is named: that takes a millisecond each."""
    count = len(tiff.pages)
    if image.frame is None and count > 1:
        full = _full_pages(tiff)
        if len(full) == 1:
            return full[0]
        if not full:
            raise DataError(f"{image}: holds only thumbnails; give the image itself")
    return check_frame(image, count)


def _check_page(tiff: Any, page: Any, image: ImageRef) -> None:
    """Refuses sizes and kinds that are not read, before anything is decoded.

    Raises:
        DataError: The page is a volume, has too many samples, is too large, or is compressed in an unknown way.
    """
    if page.imagedepth != 1 or page.samplesperpixel > MAX_CHANNELS or _has_hidden_planes(tiff):
        raise DataError(f"{image}: a TIFF of shape {tiff.series[0].shape}; single images in grey, RGB or CMYK are read")
    check_size(image.path, page.imagewidth, page.imagelength)
    if page.is_tiled:
        check_size(image.path, page.tilewidth, page.tilelength)
    height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    parts = -(-page.imagelength // height) * -(-page.imagewidth // width)
    parts *= page.samplesperpixel if page.planarconfig == 2 else 1
    if min(len(page.dataoffsets), len(page.databytecounts)) < parts:
        # tifffile would fill what is missing with zeros.
        raise DataError(f"{image}: damaged, it has {len(page.dataoffsets)} of {parts} strips or tiles")
    compression = int(page.compression)
    if compression in _BYTE_CODECS:
        return
    if compression not in _IMAGE_CODECS:
        name = getattr(page.compression, "name", compression)
        raise DataError(f"{image}: a TIFF compressed by {name}; save it without compression or as PNG")
    _check_segments(page, image)


def _has_hidden_planes(tiff: Any) -> bool:
    """Whether a writer described more planes than there are pages, as ImageJ and tifffile do for large stacks."""
    if len(tiff.pages) > 1:
        return False
    described = tiff.pages[0].description
    if described.startswith("ImageJ"):
        return int((tiff.imagej_metadata or {}).get("images", 1)) > 1
    return '"truncated"' in described and any(one.get("truncated") for one in tiff.shaped_metadata or ())


def _check_segments(page: Any, image: ImageRef) -> None:
    """Each strip or tile that is an image of its own may not be larger than the page says."""
    module, name = _IMAGE_CODECS[int(page.compression)].split(".")
    plugin = getattr(import_module(f"PIL.{module}"), name)
    width, height = (page.tilewidth, page.tilelength) if page.is_tiled else (page.imagewidth, page.imagelength)
    handle = page.parent.filehandle
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        if size:
            handle.seek(offset)
            with plugin(io.BytesIO(handle.read(min(size, 16 * MAX_PIXELS)))) as part:
                if part.size[0] > width or part.size[1] > height:
                    raise DataError(f"{image}: a part of {part.size[0]} x {part.size[1]} pixels in a smaller page")


def _values(page: Any) -> npt.NDArray[Any]:
    """Samples as stored, [H, W, C]."""
    planes, _, height, width, channels = page.shaped
    values = page.asarray().reshape(planes, height, width, channels)
    return np.concatenate(list(values), axis=-1) if planes > 1 else np.asarray(values[0])
