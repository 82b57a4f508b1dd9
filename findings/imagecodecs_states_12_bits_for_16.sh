#!/usr/bin/env bash
# imagecodecs 2026.3.6: a lossless JPEG of uint16 states a precision of 12 bits, whatever its values are.
#
# A good guess: `jpeg8_encode(values, lossless=True)` of uint16 states 16 bits, so that every decoder of lossless JPEG gives the values
# back. Seen: the frame header states 12, and the values are coded in full all the same. imagecodecs' own decoder gives them all back, so
# that a round trip shows nothing; libjpeg (pylibjpeg-libjpeg 2.5.0, what pydicom uses for DICOM's JPEG Lossless) believes the header and
# gives 4,095 for most of what is above it. With `bitspersample=16` both give the values back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check imagecodecs==2026.3.6 pylibjpeg-libjpeg==2.5.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import imagecodecs
import libjpeg
import numpy as np

values = (np.arange(4096, dtype=np.uint16) * 15).reshape(64, 64)
for told in (None, 16):
    code = imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=told)
    precision = code[code.index(b"\xff\xc3") + 4]
    own, other = imagecodecs.jpeg8_decode(code), libjpeg.decode(code)
    print(
        f"imagecodecs {imagecodecs.__version__}, bitspersample={told}: states {precision} bits; itself {(own == values).mean():.0%} right, "
        f"libjpeg {(other == values).mean():.0%} right, at most {other.max()}"
    )
    assert precision == (told or 12)
    assert (own == values).all()
    assert (other == values).all() == (told == 16)
PYTHON
echo "as stated"
