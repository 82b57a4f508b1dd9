#!/usr/bin/env bash
# OpenSlide 4.0.1, tiffslide 3.0.1: the same pyramid has three levels for the one and one level for the other.
#
# A good guess: a tiled TIFF whose smaller levels hang below the first page as SubIFDs, which is how OME-TIFF and the writers that follow it
# keep pyramids, is a pyramid for every reader of slides, and the more so for OpenSlide, whose properties name the microns per pixel of that very file.
# Seen: tiffslide finds all three levels; OpenSlide opens the file without a word as a slide of one level, as "generic-tiff".
# Whoever asks it for the overview of such a slide decodes the whole of it, and code that picks "the level nearest 2 microns"
# gets the full one, with another downsample than in training. Levels that are pages of their own, one after
# the other, are found by both. Compare `level_count` with what the scanner was told to write.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    tiffslide==3.0.1 openslide-python==1.4.7 openslide-bin==4.0.1.2 tifffile==2026.3.3 numpy==2.4.6
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import tifffile
from openslide import OpenSlide
from tiffslide import TiffSlide

pixels = np.random.default_rng(0).integers(0, 255, (2048, 3072, 3), np.uint8)
levels = [pixels[:: 4**level, :: 4**level] for level in range(3)]


def write(name: str, *, below: bool) -> Path:
    """The levels as SubIFDs of the first page, or as pages of their own."""
    path = Path(sys.argv[1], name)
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            file.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                metadata=None,
                resolution=(20000 / 4**number,) * 2,
                resolutionunit="CENTIMETER",
                subifds=2 if below and number == 0 else None,
                subfiletype=1 if number else 0,
            )
    return path


for name, below, seen in (("pages.tif", False, 3), ("below.tif", True, 1)):
    path = write(name, below=below)
    with OpenSlide(path) as theirs, TiffSlide(path) as other:
        print(f"{name}: OpenSlide {theirs.level_dimensions}, tiffslide {other.level_dimensions}")
        assert theirs.properties["openslide.mpp-x"] == "0.5" and other.properties["tiffslide.mpp-x"] == 0.5
        assert theirs.properties["openslide.vendor"] == "generic-tiff"
        assert theirs.level_count == seen and other.level_count == 3
        assert theirs.get_best_level_for_downsample(16) == seen - 1
        assert other.get_best_level_for_downsample(16) == 2
        assert np.array_equal(np.asarray(theirs.read_region((0, 0), 0, (64, 64)))[..., :3], pixels[:64, :64])
PYTHON
echo "as stated"
