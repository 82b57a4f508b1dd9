"""Whole slides that tests write: small pyramids in TIFF and in DICOM."""

import numpy as np
import pydicom
import tifffile
from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid

MPP = 0.5
"""Microns per pixel of the finest level."""


def halved(values, times):
    part = 2**times
    rows, columns = (side // part for side in values.shape[:2])
    return (
        values[: rows * part, : columns * part].reshape(rows, part, columns, part, 3).mean((1, 3)).round().astype("u1")
    )


def write_tiff(path, values, levels=3, mpp=MPP, **options):
    """A pyramid as pages of a TIFF, which OpenSlide reads too, with its resolution in tags."""
    options = {"compression": "deflate", "photometric": "rgb", "tile": (256, 256)} | options
    with tifffile.TiffWriter(path) as out:
        for number in range(levels):
            known = {"resolution": (1e4 / mpp / 2**number,) * 2, "resolutionunit": 3} if mpp else {}
            out.write(halved(values, number), subfiletype=int(number > 0), metadata=None, **known, **options)
    return path


def write_dicom(folder, values, levels=2, mpp=MPP, side=256):
    """A slide as DICOM has it: an instance for each level, its tiles as frames."""
    folder.mkdir()
    series, study, frame = (generate_uid() for _ in range(3))
    for number in range(levels):
        level = halved(values, number)
        height, width = level.shape[:2]
        padded = np.pad(level, ((0, -height % side), (0, -width % side), (0, 0)), constant_values=255)
        rows, columns = padded.shape[0] // side, padded.shape[1] // side
        tiles = padded.reshape(rows, side, columns, side, 3).swapaxes(1, 2)
        made = pydicom.Dataset()
        made.file_meta = pydicom.dataset.FileMetaDataset()
        made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made.SOPClassUID, made.SOPInstanceUID = VLWholeSlideMicroscopyImageStorage, generate_uid()
        made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = study, series, frame
        made.Modality, made.PatientName, made.PatientID, made.ContainerIdentifier = "SM", "Test^Only", "test", "slide"
        made.ImageType = ["DERIVED" if number else "ORIGINAL", "PRIMARY", "VOLUME", "RESAMPLED" if number else "NONE"]
        made.Rows = made.Columns = side
        made.TotalPixelMatrixRows, made.TotalPixelMatrixColumns = height, width
        made.ImagedVolumeWidth, made.ImagedVolumeHeight = (s * mpp * 2**number / 1000 for s in (width, height))
        made.ImagedVolumeDepth, made.NumberOfFrames, made.TotalPixelMatrixFocalPlanes = 0.001, rows * columns, 1
        made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 8, 8, 7, 0
        made.DimensionOrganizationType, made.FocusMethod, made.ExtendedDepthOfField = "TILED_FULL", "AUTO", "NO"
        made.ImageOrientationSlide = [0, -1, 0, -1, 0, 0]
        origin, path = pydicom.Dataset(), pydicom.Dataset()
        origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = 20, 40
        path.OpticalPathIdentifier = "0"
        made.TotalPixelMatrixOriginSequence, made.OpticalPathSequence = [origin], [path]
        measures, shared = pydicom.Dataset(), pydicom.Dataset()
        measures.PixelSpacing, measures.SliceThickness = [mpp * 2**number / 1000] * 2, 0.001
        measures.SpacingBetweenSlices = 0.001
        shared.PixelMeasuresSequence = [measures]
        made.SharedFunctionalGroupsSequence = [shared]
        made.PixelData = tiles.tobytes()
        made["PixelData"].VR = "OB"
        made.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder
