#!/usr/bin/env bash
# SimpleITK 2.5.7: a PET series whose first slice is empty loses its decimals, and its bright voxels wrap around.
#
# PET slices have a Rescale Slope each, and one with nothing in it may have 1. A good guess: a series is read into floats as
# soon as one of its slices needs them; each file, read alone, does give 64-bit floats. Seen: `ImageSeriesReader` takes the type
# of the first file for all. With a slope of 1 that is 16-bit unsigned, so a voxel of 5.9997 becomes 5, and the hottest one of 110000
# Bq/ml, which no 16 bits hold, comes back as something else (44464 here), with no warning. The same slices from the other
# end, where the empty one is last, are right. Set the reader's `SetOutputPixelType(sitkFloat32)`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check SimpleITK==2.5.7 pydicom==3.0.2 numpy==2.4.6
"$folder/venv/bin/python" -W error - "$folder" <<'PYTHON'
import sys

import numpy as np
import SimpleITK as sitk
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid

study, series, frame = generate_uid(), generate_uid(), generate_uid()


def write(height, stored, slope):
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = PositronEmissionTomographyImageStorage, generate_uid()
    file = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = study, series, frame
    file.Modality, file.PatientID, file.Units = "PT", "1", "BQML"
    file.ImagePositionPatient, file.ImageOrientationPatient = [0, 0, height], [1, 0, 0, 0, 1, 0]
    file.PixelSpacing, file.SliceThickness = [4, 4], 3
    file.Rows = file.Columns = 4
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
    file.RescaleSlope, file.RescaleIntercept = slope, 0
    file.PixelData = np.full((4, 4), stored, np.uint16).tobytes()
    path = f"{sys.argv[1]}/{height}.dcm"
    file.save_as(path, enforce_file_format=True)
    return path


paths = [write(0, 0, 1), write(3, 20000, 5.5), write(6, 19999, 0.0003)]
meant = [0.0, 110000.0, 5.9997]


def read(paths, **options):
    image = sitk.ReadImage(paths, **options)
    return image.GetPixelIDTypeAsString(), sitk.GetArrayFromImage(image).reshape(len(paths), -1)[:, 0].tolist()


for path in paths:
    print("alone:", *read([path]))
first, last, asked = read(paths), read(paths[::-1]), read(paths, outputPixelType=sitk.sitkFloat32)
print(f"SimpleITK {sitk.Version.VersionString()}: {meant} with the empty slice first:", *first, "; last:", *last, "; asked for floats:", *asked)
assert first[0] == "16-bit unsigned integer" and first[1][0] == 0 and first[1][1] != 110000 and first[1][2] == 5
assert last[0] == "64-bit float" and np.allclose(last[1][::-1], meant)
assert np.allclose(asked[1], meant)
PYTHON
echo "as stated"
