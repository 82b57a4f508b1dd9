#!/usr/bin/env bash
# MLstatkit 0.1.91: DeLong's test calls two detectors that cannot be told apart different, with p = 0.
#
# A good guess: where two sets of scores rank the images alike there is no difference, so p is 1, or not defined. Seen: z = 0 and p = 0.
# The variance of the difference is 0 then, the library turns to a bootstrap, and that counts the resamples above and below
# zero, of which there are none. It is no corner: two detectors that both separate a small test set perfectly, with different scores,
# are "different, p = 0", as are a detector and its calibrated self (any rising function of the scores). One pair of
# images in another order is enough for a p of .31 in the same data. Look at z, or at `info["method"]`, before believing a p of exactly 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check MLstatkit==0.1.91 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from MLstatkit import Delong_test
from sklearn.metrics import roc_auc_score

draw = np.random.default_rng(0)
abnormal = np.repeat([0, 1], 8)
perfect = np.r_[0.4 * draw.random(8), 0.6 + 0.4 * draw.random(8)]
also_perfect = np.r_[0.4 * draw.random(8), 0.6 + 0.4 * draw.random(8)]
usual = np.arange(16) / 16
usual[[7, 8]] = usual[[8, 7]]
swapped = usual.copy()
swapped[[6, 9]] = swapped[[9, 6]]

for name, one, other, equal in (
    ("itself", usual, usual, True),
    ("itself, calibrated", usual, 1 / (1 + np.exp(-8 * (usual - 0.5))), True),
    ("two that are perfect", perfect, also_perfect, True),
    ("one more pair swapped", usual, swapped, False),
):
    z, p, _, _, auc, other_auc, info = Delong_test(abnormal, one, other, random_state=0)
    print(f"{name}: AUROC {auc:.3f} and {other_auc:.3f}, z = {z:.3f}, p = {p:.3f}, by {info['method']}")
    assert np.isclose(auc, roc_auc_score(abnormal, one)) and np.isclose(other_auc, roc_auc_score(abnormal, other))
    assert (z, p) == (0, 0) if equal else p > 0.05
PYTHON
echo "as stated"
