#!/usr/bin/env bash
# imgad 0.6.0: the fixed window that its documentation recommends makes a MONOCHROME1 radiograph black.
#
# A good guess: the rule `window:0,4095`, which is recommended for a 12-bit detector since it is the same for every image, shows
# a MONOCHROME1 radiograph (low values are bright) inverted, and everything else as it is. Seen: the values are negated before the
# window is applied, and only the window that comes from the file is negated with them. All values are at or below 0 then, which is
# the lower end of the window: the image is black, every pixel of it. The rules that look at the image itself (the default, minmax,
# percentiles) are right, so nothing is noticed until the recommended one is taken. An archive has both kinds in one study.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6 pillow==13.0.0 pydicom==3.0.2 tqdm==4.70.1 pyyaml==6.0.4 \
    joblib==1.6.0 scipy==1.17.1 scikit-learn==1.9.1
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps imgad==0.6.0
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
from imgad.imageio import read_image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

ramp = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)  # all values of 12 bits


def write(photometric: str, values: np.ndarray) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    path = Path(sys.argv[1], f"{photometric}.dcm")
    file = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Rows, file.Columns = values.shape
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 12, 11
    file.PixelRepresentation, file.SamplesPerPixel, file.PhotometricInterpretation = 0, 1, photometric
    file.PixelData = values.tobytes()
    file.save_as(path, enforce_file_format=True)
    return path


# The same picture, stored in either way.
plain, inverted = write("MONOCHROME2", ramp), write("MONOCHROME1", 4095 - ramp)
for rule in ("auto", "minmax", "window:0,4095"):
    shown = [np.asarray(read_image(path, rule))[..., 0] for path in (plain, inverted)]
    print(f"{rule}: MONOCHROME2 {shown[0].min()} to {shown[0].max()}, MONOCHROME1 {shown[1].min()} to {shown[1].max()}")
    if rule == "window:0,4095":
        assert (shown[0].min(), shown[0].max()) == (0, 255)
        assert not shown[1].any()
    else:
        assert np.abs(shown[0].astype(int) - shown[1]).max() <= 1
PYTHON
echo "as stated"
