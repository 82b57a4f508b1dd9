#!/usr/bin/env bash
# torchmetrics 1.9.0: the AUROC of one set of anomaly scores is .92, .81 or .77, by the size of the batches that they came in.
#
# Scores outside [0, 1] are taken for logits and go through a sigmoid, says the documentation. A good guess: that is harmless for an
# AUROC, which any rising function leaves alone. Seen: it is decided batch by batch. Distances to normal features of 0.1 to 1.4 are
# left alone in a batch where all are below 1, and squeezed in one where a single score is above 1, so that a 0.9 of the first
# outranks a 1.3 of the second: the AUROC falls as the batches get smaller, and the loader's order changes it. Large scores are worse: in
# float32 the sigmoid of all above 17 is 1, so Mahalanobis distances of 20 to 40 are all tied, and their AUROC is .5 in any batch.
# scikit-learn gives .92 for both. AUPR and the curves share this. Map the scores into [0, 1] before, all by one rule.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check \
    torch==2.13.0 torchmetrics==1.9.0 numpy==2.4.6 scikit-learn==1.9.1
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import torch
import torchmetrics
from sklearn.metrics import roc_auc_score
from torchmetrics.classification import BinaryAUROC

draw = np.random.default_rng(0)
abnormal = np.repeat([0, 1], 200)
order = draw.permutation(400)
near = np.r_[draw.normal(0.7, 0.15, 200), draw.normal(1.0, 0.15, 200)].astype(np.float32)
far = np.r_[draw.normal(27, 3, 200), draw.normal(33, 3, 200)].astype(np.float32)


def auroc(scores, size):
    metric = BinaryAUROC()
    for some in np.split(order, 400 // size):
        metric.update(torch.from_numpy(scores[some]), torch.from_numpy(abnormal[some]))
    return float(metric.compute())


found = {}
for name, scores in (("near", near), ("far", far)):
    true = roc_auc_score(abnormal, scores)
    found[name] = [auroc(scores, size) for size in (400, 4, 1)]
    print(f"torchmetrics {torchmetrics.__version__}: scores {scores.min():.2f} to {scores.max():.2f}: scikit-learn {true:.3f}, "
          f"in batches of 400, 4 and 1: {[round(one, 3) for one in found[name]]}")
    assert true > 0.9
assert np.isclose(found["near"][0], roc_auc_score(abnormal, near), atol=1e-3)
assert found["near"][0] - 0.04 > found["near"][1] > found["near"][2] + 0.04
assert max(found["far"]) < 0.51
PYTHON
echo "as stated"
