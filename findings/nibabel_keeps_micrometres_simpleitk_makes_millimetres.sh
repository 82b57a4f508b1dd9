#!/usr/bin/env bash
# nibabel 5.4.2, SimpleITK 2.5.6: one NIfTI whose header says micrometres is a thousand times larger for the one than for the other.
#
# A good guess: a matrix from voxels to the world is in millimetres, whoever reads it, since NIfTI names its unit and both libraries
# speak of millimetres. Seen: a volume of 500 x 500 x 2000 micrometres a voxel has an affine with 500, 500, 2000 on its diagonal in
# nibabel, which never looks at `xyzt_units` there, and a spacing of 0.5, 0.5, 2.0 in SimpleITK, which converts. A label map drawn
# in a viewer that is built on ITK and a heat map computed with nibabel lie a thousand times apart, and volumes in mm3 differ by 1e9.
# The same for metres, the other way round. Look at `header.get_xyzt_units()` and scale the affine.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nibabel==5.4.2 numpy==2.4.6 SimpleITK==2.5.6
"$folder/venv/bin/python" -W error - "$folder/scan.nii.gz" <<'PYTHON'
import sys

import nibabel
import numpy as np
import SimpleITK

for unit, scale in (("mm", 1.0), ("micron", 1e-3), ("meter", 1e3)):
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.uint8), np.diag([500.0, 500.0, 2000.0, 1.0]))
    image.header.set_xyzt_units(unit)
    nibabel.save(image, sys.argv[1])
    back = nibabel.load(sys.argv[1])
    ours, theirs = back.affine.diagonal()[:3], SimpleITK.ReadImage(sys.argv[1]).GetSpacing()
    print(f"{unit}: nibabel {ours.tolist()}, SimpleITK {list(theirs)}")
    assert back.header.get_xyzt_units()[0] == unit
    assert ours.tolist() == [500.0, 500.0, 2000.0]
    assert np.allclose(theirs, ours * scale)
PYTHON
echo "as stated"
