#!/usr/bin/env bash
# rt-utils 1.2.7, dcmrtstruct2nii 5: an RTSTRUCT that comes back exact from its writer loses four fifths of a thin lesion elsewhere.
#
# A good guess: rt-utils writes a mask and reads it back pixel by pixel, so the contours in the file say where the mask was, and any
# reader finds it. Seen: its contours run through the centres of the outermost pixels instead of round them, and only its own way of
# filling, which counts the border as inside, makes up for it. A line of ten pixels is a closed contour of two points that
# encloses nothing, and dcmrtstruct2nii finds two pixels of it; a ring of 300 pixels comes back as 260, since the border of a hole
# counts as hole; a square of ten encloses 81 pixels' area instead of 100, so a volume that is computed from the contours is a fifth
# too small, while its pixels come back as 100. Masks that must survive exactly belong in a DICOM SEG; masks from an RTSTRUCT depend on the reader.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check rt-utils==1.2.7 dcmrtstruct2nii==5 \
    pydicom==2.4.5 numpy==2.4.6 SimpleITK==2.5.7 scikit-image==0.26.0 opencv-python==5.0.0.93
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import contextlib
import io
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK
from dcmrtstruct2nii import dcmrtstruct2nii
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from rt_utils import RTStructBuilder

SIZE, SLICES = 64, 3


def write_series(folder: Path) -> None:
    """An even CT of 1 mm pixels and 3 mm slices."""
    folder.mkdir()
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    for number in range(SLICES):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = FileDataset(str(folder / f"{number}.dcm"), {}, file_meta=meta, preamble=bytes(128))
        slice_.is_little_endian, slice_.is_implicit_VR = True, False
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.Modality, slice_.PatientName, slice_.PatientID, slice_.InstanceNumber = "CT", "", "", number + 1
        for empty in (
            "StudyDate StudyTime StudyID StudyDescription SeriesDescription AccessionNumber Manufacturer "
            "ReferringPhysicianName PatientBirthDate PatientSex PatientAge PatientSize PatientWeight"
        ).split():
            setattr(slice_, empty, None)
        slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, 3 * number], [1, 0, 0, 0, 1, 0]
        slice_.PixelSpacing, slice_.SliceThickness = [1, 1], 3
        slice_.Rows = slice_.Columns = SIZE
        slice_.BitsAllocated = slice_.BitsStored = 16
        slice_.HighBit, slice_.PixelRepresentation, slice_.SamplesPerPixel = 15, 1, 1
        slice_.PhotometricInterpretation, slice_.RescaleSlope, slice_.RescaleIntercept = "MONOCHROME2", 1, 0
        slice_.PixelData = bytes(2 * SIZE * SIZE)
        slice_.save_as(folder / f"{number}.dcm")


def mask(*boxes: tuple[slice, slice, bool]) -> np.ndarray:
    drawn = np.zeros((SIZE, SIZE, SLICES), bool)
    for rows, columns, value in boxes:
        drawn[rows, columns, 1] = value
    return drawn


def area(contour: pydicom.Dataset) -> float:
    """What a contour encloses, by the shoelace formula."""
    x, y, _ = np.array(contour.ContourData, float).reshape(-1, 3).T
    return abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2


square = slice(20, 30), slice(20, 30), True
masks = {
    "line": mask((slice(20, 21), slice(20, 30), True)),
    "ring": mask((slice(20, 40), slice(20, 40), True), (slice(25, 35), slice(25, 35), False)),
    "square": mask(square),
}
with contextlib.redirect_stdout(io.StringIO()):
    write_series(Path("ct"))
    builder = RTStructBuilder.create_new("ct")
    for name, drawn in masks.items():
        builder.add_roi(mask=drawn, name=name)
    builder.save("rt.dcm")
    own = RTStructBuilder.create_from("ct", "rt.dcm")
    Path("nifti").mkdir()
    dcmrtstruct2nii("rt.dcm", "ct", "nifti")

file = pydicom.dcmread("rt.dcm")
seen = {}
for name, contours in zip(masks, file.ROIContourSequence, strict=True):
    back = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(f"nifti/mask_{name}.nii.gz")) > 0
    outer = contours.ContourSequence[0]
    seen[name] = (int(masks[name].sum()), int(own.get_roi_mask_by_name(name).sum()), int(back.sum()), area(outer))
    print(f"{name}: {seen[name][0]} pixels drawn, rt-utils finds {seen[name][1]}, dcmrtstruct2nii {seen[name][2]}; "
          f"the outer contour has {outer.NumberOfContourPoints} points, {outer.ContourGeometricType}, and encloses {seen[name][3]:g}")
assert seen == {"line": (10, 10, 2, 0.0), "ring": (300, 300, 260, 361.0), "square": (100, 100, 100, 81.0)}, seen
PYTHON
echo "as stated"
