#!/usr/bin/env bash
# scipy 1.17.1: the distance to a mask with nothing in it is a plausible number of millimetres, not infinity.
#
# Surface distances are computed by `distance_transform_edt(~mask)`: how far each pixel is from the mask. A good guess: where the
# mask is empty, as when a detector found nothing, the distance is infinite, nan, or at least huge (OpenCV and SimpleITK
# give 3.4e38), so that a missed lesion cannot pass for a good result. Seen: scipy measures to a point that is not there, one step
# before the first pixel of the array, without a warning. A lesion near that corner, missed altogether, has a
# Hausdorff distance of 11 mm, less than the 14 mm of a lesion that was found ten pixels off; the same miss in the opposite corner
# costs 169 mm. Ask `mask.any()` first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check scipy==1.17.1 numpy==2.4.6
"$folder/venv/bin/python" -W error - <<'PYTHON'
import numpy as np
import scipy
from scipy.ndimage import distance_transform_edt


def mask(*corner):
    made = np.zeros((128, 128), bool)
    if corner:
        made[corner[0] : corner[0] + 4, corner[1] : corner[1] + 4] = True
    return made


def farthest(lesion, found):
    """From the lesion to what was found, in pixels of 1 mm: one half of the Hausdorff distance, all that is left of it here."""
    return float(distance_transform_edt(~found)[lesion].max())


off = farthest(mask(4, 4), mask(14, 14))
first, last = farthest(mask(4, 4), mask()), farthest(mask(116, 116), mask())
print(f"scipy {scipy.__version__}: found ten pixels off {off:.1f} mm, missed {first:.1f} mm, missed in the other corner {last:.1f} mm")
assert np.isclose(off, 10 * 2**0.5)
assert first < off < last < 181
rows, columns = np.indices((128, 128))
assert np.allclose(distance_transform_edt(~mask()), np.hypot(rows + 1, columns))
volume = distance_transform_edt(np.ones((8, 8, 8), bool), sampling=(5.0, 1.0, 1.0))
assert np.allclose(volume[0, 0], 5.0 * np.hypot(1, np.arange(8) / 5)), "nor in a volume"
PYTHON
echo "as stated"
