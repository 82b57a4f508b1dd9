#!/usr/bin/env bash
# SimpleITK 2.5.7: an Enhanced MR whose frames are stored as they were acquired, every other slice first, has pixels of 1 x 1 x 1 mm.
#
# The order of frames in an enhanced multi-frame file says nothing; their positions do. A good guess: a reader of volumes sorts by them,
# as it does with a series of files, or at worst gives the slices in the order stored with the pixel size that the file states
# for all of them. Seen: neither. With frames in order the spacing is 0.7 x 0.7 x 3 mm; with the same frames interleaved (or two
# of them swapped) they are not sorted and the spacing is 1 x 1 x 1 mm, within the slice too, with no warning. A lesion of 24 voxels
# has 24 mm3 in place of 35, and lies elsewhere; a filter in millimetres blurs by another width. highdicom 0.28.2 gives one volume for both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    SimpleITK==2.5.7 highdicom==0.28.2 pydicom==3.0.2 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - "$folder/enhanced.dcm" <<'PYTHON'
import sys

import highdicom
import numpy as np
import SimpleITK as sitk
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid


def item(**elements):
    made = Dataset()
    for name, value in elements.items():
        setattr(made, name, value)
    return made


def read(order):
    """Six slices, 3 mm apart, of the value of their number, stored in an order."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, EnhancedMRImageStorage
    meta.MediaStorageSOPInstanceUID, organization = generate_uid(), generate_uid()
    file = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    file.SOPClassUID, file.SOPInstanceUID = EnhancedMRImageStorage, meta.MediaStorageSOPInstanceUID
    file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = generate_uid(), generate_uid(), generate_uid()
    file.Modality, file.InstanceNumber = "MR", 1
    file.PatientID = file.PatientName = file.PatientBirthDate = file.PatientSex = file.StudyDate = file.StudyTime = ""
    file.StudyID = file.AccessionNumber = file.ReferringPhysicianName = ""
    file.Rows = file.Columns = 4
    file.NumberOfFrames, file.SamplesPerPixel, file.PhotometricInterpretation = 6, 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
    file.DimensionOrganizationSequence = [item(DimensionOrganizationUID=organization)]
    file.DimensionIndexSequence = [
        item(DimensionOrganizationUID=organization, DimensionIndexPointer=0x00209057, FunctionalGroupPointer=0x00209111)
    ]
    file.SharedFunctionalGroupsSequence = [
        item(
            PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
            PixelMeasuresSequence=[item(PixelSpacing=[0.7, 0.7], SliceThickness=3)],
            PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US")],
        )
    ]
    file.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 3 * number])],
            FrameContentSequence=[item(DimensionIndexValues=[number + 1], StackID="1", InStackPositionNumber=number + 1)],
        )
        for number in order
    ]
    file.PixelData = np.repeat(np.array(order, np.uint16), 16).tobytes()
    file.save_as(sys.argv[1], enforce_file_format=True)
    image, volume = sitk.ReadImage(sys.argv[1]), highdicom.imread(sys.argv[1]).get_volume()
    assert np.allclose(volume.spacing, (3, 0.7, 0.7)) and volume.array[:, 0, 0].tolist() == [5, 4, 3, 2, 1, 0]
    return [round(one, 3) for one in image.GetSpacing()], sitk.GetArrayFromImage(image)[:, 0, 0].tolist()


for order in ([0, 1, 2, 3, 4, 5], [0, 2, 4, 1, 3, 5], [0, 1, 2, 3, 5, 4]):
    spacing, values = read(order)
    print(f"SimpleITK {sitk.Version.VersionString()}: slices stored as {order}: spacing {spacing} mm, values {values}")
    assert values == order
    assert spacing == ([0.7, 0.7, 3.0] if order == sorted(order) else [1.0, 1.0, 1.0])
PYTHON
echo "as stated"
