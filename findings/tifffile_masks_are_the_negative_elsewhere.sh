#!/usr/bin/env bash
# tifffile 2026.3.3: a boolean mask of a lesion is read back as everything but the lesion, by Pillow 13.0.0, OpenCV 5.0.0 and SimpleITK 2.5.7.
#
# A good guess: `imwrite(path, mask)` of a boolean array is a 1-bit TIFF where True is white, so that whoever reads it finds the mask, as
# is so for 8 bits, and for the 1-bit TIFF that Pillow or scikit-image writes of the same array. Seen: tifffile writes WhiteIsZero (on its
# page `photometric` has no word on booleans), stores True as 1, which then is black, and ignores that on the way back. Its own round trip
# is right, and imageio, which writes by it, shares it. Pillow (so torchvision, anomalib and whoever opens masks by it)
# and OpenCV heed the tag: six pixels of lesion become 74, the rest of the image, and a pixel-level AUROC of .9 becomes .1. SimpleITK
# gives the same negative in four channels. Say `photometric="minisblack"`, or write `mask.astype(np.uint8) * 255`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check \
    tifffile==2026.3.3 pillow==13.0.0 opencv-python-headless==5.0.0.93 SimpleITK==2.5.7 imageio==2.38.1 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W error <<'PYTHON'
import cv2
import imageio.v3 as imageio
import numpy as np
import SimpleITK as sitk
import tifffile
from PIL import Image

mask = np.zeros((8, 10), bool)
mask[2:4, 3:6] = True
readers = {
    "tifffile": tifffile.imread,
    "Pillow": lambda path: np.asarray(Image.open(path)),
    "OpenCV": lambda path: cv2.imread(path, cv2.IMREAD_UNCHANGED),
    "SimpleITK": lambda path: sitk.GetArrayFromImage(sitk.ReadImage(path)),
}
writers = {
    "tifffile": lambda path: tifffile.imwrite(path, mask),
    "imageio": lambda path: imageio.imwrite(path, mask),
    "tifffile, minisblack": lambda path: tifffile.imwrite(path, mask, photometric="minisblack"),
    "Pillow": lambda path: Image.fromarray(mask).save(path),
    "tifffile, 8 bits": lambda path: tifffile.imwrite(path, mask.astype(np.uint8) * 255),
}
for writer, write in writers.items():
    write("mask.tif")
    found = {reader: np.asarray(read("mask.tif")) for reader, read in readers.items()}
    if found["SimpleITK"].ndim == 3:  # red, green, blue and an alpha of 255
        assert found["SimpleITK"].shape == (8, 10, 4)
        found["SimpleITK"] = found["SimpleITK"][..., 0]
    negative = [reader for reader, one in found.items() if np.array_equal(one > 0, ~mask)]
    assert all(np.array_equal(one > 0, mask) for reader, one in found.items() if reader not in negative)
    print(f"written by {writer}:", ", ".join(f"{reader} {np.count_nonzero(one)}" for reader, one in found.items()), "pixels of 80")
    assert negative == (["Pillow", "OpenCV", "SimpleITK"] if writer in ("tifffile", "imageio") else [])
PYTHON
echo "as stated"
