#!/usr/bin/env bash
# imgad 0.6.0 with pydicom 3.0.2: the colours of an ultrasound image are converted twice, and grey tissue turns green.
#
# A good guess: a library that reads DICOM asks the file for its colour space and converts YBR to RGB where it says YBR. It does, by
# PhotometricInterpretation, which was right for pydicom 2. Since version 3 `pixel_array` has converted YBR_FULL and YBR_FULL_422
# already, while the element goes on saying YBR. Seen: pydicom's own ultrasound example has (110, 110, 108) where imgad gives
# (82, 130, 78), and what is black becomes (0, 135, 0). No error, no warning: a detector then learns from green images, and
# is as sure of itself as before. Convert by `pixel_array` alone, or ask `pixels.pixel_array(..., raw=True)` and convert once.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 pillow==13.0.0 pydicom==3.0.2 tqdm==4.70.1 pyyaml==6.0.4 \
    joblib==1.6.0 scipy==1.17.1 scikit-learn==1.9.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps imgad==0.6.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import shutil
import sys
from pathlib import Path

import numpy as np
from imgad.imageio import read_image
from pydicom import dcmread, examples

path = Path(sys.argv[1], "ultrasound.dcm")
shutil.copyfile(examples.get_path("ybr_color"), path)
file = dcmread(path)
assert file.PhotometricInterpretation == "YBR_FULL_422"
frame = file.pixel_array[0].astype(int)
assert file.PhotometricInterpretation == "YBR_FULL_422"
theirs = np.asarray(read_image(f"{path}::frame=0")).astype(int)

grey = np.ptp(frame, axis=-1) <= 2
assert grey.mean() > 0.5  # an ultrasound image is mostly grey
dark, bright = grey & (frame.max(-1) < 20), grey & (frame.min(-1) > 100)
for name, where in (("dark", dark), ("bright", bright)):
    print(f"{name} tissue: pydicom {frame[where].mean(0).round().tolist()}, imgad {theirs[where].mean(0).round().tolist()}")
    assert np.ptp(frame[where].mean(0)) < 3
    red, green, blue = theirs[where].mean(0)
    assert green > max(red, blue) + 20
PYTHON
echo "as stated"
