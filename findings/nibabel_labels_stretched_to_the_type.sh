#!/usr/bin/env bash
# nibabel 5.4.2: whole numbers that fit the type on disk are stretched over it all the same, and labels come back as no whole numbers.
#
# A good guess: labels 0, 1, 2, 3 computed as floats and saved after `set_data_dtype(np.uint8)` are written as 0, 1, 2, 3 with a
# slope of 1, since nothing needs scaling. Seen: the file holds 0, 85, 170, 255 and a slope of 0.0117647; read back they are
# 1.00000002, 2.00000004 and 3.00000006, so that `labels == 2` finds nothing, and a reader that takes the stored values for labels
# finds 85. A mask of 0.0 and 1.0 becomes 0 and 255, and its ones come back as 1.00000006: `mask == 1` is empty too. Cast the
# array itself: then nothing is scaled.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nibabel==5.4.2 numpy==2.4.6
"$folder/venv/bin/python" -W error - "$folder/labels.nii.gz" <<'PYTHON'
import sys

import nibabel
import numpy as np

labels = np.array([0.0, 1.0, 2.0, 3.0]).reshape(4, 1, 1)


def kept(values):
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.set_data_dtype(np.uint8)
    nibabel.save(image, sys.argv[1])
    back = nibabel.load(sys.argv[1])
    return back.dataobj.get_unscaled().ravel().tolist(), back.get_fdata().ravel()


stored, read = kept(labels)
print(f"nibabel {nibabel.__version__}: stored {stored}, read back {read.tolist()}, equal to 2: {(read == 2).sum()}")
assert stored == [0, 85, 170, 255]
assert (read == 2).sum() == 0 and np.allclose(read, labels.ravel(), atol=1e-6)
stored, read = kept((labels > 1).astype(np.float64))
print(f"a mask: stored {stored}, read back {read.tolist()}, equal to 1: {(read == 1).sum()}")
assert stored == [0, 0, 255, 255] and (read == 1).sum() == 0
stored, read = kept(labels.astype(np.uint8))
print(f"cast before: stored {stored}, read back {read.tolist()}")
assert stored == [0, 1, 2, 3] and read.tolist() == stored
PYTHON
echo "as stated"
