#!/usr/bin/env bash
# pydicom 3.0.2: `pixel_array` clears the bits above BitsStored, with the overlay that older scanners kept there.
#
# Until 2004 DICOM let an overlay plane lie in the unused bits of the pixels (Overlay Bit Position 15 beside 12 bits stored). A good
# guess: `pixel_array` gives the stored words, so that the overlay is `pixel_array >> 15`. Seen: those bits are zero, without a
# warning; only `correct_unused_bits=False`, an option of the decoder, leaves them. It also means that a file whose values need more
# bits than its header states comes back wrapped around: 4100 of 12 bits is 4.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pydicom==3.0.2 numpy==2.4.6
"$folder/venv/bin/python" - "$folder/a.dcm" <<'PYTHON'
import sys

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.pixels import pixel_array
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

meta = FileMetaDataset()
meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
meta.TransferSyntaxUID = ExplicitVRLittleEndian
file = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
file.SOPClassUID, file.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = 2, 2, 1, "MONOCHROME2"
file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
file.add_new((0x6000, 0x0010), "US", 2)
file.add_new((0x6000, 0x0011), "US", 2)
file.add_new((0x6000, 0x0100), "US", 16)
file.add_new((0x6000, 0x0102), "US", 15)
stored = np.array([[1, 4095], [2 | 1 << 15, 3]], np.uint16)
file.PixelData = stored.tobytes()
file["PixelData"].VR = "OW"
file.save_as(sys.argv[1], enforce_file_format=True)
found = pydicom.dcmread(sys.argv[1]).pixel_array
kept = pixel_array(sys.argv[1], correct_unused_bits=False)
print(f"pydicom {pydicom.__version__}: stored {stored.ravel()}, pixel_array {found.ravel()}, uncorrected {kept.ravel()}")
assert (found == stored & 0xFFF).all()
assert (found >> 15 == 0).all()
assert (kept == stored).all()
PYTHON
echo "as stated"
