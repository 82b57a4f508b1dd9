"""What the samples of a TIFF page mean (TIFF 6.0, PhotometricInterpretation): each kind is converted or refused."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.data.readers.protocol import Stored, depth_name, full_range
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from madclip.data.ref import ImageRef

_PHOTOMETRIC, ORIENTATION, _INK_SET = 262, 274, 332
_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _SEPARATED, _YCBCR, _CIELAB, _ICCLAB = 0, 1, 2, 3, 5, 6, 8, 9
_JPEG = (6, 7)
_LIBTIFF = (1, 5, 8, 32773, 32946, 34925, 50000)
"""Compressions of YCbCr that libtiff decodes to RGB: none, LZW, deflate, PackBits, LZMA, zstd."""
_ASSOCIATED = 1
"""ExtraSamples: colours are multiplied by this alpha."""


def stored_page(page: Any, values: npt.NDArray[Any], what: str, *, mask: bool) -> Stored:
    """Grey values, labels or RGB of a page, from its samples [H, W, C] as stored.

    Raises:
        DataError: Its colours or its type are of a kind that is not read.
    """
    bits = page.bitspersample
    if page.tags.get(_PHOTOMETRIC) is None:
        raise DataError(f"{what}: a TIFF that does not say what its values mean (PhotometricInterpretation)")
    photometric = int(page.photometric)
    if values.dtype.kind not in "buif" or not isinstance(bits, int):
        raise DataError(f"{what}: TIFF values of type {values.dtype} and {bits} bits; save it with 8 or 16 bits")
    if values.dtype.kind == "b":
        values, bits = values.astype(np.uint8), 1
    if mask and photometric == _MINISWHITE:
        # tifffile and ImageJ write 1 for lesion there, Pillow's fax formats 0: a guess may invert the mask.
        raise DataError(f"{what}: a mask in which 0 is white (MINISWHITE); save it as PNG or as 8-bit grey TIFF")
    if photometric not in _COLOURS:
        name = getattr(page.photometric, "name", photometric)
        raise DataError(f"{what}: TIFF colours of kind {name} are not read; save it as grey or RGB")
    samples, convert = _COLOURS[photometric]
    extra = values.shape[2] - samples
    if extra < 0 or (samples == 1 and extra > 1):
        raise DataError(
            f"{what}: {values.shape[2]} channels in a TIFF of kind {page.photometric.name}; save it as grey or RGB"
        )
    colours, alpha = values[..., :samples], values[..., samples:]
    opaque = not mask or not extra or bool((alpha == alpha[:1, :1]).all())
    if mask and photometric == _PALETTE:
        return Stored(colours[..., 0], (0.0, 2.0**bits - 1), depth_name(values.dtype, bits), labels=True, opaque=opaque)
    if extra and tuple(page.extrasamples)[:1] == (_ASSOCIATED,):
        colours = _divided(colours, alpha[..., :1], bits)
    try:
        colours, bits = convert(page, colours, bits)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error
    full, depth = full_range(values.dtype, bits), depth_name(values.dtype, bits)
    return Stored(colours[..., 0] if colours.shape[2] == 1 else colours, full, depth, opaque=opaque)


def is_raw_ycbcr(page: Any) -> bool:
    """Whether a page holds YCbCr that tifffile would give as it is: it converts only what JPEG compresses."""
    return int(page.photometric) == _YCBCR and not (int(page.compression) in _JPEG and page.planarconfig == 1)


def ycbcr_as_rgb(page: Any, image: ImageRef, number: int) -> npt.NDArray[np.uint8]:
    """RGB of a page of YCbCr, by libtiff: with its coefficients, reference values and subsampling.

    Raises:
        DataError: Its depth or compression is one that libtiff does not convert.
    """
    import imagecodecs

    if page.bitspersample != 8 or page.samplesperpixel != 3 or int(page.compression) not in _LIBTIFF:
        name = getattr(page.compression, "name", page.compression)
        raise DataError(f"{image}: YCbCr of {page.bitspersample} bits, compressed by {name}; save it as RGB")
    _check_complete(page)
    # A map of the file, since it may hold many more pages than are read.
    with image.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        values = np.asarray(imagecodecs.tiff_decode(whole, number, asrgb=True))[..., :3]
    # libtiff applies the flips of an orientation, but not its transposition: both are done later.
    orientation = page.tags.valueof(ORIENTATION, default=1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


def _check_complete(page: Any) -> None:
    """Libtiff fills what is missing of a strip without a word: each must hold all samples that its size asks for."""
    import tifffile

    if not page.is_subsampled:
        page.asarray()
        return
    across, down = page.subsampling
    width = page.tilewidth if page.is_tiled else page.imagewidth
    decode = tifffile.TIFF.DECOMPRESSORS[int(page.compression)]
    left = page.imagelength
    for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        rows = page.tilelength if page.is_tiled else min(left, page.rowsperstrip)
        left = max(left - rows, 1)
        needed = -(-width // across) * -(-rows // down) * (across * down + 2)
        page.parent.filehandle.seek(offset)
        data = page.parent.filehandle.read(size)
        if len(data if decode is None else decode(data, out=needed)) < needed:
            raise ValueError("a strip or tile ends early")


Converted = tuple["npt.NDArray[Any]", int]
"""Grey [H, W, 1] or RGB [H, W, 3], and the bits of their scale."""


def _as_stored(_page: Any, values: npt.NDArray[Any], bits: int) -> Converted:
    return values, bits


def _inverted(_page: Any, values: npt.NDArray[Any], bits: int) -> Converted:
    if values.dtype.kind == "f":
        raise DataError("floats in which 0 is white (MINISWHITE); save it with 0 as black")
    return (~values if values.dtype.kind == "i" else (2**bits - 1) - values), bits


def _from_palette(page: Any, values: npt.NDArray[Any], _bits: int) -> Converted:
    table = page.colormap
    if table is None or values.dtype.kind != "u":
        raise DataError("a palette TIFF without a colour map; save it as RGB")
    # As libtiff does: maps of old writers hold 0 to 255 where the standard says 0 to 65,535.
    colours = table if table.max() < 256 else table >> 8
    return colours.T[values[..., 0]].astype(np.uint8), 8


def _from_cmyk(page: Any, values: npt.NDArray[Any], bits: int) -> Converted:
    if page.tags.valueof(_INK_SET, default=1) != 1 or values.dtype.kind != "u":
        raise DataError("TIFF colours in inks other than CMYK are not read; save it as RGB")
    white = 2**bits - 1
    light = 1 - values.astype(np.float32) / white
    return light[..., :3] * light[..., 3:] * white, bits


def _from_lab(page: Any, values: npt.NDArray[Any], bits: int) -> Converted:
    """SRGB by LittleCMS. CIELAB has signed a* and b* (TIFF 6.0, section 23), ICCLAB adds 128 to them (Adobe's note)."""
    import imagecodecs
    from PIL import ImageCms

    if bits not in (8, 16) or values.dtype.kind not in "ui":
        raise DataError(f"CIELAB of {bits} bits; save it as RGB")
    stored = values.astype(f"u{bits // 8}")
    step = 2 ** (bits - 8)
    icc = int(page.photometric) == _ICCLAB
    white = 255 * step if icc else 2**bits - 1
    lab = np.empty(values.shape, np.float32)
    lab[..., 0] = stored[..., 0].astype(np.float32) * (100 / white)
    chroma = stored[..., 1:].astype(np.float32) - 128 * step if icc else stored[..., 1:].view(f"i{bits // 8}")
    lab[..., 1:] = chroma / np.float32(step)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    rgb = imagecodecs.cms_transform(
        lab, profile, imagecodecs.cms_profile("srgb"), colorspace="lab", outcolorspace="rgb", outdtype=np.float32
    )
    return np.clip(np.asarray(rgb), 0, 1) * np.float32(2**bits - 1), bits


def _divided(colours: npt.NDArray[Any], alpha: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    """Colours that were multiplied by their alpha, as they were before; black where nothing is left of them."""
    white = 1.0 if colours.dtype.kind == "f" else 2.0**bits - 1
    whole = np.divide(
        colours * white, alpha, out=np.zeros(colours.shape, np.float64), where=np.broadcast_to(alpha > 0, colours.shape)
    )
    whole = np.minimum(whole, white)
    return np.asarray(whole if colours.dtype.kind == "f" else np.rint(whole), colours.dtype)


_COLOURS: dict[int, tuple[int, Callable[[Any, npt.NDArray[Any], int], Converted]]] = {
    _MINISBLACK: (1, _as_stored),
    _MINISWHITE: (1, _inverted),
    _RGB: (3, _as_stored),
    _YCBCR: (3, _as_stored),
    _PALETTE: (1, _from_palette),
    _SEPARATED: (4, _from_cmyk),
    _CIELAB: (3, _from_lab),
    _ICCLAB: (3, _from_lab),
}
"""Samples of a pixel, and how they become grey or RGB, for each photometric that is read."""
