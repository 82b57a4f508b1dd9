#!/usr/bin/env bash
# dcmjs 0.52.2: a PET series that is normalised to one multi-frame object has no pixels left, and one slope for all of its slices.
#
# `Normalizer.normalizeToDataset(datasets)` makes an enhanced object of a series, from data sets as `naturalizeDataset` gives them. A
# good guess: the frames hold what the slices held, with each slice's Rescale Slope in its own functional group, as the standard
# wants for PET, where every slice has another one. Seen: all pixels are 0. The reader gives PixelData as a list of one buffer, the
# normaliser makes an array of numbers of that list (one NaN, hence 0) and leaves the rest of each frame empty, without an error.
# With `PixelData = PixelData[0]` in each data set the pixels are there, but the slope of whichever data set came first is shared by
# all frames, so that 10000 Bq/ml in each slice become 10000, 20000, 5000 and 2000, and other values once the list is reversed. Segmentations
# that only borrow the geometry are spared. Take the values from the slices, each by its own slope.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pydicom==3.0.2 numpy==2.4.6
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" dcmjs@0.52.2
cd "$folder"
mkdir slices
"$folder/venv/bin/python" <<'PYTHON'
import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid

study, series, frame = generate_uid(), generate_uid(), generate_uid()
for number, slope in enumerate([1, 0.5, 2, 5]):
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID, file.SOPInstanceUID = PositronEmissionTomographyImageStorage, generate_uid()
    file.StudyInstanceUID, file.SeriesInstanceUID, file.FrameOfReferenceUID = study, series, frame
    file.Modality, file.PatientID, file.Units, file.InstanceNumber = "PT", "1", "BQML", number + 1
    file.ImagePositionPatient, file.ImageOrientationPatient = [0, 0, 3 * number], [1, 0, 0, 0, 1, 0]
    file.PixelSpacing, file.SliceThickness = [4, 4], 3
    file.Rows = file.Columns = 8
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 16, 15, 0
    file.RescaleSlope, file.RescaleIntercept = slope, 0
    file.PixelData = np.full((8, 8), int(10000 / slope), np.uint16).tobytes()
    file.save_as(f"slices/{number}.dcm", enforce_file_format=True)
PYTHON
cat > normalize.mjs <<'NODE'
import fs from "node:fs"
import dcmjs from "dcmjs"

const { DicomMessage, DicomMetaDictionary, datasetToDict } = dcmjs.data
function read(number) {
  const bytes = fs.readFileSync(`slices/${number}.dcm`)
  const file = DicomMessage.readFile(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length))
  const dataset = DicomMetaDictionary.naturalizeDataset(file.dict)
  dataset._meta = DicomMetaDictionary.namifyDataset(file.meta)
  return dataset
}
function write(name, datasets) {
  const whole = dcmjs.normalizers.Normalizer.normalizeToDataset(datasets)
  fs.writeFileSync(`${name}.dcm`, Buffer.from(datasetToDict(whole).write()))
}
const unpacked = (dataset) => Object.assign(dataset, { PixelData: dataset.PixelData[0] })
write("as read", [0, 1, 2, 3].map(read))
write("unpacked", [0, 1, 2, 3].map(read).map(unpacked))
write("unpacked, reversed", [3, 2, 1, 0].map(read).map(unpacked))
NODE
node normalize.mjs > log 2>&1 || { cat log; exit 1; }
"$folder/venv/bin/python" <<'PYTHON'
from pydicom import dcmread

found = {}
for name in ("as read", "unpacked", "unpacked, reversed"):
    whole = dcmread(f"{name}.dcm")
    shared = whole.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
    groups = whole.PerFrameFunctionalGroupsSequence
    assert whole.NumberOfFrames == 4 and not any("PixelValueTransformationSequence" in group for group in groups)
    heights = [float(group.PlanePositionSequence[0].ImagePositionPatient[2]) for group in groups]
    values = whole.pixel_array[:, 4, 4] * float(shared.RescaleSlope)
    found[name] = [value for _, value in sorted(zip(heights, values.tolist()))]
    assert sorted(heights) == [0, 3, 6, 9]
    print(f"{name}: 10000 Bq/ml in each of four slices became {found[name]}")
    if name == "as read":
        assert not whole.pixel_array.any()
assert open("log").read() == ""  # not a word from dcmjs
assert found["unpacked"] == [10000, 20000, 5000, 2000]
assert found["unpacked, reversed"] == [50000, 100000, 25000, 10000]
PYTHON
echo "as stated"
