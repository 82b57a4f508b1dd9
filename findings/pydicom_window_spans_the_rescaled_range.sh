#!/usr/bin/env bash
# pydicom 3.0.2: what `apply_windowing` returns is scaled to the range of the rescaled values, not to 0..255 or 0..2^bits-1.
#
# A good guess: a CT of 12 bits through its window comes out between 0 and 4095 (or 0 and 255), so that dividing by 4095 gives
# 0..1. Seen: with an intercept of -1024 the result lies between -1024 and 3071, so that this division gives -0.25 to 0.75: black
# is negative, white is not white, and nothing raises. Only without a rescale is the guess right.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pydicom==3.0.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import apply_rescale, apply_windowing


def windowed(intercept):
    file = Dataset()
    file.BitsStored, file.PixelRepresentation, file.PhotometricInterpretation = 12, 0, "MONOCHROME2"
    file.RescaleSlope, file.RescaleIntercept = 1, intercept
    file.WindowCenter, file.WindowWidth = 40 if intercept else 1064, 80
    stored = np.array([0, 1024, 1064, 1104, 4095], np.uint16)
    return apply_windowing(apply_rescale(stored, file), file)


found = {intercept: windowed(intercept) for intercept in (0, -1024)}
for intercept, values in found.items():
    print(f"pydicom {pydicom.__version__}: intercept {intercept}: {values.min():g} to {values.max():g}")
assert (found[0].min(), found[0].max()) == (0, 4095)
assert (found[-1024].min(), found[-1024].max()) == (-1024, 3071)
PYTHON
echo "as stated"
