"""JPEG lossless and 12-bit JPEG for pydicom, by imagecodecs: its other decoder for them is under the GPL.

pydicom finds a decoder's plug-in by three names in a module: `DECODER_DEPENDENCIES`, `is_available` and the function.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

EXTENDED, LOSSLESS, LOSSLESS_SV1 = (f"1.2.840.10008.1.2.4.{number}" for number in (51, 57, 70))
DECODER_DEPENDENCIES = {EXTENDED: ("imagecodecs",), LOSSLESS: ("imagecodecs",), LOSSLESS_SV1: ("imagecodecs",)}
"""What pydicom says is missing where a syntax cannot be decoded."""
LABEL = "imagecodecs"


def register() -> None:
    """Makes these decoders known to pydicom, once."""
    from pydicom.pixels.decoders.base import get_decoder

    for syntax in DECODER_DEPENDENCIES:
        decoder = get_decoder(syntax)
        if LABEL not in decoder.available_plugins:
            decoder.add_plugin(LABEL, (__name__, "decode_frame"))


def is_available(uid: str) -> bool:
    """Whether frames of a transfer syntax are decoded here."""
    return uid in DECODER_DEPENDENCIES


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """The samples of one frame, row by row, colours as they are stored."""
    import imagecodecs

    colours: dict[str, Any] = {"colorspace": "RGB", "outcolorspace": "RGB"} if runner.samples_per_pixel > 1 else {}
    values = imagecodecs.jpeg8_decode(src, **colours)
    runner.set_option("bits_allocated", 8 * values.dtype.itemsize)
    runner.set_option("planar_configuration", 0)
    return bytes(values.tobytes())
