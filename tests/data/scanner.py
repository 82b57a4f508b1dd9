"""DICOM files and NIfTI volumes that tests write: small, valid, and of no patient."""

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

STUDY = generate_uid(entropy_srcs=["madclip tests, study"])
FRAME = generate_uid(entropy_srcs=["madclip tests, frame of reference"])
SERIES = generate_uid(entropy_srcs=["madclip tests, series"])


def dicom(values, **header):
    """An image of grey values [H, W], colours [H, W, 3] or frames [N, H, W], in 16 bits where `values` has them."""
    values = np.asarray(values)
    colour = values.ndim == 3 and values.shape[-1] == 3 and "NumberOfFrames" not in header
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID, made.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    made.StudyInstanceUID, made.SeriesInstanceUID = STUDY, SERIES
    made.PatientID, made.PatientName, made.Modality = "test", "Test^Only", "CT"
    made.Rows, made.Columns = values.shape[-3:-1] if colour else values.shape[-2:]
    made.SamplesPerPixel = 3 if colour else 1
    if colour:
        made.PlanarConfiguration = 0
    made.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    made.BitsAllocated = made.BitsStored = 8 * values.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in header.items():
        setattr(made, name, value)
    made.HighBit = made.BitsStored - 1
    made.PixelData = values.tobytes() + b"\0" * (values.nbytes % 2)
    made["PixelData"].VR = "OW" if made.BitsAllocated > 8 else "OB"
    return made


def save(made, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def slices(folder, heights, values=None, *, tilt=0.0, names=None, **header):
    """A series of axial slices at heights in mm, each 10 + its number in value, whose stack leans by `tilt` mm a mm."""
    paths = []
    for number, height in enumerate(heights):
        grey = np.full((12, 16), 10 + number, np.uint16) if values is None else values[number]
        made = dicom(
            grey,
            ImagePositionPatient=[-8.0, -6.0 + tilt * height, height],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            PixelSpacing=[2.0, 1.0],
            InstanceNumber=number + 1,
            FrameOfReferenceUID=FRAME,
            **header,
        )
        name = f"{number:03d}.dcm" if names is None else names[number]
        paths.append(save(made, folder / name))
    return paths


def sequence(**values):
    """A sequence of one item."""
    item = Dataset()
    for name, value in values.items():
        setattr(item, name, value)
    return pydicom.Sequence([item])
