#!/usr/bin/env bash
# tifffile 2026.3.3: a stack of three or four 8-bit slices is written as one page of colours, one of two or five as two or five pages.
#
# A good guess: `imwrite(path, masks)` of an array [N, height, width] gives N pages, as it does for most N. Seen: with N of 3 or 4
# and 8 bits it takes the first axis for colour planes and writes one RGB page, with a warning that is easily lost; N of 2 and 5 are
# pages of grey. tifffile itself reads the same array back, so that a round trip shows nothing; Pillow, and whoever counts pages,
# finds one image where four were meant, and a reader that pairs masks with slices by their number has nothing to pair. Say
# `photometric="minisblack"`: then there are N pages, always.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tifffile==2026.3.3 numpy==2.4.6 pillow==12.1.0
"$folder/venv/bin/python" -W ignore - "$folder/masks.tif" <<'PYTHON'
import sys

import numpy as np
import tifffile
from PIL import Image

for count in (2, 3, 4, 5):
    masks = (np.arange(count * 144).reshape(count, 12, 12) % 2).astype(np.uint8)
    tifffile.imwrite(sys.argv[1], masks)
    with tifffile.TiffFile(sys.argv[1]) as file:
        pages, kind = len(file.pages), file.pages[0].photometric.name
    with Image.open(sys.argv[1]) as picture:
        frames = picture.n_frames
    print(f"{count} slices: {pages} pages of {kind}, {frames} frames for Pillow")
    assert pages == frames == (1 if count in (3, 4) else count)
    assert kind == ("RGB" if count in (3, 4) else "MINISBLACK")
    assert (tifffile.imread(sys.argv[1]) == masks).all()
    tifffile.imwrite(sys.argv[1], masks, photometric="minisblack")
    with tifffile.TiffFile(sys.argv[1]) as file:
        assert len(file.pages) == count
PYTHON
echo "as stated"
