"""From a file to an image or a mask. The content decides the format, not the file's name."""

from __future__ import annotations

import logging
import math
import os
import struct
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from madclip.data.ref import ImageRef, as_ref
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future
    from pathlib import Path

    import numpy.typing as npt

MAX_PIXELS = 64 * 2**20
"""Larger images are refused from their header, before anything is decoded."""
MIN_SIDE = 8
"""Smaller images hold nothing to detect: pixels."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
"""What counts as an image when a folder is searched."""
MAX_LABEL = 15
"""Masks may be label maps: integers up to this one, each of them a lesion."""

# tifffile logs what it also raises; without any handler Python would print that beside our one line.
logging.getLogger("tifffile").addHandler(logging.NullHandler())

_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    EOFError,
    ArithmeticError,
    struct.error,
    zlib.error,
)
"""What decoders raise when a file is damaged."""
_PNG_SIXTEEN_BIT = 16

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class Image:
    """One image, as read.

    Attributes:
        pixels: float32 [3, H, W] in 0..1; grey images have three equal channels.
        spacing: Millimetres between rows and between columns; None where the format does not carry them (the dots per
            inch of PNG, JPEG and TIFF say nothing about the patient).
        source: Its name.
        depth: Of its values in the file: "8-bit", "12-bit", "16-bit" or "float".
    """

    pixels: npt.NDArray[np.float32]
    spacing: tuple[float, float] | None
    source: ImageRef
    depth: str = "float"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[1], self.pixels.shape[2]


def read_image(image: ImageRef | Path | str) -> Image:
    """Reads PNG, JPEG, TIFF or BMP of any colour type.

    8-bit values are divided by 255, 16-bit ones by 65,535 (all their bits are kept), 12-bit TIFFs by 4,095. Floats must
    lie in 0..1. Palettes and CMYK become RGB, alpha is dropped (not composited: the pixels below it are kept), and the
    orientation that EXIF or TIFF states is applied. Colour profiles are not.

    Raises:
        DataError: The file is missing, damaged, not an image, too large, too small, or its values have no known scale.
    """
    ref = as_ref(image)
    path = ref.path
    if ref.frame is not None:
        raise DataError(f"{ref}: this format has no frames; name the file alone")
    values, maximum = _decode(path)
    if min(values.shape[:2]) < MIN_SIDE:
        raise DataError(f"{path}: {_extent(values)} pixels; an image needs at least {MIN_SIDE} on each side")
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise DataError(f"{path}: has NaN or infinite values; replace them")
        if values.min() < 0 or values.max() > 1:
            low, high = float(values.min()), float(values.max())
            raise DataError(f"{path}: float values from {low:g} to {high:g}; rescale them to 0..1")
    colours = values[..., None] if values.ndim == 2 else values[..., : 1 if values.shape[2] <= 2 else 3]
    pixels = np.empty((3, *values.shape[:2]), np.float32)
    np.divide(colours.transpose(2, 0, 1), maximum, out=pixels, casting="unsafe", dtype=np.float32)
    depth = "float" if maximum == 1.0 else f"{round(math.log2(maximum + 1))}-bit"
    return Image(pixels=pixels, spacing=None, source=ref, depth=depth)


def read_mask(mask: ImageRef | Path | str) -> npt.NDArray[np.bool_]:
    """Reads a lesion mask as bool [H, W].

    Understood are 0 and full scale (255, 65,535, 1.0), and label maps of small integers (0 to 15), where every label
    other than 0 is lesion. In colour masks black is background. Anything between is ambiguous and refused: an
    interpolated or JPEG-compressed mask has to be thresholded by who knows where its lesions end.

    Raises:
        DataError: The file cannot be read, or its values are not those of a mask.
    """
    ref = as_ref(mask)
    path = ref.path
    if ref.frame is not None:
        raise DataError(f"{ref}: this format has no frames; name the file alone")
    values, maximum = _decode(path, mask=True)
    if values.ndim == 3:
        values = values[..., : 1 if values.shape[2] <= 2 else 3].max(axis=2)
    return to_mask(values, maximum, str(path))


def to_mask(values: npt.NDArray[Any], maximum: float, what: str) -> npt.NDArray[np.bool_]:
    """The rule of `read_mask` on values [H, W] whose full scale is known; `what` stands first in the error."""
    found = np.unique(values)
    labels = found[found != 0]
    is_label_map = values.dtype.kind != "f" and (labels <= MAX_LABEL).all()
    if not is_label_map and not (labels == maximum).all():
        shown = ", ".join(f"{value:g}" for value in found[:5]) + (", ..." if len(found) > 5 else "")
        raise DataError(
            f"{what}: not a mask, it has values {shown}; threshold it to 0 and {maximum:g}, "
            f"or use labels from 0 to {MAX_LABEL}"
        )
    return np.asarray(values != 0)


def read_many(
    sources: Iterable[S], read: Callable[[S], T], *, workers: int | None = None, ahead: int | None = None
) -> Iterator[tuple[S, T | DataError]]:
    """Reads with a few threads, in the given order and in constant memory.

    Args:
        sources: What to read.
        read: `read_image`, or another function of one source.
        workers: Threads; as many as cores, at most 8, when None.
        ahead: Sources that may be read before they are asked for; twice the threads when None.

    Yields:
        Each source with what was read, or with the DataError that it met: the rest goes on.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    ahead = 2 * workers if ahead is None else ahead
    pending: deque[tuple[S, Future[T | DataError]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        try:
            for source in sources:
                pending.append((source, pool.submit(_guarded, read, source)))
                if len(pending) > ahead:
                    first, future = pending.popleft()
                    yield first, future.result()
            for last, future in pending:
                yield last, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _guarded(read: Callable[[S], T], source: S) -> T | DataError:
    try:
        return read(source)
    except DataError as error:
        return error


def _extent(values: npt.NDArray[Any]) -> str:
    return f"{values.shape[1]} x {values.shape[0]}"


def _decode(path: Path, *, mask: bool = False) -> tuple[npt.NDArray[Any], float]:
    """Raw values [H, W] or [H, W, C], upright, and the value that stands for white."""
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror or error})") from error
    for magic, decode in _DECODERS.items():
        if head.startswith(magic):
            try:
                return decode(path, head, mask)
            except _UNREADABLE as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                raise DataError(f"{path}: damaged or unsupported image ({reason})") from error
    if not head:
        raise DataError(f"{path}: the file is empty")
    raise DataError(f"{path}: not a PNG, JPEG, TIFF or BMP image, whatever its name says")


def _check_size(path: Path, width: int, height: int) -> None:
    if min(width, height) < 1:
        raise DataError(f"{path}: {width} x {height} pixels; there is nothing to read")
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{path}: {width} x {height} pixels; images of more than {MAX_PIXELS // 2**20} megapixels are not read, "
            "crop or shrink it"
        )


def _decode_pillow(path: Path, head: bytes, _mask: bool) -> tuple[npt.NDArray[Any], float]:
    from PIL.BmpImagePlugin import BmpImageFile
    from PIL.ExifTags import Base
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    # The plug-ins are called directly because Image.open warns or raises on sizes by limits of its own.
    plugins: dict[bytes, type[Any]] = {b"\x89": PngImageFile, b"\xff": JpegImageFile, b"B": BmpImageFile}
    plugin = plugins[head[:1]]
    if plugin is PngImageFile and len(head) >= 24:
        # Of a PNG that ends after its header, Pillow would only say that it is damaged.
        _check_size(path, *struct.unpack(">II", head[16:24]))
    with path.open("rb") as file, plugin(file) as picture:
        _check_size(path, *picture.size)
        if plugin is PngImageFile and head[24] == _PNG_SIXTEEN_BIT:
            # Pillow would cut colours of 16 bits to 8.
            values, maximum = _png_sixteen_bit(path), 65535.0
        else:
            picture.load()
            picture.info.pop("transparency", None)
            upright = picture if picture.mode == "L" else picture.convert("RGB")
            values, maximum = np.asarray(upright), 255.0
        orientation = picture.getexif().get(Base.Orientation, 1)
    return _upright(values, orientation), maximum


def _png_sixteen_bit(path: Path) -> npt.NDArray[Any]:
    import imagecodecs

    try:
        return np.asarray(imagecodecs.png_decode(path.read_bytes()))
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def _decode_tiff(path: Path, _head: bytes, mask: bool) -> tuple[npt.NDArray[Any], float]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [page.aspage() for page in tiff.pages]
            full = [page for page in pages if not page.is_reduced]
            if len(full) != 1:
                raise DataError(f"{path}: a TIFF with {len(full)} pages; give one file for each image")
            page = full[0]
            if page.imagedepth != 1 or page.samplesperpixel > 5:
                raise DataError(f"{path}: a TIFF of shape {page.shape}; grey, RGB or CMYK is needed")
            _check_size(path, page.imagewidth, page.imagelength)
            if mask and page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
                # tifffile and ImageJ write 1 for lesion there, Pillow's fax formats 0: a guess may invert the mask.
                raise DataError(
                    f"{path}: a mask in which 0 is white (MINISWHITE); save it as PNG or as 8-bit grey TIFF"
                )
            planes, _, height, width, channels = page.shaped
            values = page.asarray().reshape(planes, height, width, channels)
            values = np.concatenate(list(values), axis=-1) if planes > 1 else values[0]
            orientation = page.tags.valueof("Orientation", default=1)
            return _tiff_scale(path, page, _upright(values, orientation))
    except (RuntimeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def _tiff_scale(path: Path, page: Any, values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], float]:
    """Colours and white value of a TIFF page, from its photometric interpretation and depth."""
    import tifffile

    photometric = tifffile.PHOTOMETRIC
    if values.dtype.kind == "b":
        values, depth = values.astype(np.uint8), 1
    else:
        depth = page.bitspersample
    if page.photometric == photometric.PALETTE:
        return (page.colormap.T[values[..., 0]] >> 8).astype(np.uint8), 255.0
    if values.dtype.kind == "f":
        return values.astype(np.float32, copy=False), 1.0
    if values.dtype.kind != "u" or depth > 16:
        raise DataError(f"{path}: TIFF values of type {values.dtype}; rescale them to 8 or 16 bits, or floats in 0..1")
    maximum = 2**depth - 1
    if page.photometric == photometric.MINISWHITE:
        values = maximum - values
    elif page.photometric == photometric.SEPARATED:
        if values.shape[2] < 4:
            raise ValueError(f"CMYK with {values.shape[2]} channels")
        light = 1 - values.astype(np.float32) / maximum
        return light[..., :3] * light[..., 3:4], 1.0
    if depth == 1:
        return values * np.uint8(255), 255.0
    return values, float(maximum)


def _upright(values: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Undoes the EXIF/TIFF orientation (1 to 8) of [H, W, ...]."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values


_DECODERS: dict[bytes, Callable[[Path, bytes, bool], tuple[npt.NDArray[Any], float]]] = {
    b"\x89PNG\r\n\x1a\n": _decode_pillow,
    b"\xff\xd8\xff": _decode_pillow,
    b"BM": _decode_pillow,
    b"II*\x00": _decode_tiff,
    b"MM\x00*": _decode_tiff,
    b"II+\x00": _decode_tiff,
    b"MM\x00+": _decode_tiff,
}
"""Decoder by the first bytes of the file."""
