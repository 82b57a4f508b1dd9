#!/usr/bin/env bash
# Pillow 13.0.0: a 16-bit radiograph that is rotated by a few degrees with BILINEAR or BICUBIC comes back as noise below 256.
#
# Pillow's resize knows 16-bit images in all its filters. A good guess: rotate and transform, by which
# images are augmented, are as right, or raise "wrong mode" as GaussianBlur and autocontrast do. Seen: they raise nothing and
# take each byte for a pixel, so an even image of 4000 (15 and 160 as bytes) turns into everything from 15 to 160, and the right half
# of the picture is never looked at: the left half, stretched over the whole, takes its place. The mode is still I;16 and the size
# right. NEAREST, the default, and turns by 90 or 180 degrees are right, so a test with those shows nothing. torchvision 0.29.1's
# RandomRotation and RandomAffine of such an image have it too. Convert to F before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 numpy==2.4.6
"$folder/venv/bin/python" -W error - <<'PYTHON'
import numpy as np
import PIL
from PIL import Image
from PIL.Image import Resampling

even = Image.fromarray(np.full((64, 64), 4000, np.uint16))
assert even.mode == "I;16"
shift = (1, 0.05, 0, 0.05, 1, 0)


def middle(image):
    assert image.mode in ("I;16", "F") and image.size == (64, 64)
    values = np.asarray(image)[24:40, 24:40]
    return round(float(values.min())), round(float(values.max()))


for how in (Resampling.NEAREST, Resampling.BILINEAR, Resampling.BICUBIC):
    rotated, moved = middle(even.rotate(10, how)), middle(even.transform((64, 64), Image.Transform.AFFINE, shift, how))
    quarter, resized, floats = middle(even.rotate(90, how)), middle(even.resize((64, 64), how)), middle(even.convert("F").rotate(10, how))
    print(f"Pillow {PIL.__version__}, {how.name}: 4000 rotated by 10 degrees is {rotated}, moved by an affine map {moved}, "
          f"by 90 degrees {quarter}, resized {resized}, as floats by 10 degrees {floats}")
    assert quarter == resized == floats == (4000, 4000)
    if how == Resampling.NEAREST:
        assert rotated == moved == (4000, 4000)
    else:
        assert max(*rotated, *moved) < 256 and rotated[0] < rotated[1] and moved[0] < moved[1]

left, right = np.zeros((2, 64, 64), np.uint16)
left[:, :32], right[:, 32:] = 4000, 4000
assert np.asarray(Image.fromarray(left).rotate(10, Resampling.BILINEAR))[24:40, 40:56].any()
assert not np.asarray(Image.fromarray(right).rotate(10, Resampling.BILINEAR))[24:40].any()
PYTHON
echo "as stated"
