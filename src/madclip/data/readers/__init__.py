"""From a file to an image or a mask: one file per format, behind the protocol in `protocol.py`."""

from madclip.data.readers.ahead import read_many
from madclip.data.readers.formats import IMAGE_SUFFIXES, READERS, frames_of, holds_image, is_scanner_file
from madclip.data.readers.images import DARK, MIN_SIDE, Image, read_image
from madclip.data.readers.masks import MAX_LABEL, read_mask, to_mask
from madclip.data.readers.protocol import MAX_PIXELS, Reader, Stored

__all__ = [
    "DARK",
    "IMAGE_SUFFIXES",
    "MAX_LABEL",
    "MAX_PIXELS",
    "MIN_SIDE",
    "READERS",
    "Image",
    "Reader",
    "Stored",
    "frames_of",
    "holds_image",
    "is_scanner_file",
    "read_image",
    "read_many",
    "read_mask",
    "to_mask",
]
