#!/usr/bin/env bash
# dcmjs 0.52.2: a Rescale Slope of 7.8e-7 is written as 7.8, so that an ADC map comes back ten million times too large.
#
# A decimal string of DICOM holds 16 characters, and JavaScript prints numbers below 1e-6 with up to 23, the exponent last. A good
# guess: `denaturalizeDataset`, by which viewers and converters in JavaScript write their objects, rounds such a number to the digits that fit, as it
# is known to do for long ones since an issue of 2021. Seen: it keeps the first 16 characters, whatever they are. A third loses
# a digit nobody misses; 7.814407814407814e-7, the slope of an ADC map in mm2/s of 12 bits, loses its exponent and is 7.81440781440781. The file is
# valid, no reader can know, and the console only says "Truncating value". Short numbers keep theirs (7.5e-7). pydicom 3.0.2 writes
# 7.8144078144e-07 for `DS(value, auto_format=True)`. Hand over `Number(value.toPrecision(9))`, and read back what was written.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" dcmjs@0.52.2
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pydicom==3.0.2
cd "$folder"
cat > write.mjs <<'NODE'
import fs from "node:fs"
import dcmjs from "dcmjs"

const { DicomDict, DicomMetaDictionary } = dcmjs.data
const slopes = { adc: 3.2e-3 / 4095, short: 7.5e-7, rounded: Number((3.2e-3 / 4095).toPrecision(9)), third: 1 / 3 }
for (const [name, slope] of Object.entries(slopes)) {
  const file = new DicomDict({ "00020010": { vr: "UI", Value: ["1.2.840.10008.1.2.1"] } })
  file.dict = DicomMetaDictionary.denaturalizeDataset({
    SOPClassUID: "1.2.840.10008.5.1.4.1.1.4", SOPInstanceUID: "1.2.3.4", Modality: "MR", RescaleSlope: slope, RescaleIntercept: 0,
  })
  fs.writeFileSync(`${name}.dcm`, Buffer.from(file.write()))
}
fs.writeFileSync("slopes.json", JSON.stringify(slopes))
NODE
node write.mjs
"$folder/venv/bin/python" <<'PYTHON'
import json
import math

from pydicom import dcmread
from pydicom.valuerep import DS

slopes = json.load(open("slopes.json"))
factors = {}
for name, slope in slopes.items():
    written = dcmread(f"{name}.dcm").RescaleSlope
    factors[name] = float(written) / slope
    print(f"{name}: {slope!r} was written as {written.original_string!r}; pydicom writes {str(DS(slope, auto_format=True))!r}")
    assert math.isclose(float(str(DS(slope, auto_format=True))), slope, rel_tol=1e-9)
assert math.isclose(factors.pop("adc"), 1e7, rel_tol=1e-9)
assert all(math.isclose(factor, 1, rel_tol=1e-8) for factor in factors.values())
PYTHON
echo "as stated"
