#!/usr/bin/env bash
# SimpleITK 2.5.7: a MONOCHROME1 file comes back inverted, while its tag goes on saying MONOCHROME1. pydicom 3.0.2 gives it as stored.
#
# A good guess: both libraries give the stored values, and whoever draws the picture inverts it because the tag says so. Seen:
# stored 0, 4095, 100 of 12 bits are 4095, 0, 3995 in SimpleITK, and GetMetaData("0028|0004") of the same image still is
# MONOCHROME1. Code that inverts where the tag says so is right with pydicom and shows the negative with SimpleITK; a detector that
# was fitted through one of them and asked through the other sees every such radiograph upside down in grey. Nothing warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check SimpleITK==2.5.7 pydicom==3.0.2 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/image.dcm" <<'PYTHON'
import sys

import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

path = sys.argv[1]
stored = np.array([[0, 4095, 100, 2000]] * 4, np.uint16)


def read(photometric):
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    file.StudyInstanceUID, file.SeriesInstanceUID = generate_uid(), generate_uid()
    file.PatientID, file.Modality = "1", "OT"
    file.Rows, file.Columns = stored.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, photometric
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PixelData = stored.tobytes()
    file.save_as(path, enforce_file_format=True)
    image = sitk.ReadImage(path)
    tag = image.GetMetaData("0028|0004").strip()
    return pydicom.dcmread(path).pixel_array[0].tolist(), sitk.GetArrayFromImage(image).squeeze()[0].tolist(), tag


found = {name: read(name) for name in ("MONOCHROME2", "MONOCHROME1")}
for name, (by_pydicom, by_sitk, tag) in found.items():
    print(f"{name}: pydicom {pydicom.__version__} {by_pydicom}, SimpleITK {sitk.Version.VersionString()} {by_sitk}, tag {tag}")
assert found["MONOCHROME2"] == ([0, 4095, 100, 2000], [0, 4095, 100, 2000], "MONOCHROME2")
assert found["MONOCHROME1"] == ([0, 4095, 100, 2000], [4095, 0, 3995, 2095], "MONOCHROME1")
PYTHON
echo "as stated"
