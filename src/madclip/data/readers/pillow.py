"""Formats that Pillow decodes as they are: JPEG, BMP, GIF and WebP; and any picture that Pillow has opened."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.data.readers.protocol import (
    MAX_PIXELS,
    UNREADABLE,
    Stored,
    check_frame,
    check_size,
    depth_name,
    full_range,
    numbered,
    upright,
)
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image as Picture

    from madclip.data.ref import ImageRef

_MAX_ANIMATION = 32 * MAX_PIXELS
"""A frame of an animation is decoded with all frames before it: so many pixels altogether."""
_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
_VALUES = ("I", "F")
"""Modes of Pillow whose values are read as they are, with those that begin with I;16."""


@dataclass(frozen=True)
class PillowReader:
    """A format that Pillow decodes without loss.

    The plug-ins are called directly, because `PIL.Image.open` warns or raises on sizes by limits of its own.

    Attributes:
        name: What people call the format.
        suffixes: How such files usually end.
        magic: The bytes that they begin with, or several such.
        plugin: Module and class of Pillow's plug-in.
    """

    name: str
    suffixes: tuple[str, ...]
    magic: tuple[bytes, ...]
    plugin: str

    def recognises(self, head: bytes, path: Path) -> bool:  # noqa: ARG002  (the protocol's)
        """Whether a file begins as this format does."""
        return head.startswith(self.magic)

    def frames(self, path: Path, axis: str) -> tuple[ImageRef, ...]:  # noqa: ARG002  (no volume)
        """The frames of an animation."""
        with path.open("rb") as file, self._open(file) as picture:
            return numbered(path, range(getattr(picture, "n_frames", 1)))

    def read(self, image: ImageRef, *, mask: bool) -> Stored:
        """One image, by Pillow."""
        with image.path.open("rb") as file, self._open(file) as picture:
            check_size(image.path, *picture.size)
            seek_frame(picture, image)
            return stored_picture(picture, mask=mask)

    def _open(self, file: Any) -> Picture:
        from PIL.Image import DecompressionBombError

        module, name = self.plugin.split(".")
        try:
            opened: Picture = getattr(import_module(f"PIL.{module}"), name)(file)
        except DecompressionBombError as error:  # a first frame that is larger than the canvas of its GIF
            raise ValueError(str(error)) from error
        return opened


class WebPReader(PillowReader):
    """WebP, whose decoder makes room for the whole canvas as soon as a file is opened."""

    def recognises(self, head: bytes, path: Path) -> bool:  # noqa: ARG002  (the protocol's)
        """Whether a file is a RIFF container of WebP."""
        return head[:4] == b"RIFF" and head[8:12] == b"WEBP"

    def frames(self, path: Path, axis: str) -> tuple[ImageRef, ...]:
        """The frames of an animation."""
        _check_canvas(path)
        return super().frames(path, axis)

    def read(self, image: ImageRef, *, mask: bool) -> Stored:
        """One image, by Pillow."""
        _check_canvas(image.path)
        return super().read(image, mask=mask)


class BMPReader(PillowReader):
    """BMP, whose two letters a text may begin with as well."""

    def recognises(self, head: bytes, path: Path) -> bool:
        """Whether a file begins as a BMP does, with the length of a header that exists."""
        return super().recognises(head, path) and int.from_bytes(head[14:18], "little") in _BMP_HEADERS


def _check_canvas(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(30)
    if len(head) == 30:
        check_size(path, *_webp_canvas(head))


def _webp_canvas(head: bytes) -> tuple[int, int]:
    """Width and height from the first chunk of a WebP file (RFC 9649, sections 2.5 to 2.7)."""
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        sizes = int.from_bytes(head[21:25], "little")
        return (sizes & 0x3FFF) + 1, (sizes >> 14 & 0x3FFF) + 1
    return int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF


JPEG = PillowReader(
    "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), (b"\xff\xd8\xff",), "JpegImagePlugin.JpegImageFile"
)  # further pictures of a phone's multi-picture JPEG are previews and gain maps, not frames
BMP = BMPReader("BMP", (".bmp", ".dib"), (b"BM",), "BmpImagePlugin.BmpImageFile")
GIF = PillowReader("GIF", (".gif",), (b"GIF87a", b"GIF89a"), "GifImagePlugin.GifImageFile")
WEBP = WebPReader("WebP", (".webp",), (b"RIFF",), "WebPImagePlugin.WebPImageFile")


def seek_frame(picture: Picture, image: ImageRef) -> None:
    """Goes to the frame that is named.

    Raises:
        DataError: It is not there, or none is named of several, or all frames up to it are too much to decode.
    """
    frame = check_frame(image, getattr(picture, "n_frames", 1))
    if frame:
        if (frame + 1) * picture.width * picture.height > _MAX_ANIMATION:
            raise DataError(f"{image}: too many large frames come before it; save the frame as a file of its own")
        from PIL.Image import DecompressionBombError

        try:
            picture.seek(frame)
        except DecompressionBombError as error:
            raise ValueError(str(error)) from error
        check_size(image.path, *picture.size)


def orientation_of(picture: Picture) -> int:
    """The orientation that EXIF states, 1 to 8; upright where EXIF is missing or damaged, for the pixels are whole."""
    from PIL.ExifTags import Base

    try:
        return int(picture.getexif().get(Base.Orientation, 1))
    except UNREADABLE:
        return 1


def stored_picture(picture: Picture, *, mask: bool, bits: int = 8) -> Stored:
    """What a picture of Pillow holds, of any mode; its EXIF orientation is applied, its colour profile is not.

    Args:
        picture: Opened, at the frame that is meant.
        mask: Whether indices of a palette are labels rather than colours.
        bits: Depth of grey values in the file; Pillow spreads those of less than 8 bits over 0 to 255.
    """
    picture.load()
    orientation = orientation_of(picture)
    mode = picture.mode
    if mode in _VALUES or mode.startswith("I;16"):
        values = np.asarray(picture)
        return Stored(upright(values, orientation), full_range(values.dtype), depth_name(values.dtype))
    opaque = not mask or _opaque(picture)
    if mask and mode in ("P", "PA"):
        indices = np.asarray(picture if mode == "P" else picture.getchannel("P"))
        return Stored(upright(indices, orientation), (0.0, 255.0), "8-bit", labels=True, opaque=opaque)
    if mode in ("1", "L", "LA"):
        values = np.asarray(picture.convert("L") if mode != "L" else picture)
        bits = 1 if mode == "1" else bits
        if bits < 8:
            values = values // (255 // (2**bits - 1))
    else:
        values, bits = np.asarray(_rgb(picture)), 8
    return Stored(upright(values, orientation), (0.0, 2.0**bits - 1), f"{bits}-bit", opaque=opaque)


def _rgb(picture: Picture) -> Picture:
    """Colours as RGB, alpha dropped: the colours below it are kept."""
    if picture.mode == "RGB":
        return picture
    if picture.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        exact = ImageCms.Flags.NOOPTIMIZE  # its table for 8 bits is wrong by up to 28 of 255
        converted = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB", flags=exact)
        assert converted is not None  # noqa: S101  (it is None only when it is done in place)
        return converted
    if picture.mode in ("La", "RGBa"):
        picture = picture.convert("LA" if picture.mode == "La" else "RGBA")
    # A colour that is marked as transparent stays what it is.
    picture.info.pop("transparency", None)
    return picture.convert("RGB")


def _opaque(picture: Picture) -> bool:
    """Whether there is no alpha channel, or one value of it throughout."""
    if picture.mode not in ("LA", "La", "PA", "RGBA", "RGBa"):
        return True
    low, high = picture.getchannel(picture.getbands()[-1]).getextrema()
    return bool(low == high)
