#!/usr/bin/env bash
# pydicom 3.0.2: `pixel_array(path)` cannot read a deflated file that `dcmread(path).pixel_array` reads.
#
# The documentation offers a path "to minimize memory usage". A good guess: path and data set give the same array for every
# transfer syntax that is supported. Seen: for Deflated Explicit VR Little Endian the path raises AttributeError ("has no 'Pixel
# Data'"), since what follows the file meta information is read without inflating it; the data set gives the pixels.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pydicom==3.0.2 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import pydicom
from pydicom.data import get_testdata_file
from pydicom.pixels import pixel_array

path = get_testdata_file("image_dfl.dcm")
whole = pydicom.dcmread(path)
print(f"pydicom {pydicom.__version__}: {whole.file_meta.TransferSyntaxUID.name}: data set {whole.pixel_array.shape}")
try:
    pixel_array(path)
except AttributeError as error:
    print("path:", error)
else:
    raise SystemExit("the path is read now")
# An uncompressed file is read either way.
other = get_testdata_file("CT_small.dcm")
assert (pixel_array(other) == pydicom.dcmread(other).pixel_array).all()
PYTHON
echo "as stated"
