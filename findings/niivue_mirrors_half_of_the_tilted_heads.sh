#!/usr/bin/env bash
# NiiVue 0.69.0 with nifti-reader-js 0.8.0: a head turned by 5 degrees is shown with left and right exchanged, one turned by 6 is not.
#
# A NIfTI may state where it lies by its qform alone (sform_code 0): a quaternion of which three numbers are stored and the fourth is
# what is missing to length 1. A good guess: a viewer puts each voxel where nibabel puts it, whatever the angle. Seen: for a
# radiological volume (first axis to the left, the usual one) that is turned in its plane the fourth number is 0, and the length of the three,
# rounded to float32, is just above 1 for about half of all angles. nifti-reader-js takes the root of that negative number for
# `header.affine`, which is NaN then (its own `getQformMat()` is right), and NiiVue puts the voxel sizes on the diagonal in its place: not
# turned, and no longer flipped. A lesion on the right is on the left, and only a line for debugging says so. The NaN is known upstream,
# as a matter of badly written quaternions; these are as good as float32 can be. Write an sform too: `set_sform(affine, 1)`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check nibabel==5.4.2 numpy==2.4.6
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" @niivue/niivue@0.69.0 nifti-reader-js@0.8.0
cd "$folder"
"$folder/venv/bin/python" <<'PYTHON'
import nibabel
import numpy as np

lesion = [4, 16, 8]
for degrees in range(-12, 13):
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    affine = np.eye(4)
    affine[:3, :3] = [[-cosine, -sine, 0], [-sine, cosine, 0], [0, 0, 2]]
    affine[:3, 3] = -affine[:3, :3] @ [15.5, 15.5, 7.5]  # the middle of the volume is the origin
    values = np.full((32, 32, 16), 50, np.uint8)
    values[2:7, 14:19, 6:11] = 200
    image = nibabel.Nifti1Image(values, None)
    image.set_sform(None, 0)
    image.set_qform(affine, 1)
    image.to_filename(f"{degrees}.nii")
    place = (nibabel.load(f"{degrees}.nii").affine @ [*lesion, 1])[:3]
    assert np.allclose(place, affine[:3] @ [*lesion, 1], atol=1e-3)
    assert place[0] > 8  # on the right
PYTHON
cat > ask.mjs <<'NODE'
import assert from "node:assert/strict"
import fs from "node:fs"
import { NVImage } from "@niivue/niivue"
import { readHeader } from "nifti-reader-js"

console.warn = () => {} // "voxels not aligned with world space", which is said of those that are right
const said = { right: [], mirrored: [] }
for (let degrees = -12; degrees <= 12; degrees++) {
  const bytes = fs.readFileSync(`${degrees}.nii`)
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)
  const header = readHeader(buffer)
  const broken = header.affine.flat().some(Number.isNaN)
  assert(!header.getQformMat().flat().some(Number.isNaN))
  const image = await NVImage.new(buffer, `${degrees}.nii`)
  const values = [27, 4].map((x) => image.getValue(x, 16, 8)) // of the voxels from left to right, 4 and 27 lie opposite
  assert.deepEqual(values, broken ? [50, 200] : [200, 50])
  said[broken ? "mirrored" : "right"].push(degrees)
}
console.log("right at degrees:", said.right.join(" "), "; mirrored at:", said.mirrored.join(" "))
assert(said.mirrored.includes(5) && said.right.includes(6))
assert(said.mirrored.length > 8 && said.right.length > 8)
NODE
node ask.mjs
echo "as stated"
