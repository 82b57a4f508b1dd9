#!/usr/bin/env bash
# pydicom 3.0.2, highdicom 0.28.2: a Parametric Map of scores from 0 to 1 with the window 0.5 / 1.0 is shown as white wherever it is not 0.
#
# A good guess: highdicom insists on a VOI transformation, and centre 0.5 with width 1.0 shows 0 as black, 1 as white and 0.07 as
# nearly black. Seen: without a function the window is LINEAR, whose formula takes half off the centre and one off the width
# (it was made for whole numbers), so that a window of width 1 is a step: 0.07 becomes white, as 1 does. highdicom writes it without
# a word, and pydicom applies it as the standard says. `voi_lut_function="LINEAR_EXACT"` means what was meant.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pydicom==3.0.2 highdicom==0.28.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import highdicom
import numpy as np
import pydicom
from pydicom.pixels import apply_windowing

scores = np.array([0.0, 0.07, 0.5, 1.0])


def shown(**options):
    window = highdicom.VOILUTTransformation(window_center=0.5, window_width=1.0, **options)
    image = pydicom.Dataset()
    image.update(window)
    image.PhotometricInterpretation, image.BitsStored, image.PixelRepresentation = "MONOCHROME2", 16, 0
    found = apply_windowing(scores, image)
    return np.round((found - found.min()) / (found.max() - found.min()), 3).tolist()


plain, exact = shown(), shown(voi_lut_function="LINEAR_EXACT")
print(f"scores {scores.tolist()}: by the window alone {plain}, by LINEAR_EXACT {exact}")
assert plain == [0.0, 1.0, 1.0, 1.0]
assert exact == scores.tolist()
PYTHON
echo "as stated"
