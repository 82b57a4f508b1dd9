#!/usr/bin/env bash
# pydicom 3.0.2, SimpleITK 2.5.7, highdicom 0.28.2: one Enhanced MR of three frames has three different sets of values.
#
# An enhanced multi-frame file keeps Rescale Slope and Intercept in its functional groups, for each frame. A good guess:
# `apply_rescale(pixel_array, file)`, which turns a plain CT into Hounsfield units, does so here, or raises, and a reader of volumes takes
# each frame's own slope. Seen: pydicom gives the stored values back without a word, for it looks at the top of the file only (an
# Enhanced CT stays 1024 too high, and a window then shows it white); SimpleITK applies the slope of the first frame to all;
# highdicom alone gives the values that the file states. A detector that is fitted through one and asked through another sees
# another patient. For pydicom read PixelValueTransformationSequence frame by frame, or use `highdicom.imread(...).get_frames()`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    pydicom==3.0.2 SimpleITK==2.5.7 highdicom==0.28.2 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - "$folder/enhanced.dcm" <<'PYTHON'
import sys

import highdicom
import numpy as np
import pydicom
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import apply_rescale
from pydicom.uid import EnhancedCTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid


def item(**elements):
    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def read(kind, modality, unit, slopes, intercepts):
    """A volume of 1000, 1010 and 1020 in three readers: the first voxel of each frame."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, kind
    meta.MediaStorageSOPInstanceUID, organization = generate_uid(), generate_uid()
    file = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = generate_uid(), generate_uid(), generate_uid()
    file.Modality, file.InstanceNumber = modality, 1
    file.PatientID = file.PatientName = file.PatientBirthDate = file.PatientSex = file.StudyDate = file.StudyTime = ""
    file.StudyID = file.AccessionNumber = file.ReferringPhysicianName = ""
    file.Rows = file.Columns = 4
    file.NumberOfFrames, file.SamplesPerPixel, file.PhotometricInterpretation = 3, 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
    file.DimensionOrganizationSequence = [item(DimensionOrganizationUID=organization)]
    file.DimensionIndexSequence = [
        item(DimensionOrganizationUID=organization, DimensionIndexPointer=0x00209057, FunctionalGroupPointer=0x00209111)
    ]
    file.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelMeasuresSequence=[item(PixelSpacing=[1, 1], SliceThickness=3)],
        )
    ]
    file.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 3 * number])],
            FrameContentSequence=[item(DimensionIndexValues=[number + 1], StackID="1", InStackPositionNumber=number + 1)],
            PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType=unit)],
        )
        for number, (slope, intercept) in enumerate(zip(slopes, intercepts, strict=True))
    ]
    file.PixelData = np.repeat(np.array([1000, 1010, 1020], np.uint16), 16).tobytes()
    file.save_as(sys.argv[1], enforce_file_format=True)
    back = pydicom.dcmread(sys.argv[1])
    return {
        "pydicom": apply_rescale(back.pixel_array, back)[:, 0, 0].tolist(),
        "SimpleITK": sitk.GetArrayFromImage(sitk.ReadImage(sys.argv[1]))[:, 0, 0].tolist(),
        "highdicom": highdicom.imread(sys.argv[1]).get_frames()[:, 0, 0].tolist(),
    }


mr = read(EnhancedMRImageStorage, "MR", "US", [2, 1, 0.5], [0, 0, -3])
ct = read(EnhancedCTImageStorage, "CT", "HU", [1, 1, 1], [-1024, -1024, -1024])
print("MR of slopes 2, 1, 0.5:", mr)
print("CT of intercept -1024:", ct)
assert mr == {"pydicom": [1000, 1010, 1020], "SimpleITK": [2000, 2020, 2040], "highdicom": [2000, 1010, 507]}
assert ct == {"pydicom": [1000, 1010, 1020], "SimpleITK": [-24, -14, -4], "highdicom": [-24, -14, -4]}
PYTHON
echo "as stated"
