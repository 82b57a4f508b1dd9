#!/usr/bin/env bash
# miseval 1.3.0 with hausdorff 0.2.6: a lesion that was looked for 40 pixels too low has a Hausdorff distance of 0, as if it had been found.
#
# A good guess: "HD" of a library for the evaluation of medical segmentations, published as such, is the largest distance from
# a pixel of one mask to the nearest of the other. Seen: it hands the two images to a function that wants lists of points, so that each row
# of the image counts as one point in as many dimensions as the image is wide. Two masks that hold the same rows in another
# place are equal then: moved down by 4 or by 40 pixels, HD is 0. Moved aside by 4 or by 40 it is 2.83 both times, the root of the
# lesion's width, which passes for a good distance in pixels. What it calls "AHD", the average Hausdorff distance, is
# the true maximum (40), and no average. Its list of metrics has both without a word on this, and a volume as HD raises that arrays must
# have two dimensions. Take "AHD" for the maximum, or scipy's `directed_hausdorff` of `argwhere(mask)`, both ways.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check \
    miseval==1.3.0 hausdorff==0.2.6 numba==0.68.1 dictances==1.5.3 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1 scikit-image==0.26.0
"$folder/venv/bin/python" -W ignore <<'PYTHON'
import miseval
import numpy as np
from scipy.spatial.distance import directed_hausdorff


def square(top, left):
    mask = np.zeros((64, 64), np.uint8)
    mask[top : top + 8, left : left + 8] = 1
    return mask


truth = square(8, 8)
for down, aside in ((0, 0), (4, 0), (40, 0), (0, 4), (0, 40), (40, 40)):
    found = square(8 + down, 8 + aside)
    ours, theirs = np.argwhere(truth), np.argwhere(found)
    true = max(directed_hausdorff(ours, theirs)[0], directed_hausdorff(theirs, ours)[0])
    overlap, plain, average = (float(miseval.evaluate(truth, found, metric=metric)) for metric in ("DSC", "HD", "AHD"))
    print(f"{down} pixels down, {aside} aside: Dice {overlap:.2f}, HD {plain:.2f}, AHD {average:.2f}, true maximum {true:.2f}")
    assert np.isclose(true, np.hypot(down, aside)) and np.isclose(average, true)
    assert np.isclose(plain, np.sqrt(8) if aside else 0)
PYTHON
echo "as stated"
