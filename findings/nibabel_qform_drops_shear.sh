#!/usr/bin/env bash
# nibabel 5.4.2: a NIfTI's qform cannot hold a sheared affine, such as that of a CT with a tilted gantry, and says nothing.
#
# A good guess: `set_qform(affine, code=1)` either keeps the matrix that it is given, or raises, since a quaternion holds no
# shear. Seen: it keeps the nearest rotation, without a word, and a voxel 40 slices away lies 21 mm from where it was put. The
# sform of the same image keeps the matrix exactly, so that two readers of one file, one that prefers the qform and one that
# prefers the sform, show the heat map in two places.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nibabel==5.4.2 numpy==2.4.6
"$folder/venv/bin/python" -W error - <<'PYTHON'
import nibabel
import numpy as np

tilt = np.deg2rad(20)
affine = np.diag([0.5, 0.5, 3.0, 1.0])
affine[1, 2] = 3.0 * np.sin(tilt)  # the table moves 3 mm, the gantry is tilted by 20 degrees
affine[2, 2] = 3.0 * np.cos(tilt)
affine[2, 1] = 0.0
affine[1, 1] = 0.5
image = nibabel.Nifti1Image(np.zeros((4, 4, 41), np.float32), None)
image.set_sform(affine, code=1)
image.set_qform(affine, code=1)  # no warning: they are errors here

voxel = np.array([0, 0, 40, 1.0])
wanted, by_sform, by_qform = affine @ voxel, image.get_sform() @ voxel, image.get_qform() @ voxel
apart = float(np.linalg.norm(by_qform - wanted))
print(f"nibabel {nibabel.__version__}: sform off by {np.linalg.norm(by_sform - wanted):.4f} mm, qform by {apart:.1f} mm")
assert np.allclose(by_sform, wanted, atol=1e-3)
assert 5 < apart < 60, "the shear is kept now, or refused"
PYTHON
echo "as stated"
