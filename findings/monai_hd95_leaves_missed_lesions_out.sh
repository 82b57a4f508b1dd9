#!/usr/bin/env bash
# MONAI 1.6.1: in a mean of 95 % Hausdorff distances the missed lesions do not count, in a mean of Hausdorff distances they are infinite.
#
# A good guess: a percentile of 95 in place of the maximum makes the distance robust, and changes nothing where there is no
# distance: nothing was found, so it is infinite, and so is the mean. Seen: `HausdorffDistanceMetric(percentile=95)` gives nan for such an
# image (it interpolates between infinities), and `aggregate` leaves nan out. A detector that finds one lesion of ten has a mean of
# 0.0 mm, the best there is, and one that finds all ten a pixel off is worse. percentile=100, which is the maximum, does it too. MONAI
# warns of "nan/inf distance" for each image, which reads as if the two were one. Ask for `get_not_nans=True`: it tells how many counted.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check \
    torch==2.13.0 monai==1.6.1 numpy==2.4.6 scipy==1.17.1
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import monai
import torch
from monai.metrics import HausdorffDistanceMetric

nothing, lesion, beside = torch.zeros(3, 1, 1, 32, 32)
lesion[..., 10:16, 10:16] = 1
beside[..., 11:17, 10:16] = 1


def mean(percentile, found):
    metric = HausdorffDistanceMetric(include_background=True, percentile=percentile, get_not_nans=True)
    for one in found:
        metric(one, lesion)
    distance, counted = metric.aggregate()
    return distance.item(), int(counted)


one_of_ten, all_beside = [lesion] + 9 * [nothing], 10 * [beside]
for percentile in (None, 100, 95):
    lazy, careful = mean(percentile, one_of_ten), mean(percentile, all_beside)
    print(f"MONAI {monai.__version__}, percentile {percentile}: one of ten found {lazy[0]} ({lazy[1]} counted), "
          f"ten found a pixel off {careful[0]} ({careful[1]} counted)")
    assert careful == (1.0, 10)
    assert lazy == ((float("inf"), 10) if percentile is None else (0.0, 1))
PYTHON
echo "as stated"
