#!/usr/bin/env bash
# MONAI 1.6.1: `ScaleIntensity(minv=-1, maxv=1)` turns a slice of air at -1024 HU into one of +1024.
#
# A good guess: what comes out of a scaling to [-1, 1] lies in [-1, 1], and a slice of one value, as the first and last of a CT often
# are, becomes -1, or 0. Seen: such a slice is multiplied by minv, so -1024 becomes +1024, a thousand times beyond the range, and
# a black slice of 0 becomes 0, which is mid-grey where all other slices have their black at -1. No warning. With the usual
# [0, 1] it is 0 and right, so nothing is noticed until a model asks for [-1, 1]. `channel_wise` does it to a channel of
# one value. `ScaleIntensityRange` with numbers of your own has no such case.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check torch==2.13.0 monai==1.6.1 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import warnings

import monai
import numpy as np
from monai.transforms import ScaleIntensity

air = np.full((1, 8, 8), -1024, np.float32)
body = air.copy()
body[0, 2:6, 2:6] = 40
two = np.concatenate([body, air])
with warnings.catch_warnings():
    warnings.simplefilter("error")
    seen = {}
    for low in (0, -1):
        scale, by_channel = ScaleIntensity(low, 1), ScaleIntensity(low, 1, channel_wise=True)
        seen[low] = [np.unique(np.asarray(made)).tolist() for made in (scale(body), scale(air), scale(0 * air), by_channel(two)[1])]
        print(f"MONAI {monai.__version__}, [{low}, 1]: a body {seen[low][0]}, air at -1024 HU {seen[low][1]}, a black slice {seen[low][2]}, "
              f"a channel of air {seen[low][3]}")
assert seen[0] == [[0.0, 1.0], [0.0], [0.0], [0.0]]
assert seen[-1] == [[-1.0, 1.0], [1024.0], [0.0], [1024.0]]
PYTHON
echo "as stated"
