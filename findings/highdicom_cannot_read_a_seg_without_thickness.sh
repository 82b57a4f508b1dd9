#!/usr/bin/env bash
# highdicom 0.28.2: a SEG of CT slices whose Slice Thickness is empty is written, but highdicom itself cannot give its frames back.
#
# Slice Thickness is of type 2 in CT and MR images: it must be there and may be empty, as anonymisers and some scanners leave it. A good
# guess: a SEG that `Segmentation(...)` builds and saves can be read by `segread` and `get_pixels_by_source_instance`. Seen: the SEG is
# written with a Pixel Measures Sequence without that attribute, and reading its pixels raises AttributeError ("does not have the
# required attributes"). With a thickness the same steps give the mask back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check highdicom==0.28.2 pydicom==3.0.2 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - "$folder/seg.dcm" <<'PYTHON'
import sys

import highdicom
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sr.coding import Code
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

study, series, frame = generate_uid(), generate_uid(), generate_uid()


def ct(height, thickness):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    one.SOPClassUID, one.SOPInstanceUID, one.Modality = CTImageStorage, meta.MediaStorageSOPInstanceUID, "CT"
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
    for name in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"):
        setattr(one, name, "")
    one.AccessionNumber = one.ReferringPhysicianName = ""
    one.Rows = one.Columns = 8
    one.PixelSpacing, one.SliceThickness = [1, 1], thickness
    one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, height], [1, 0, 0, 0, 1, 0]
    return one


def round_trip(thickness):
    sources = [ct(3.0 * number, thickness) for number in range(3)]
    mask = np.zeros((3, 8, 8), np.uint8)
    mask[1, 2:5, 2:5] = 1
    described = highdicom.seg.SegmentDescription(
        1, "lesion", Code("49755003", "SCT", "Morphologically Abnormal Structure"), Code("52988006", "SCT", "Lesion"), "MANUAL"
    )
    made = highdicom.seg.Segmentation(
        sources, mask, "BINARY", [described], generate_uid(), 1, generate_uid(), 1, "m", "m", "1", "1", omit_empty_frames=False
    )
    made.save_as(sys.argv[1])
    read = highdicom.seg.segread(sys.argv[1])
    found = read.get_pixels_by_source_instance([one.SOPInstanceUID for one in sources], combine_segments=True)
    return (found == mask).all()


print(f"highdicom {highdicom.__version__}: with a thickness the mask comes back:", round_trip(3.0))
try:
    round_trip(None)
except AttributeError as error:
    print("without:", error)
else:
    raise SystemExit("it is read now")
PYTHON
echo "as stated"
