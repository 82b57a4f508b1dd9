#!/usr/bin/env bash
# confidenceinterval 1.0.5: a detector that never raises an alarm has a recall of .91 [.86, .96], and so are its precision and its F1.
#
# The package promises scikit-learn's naming and interface. A good guess: `recall_score(truth, called)` of zeros and ones is the share of
# abnormal images that were found, with an interval round it. Seen: where scikit-learn's default is average="binary" this one's is
# "micro", which counts normal images that were called normal as found too, so that recall, precision and F1 are one number with
# one interval: the accuracy. With 10 abnormal images of 110 a detector that calls all normal has a recall of .909 instead of 0, one
# that finds all ten at the price of ten false alarms the same .909 (instead of 1), and the intervals say that the two cannot be told apart.
# The docstring names the default; nothing warns. average="binary" alone, as in the README, raises for recall and precision, since their
# default method is for "micro". Take `tpr_score` and `ppv_score`, which are right, and average="binary" for `f1_score`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check confidenceinterval==1.0.5 numpy==2.4.6 scipy==1.17.1 scikit-learn==1.9.1
"$folder/venv/bin/python" -W error <<'PYTHON'
import confidenceinterval
import numpy as np
import sklearn.metrics

truth = np.repeat([0, 1], [100, 10])
silent = np.zeros(110, int)
alarmed = np.r_[np.zeros(90, int), np.ones(20, int)]
for name, called in (("never an alarm", silent), ("all ten and ten false alarms", alarmed)):
    accuracy = np.mean(truth == called)
    for metric in ("recall_score", "precision_score", "f1_score"):
        value, (low, high) = getattr(confidenceinterval, metric)(truth, called)
        binary = getattr(sklearn.metrics, metric)(truth, called, zero_division=0)
        print(f"{name}: {metric} {value:.3f} [{low:.3f}, {high:.3f}], of scikit-learn {binary:.3f}")
        assert np.isclose(value, accuracy) and abs(binary - value) > 0.08
    assert np.isclose(confidenceinterval.tpr_score(truth, called)[0], sklearn.metrics.recall_score(truth, called), atol=1e-6)
low, high = confidenceinterval.recall_score(truth, silent)[1]
assert low > 0.85 and confidenceinterval.recall_score(truth, alarmed)[1] == (low, high)
assert np.isclose(confidenceinterval.f1_score(truth, alarmed, average="binary")[0], 2 / 3)
try:
    confidenceinterval.recall_score(truth, alarmed, average="binary")
except AssertionError as error:
    print('average="binary":', error)
else:
    raise SystemExit("recall_score takes average='binary'")
PYTHON
echo "as stated"
