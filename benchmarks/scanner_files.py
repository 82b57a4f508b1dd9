"""What reading scanner files costs beside the libraries, in pairs. Run: python benchmarks/scanner_files.py."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import pydicom
from pydicom.data import get_testdata_file
from pydicom.pixels.processing import apply_rescale, apply_windowing

from madclip.data import read_image
from madclip.memory import kept_memory

if TYPE_CHECKING:
    from collections.abc import Callable


def slice_of_ct(folder: Path) -> Path:
    """A CT slice of 512 x 512 pixels with a window, made of a small real one."""
    made = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    made.PixelData = np.kron(made.pixel_array, np.ones((4, 4), np.int16)).tobytes()
    made.Rows = made.Columns = 512
    made.WindowCenter, made.WindowWidth = 40, 400
    path = folder / "slice.dcm"
    made.save_as(path, enforce_file_format=True)
    return path


def by_pydicom(path: Path) -> np.ndarray:
    """Pixels as stored: what pydicom alone takes."""
    return pydicom.dcmread(path).pixel_array


def by_pydicom_windowed(path: Path) -> np.ndarray:
    """Pixels in the file's window, by pydicom's own functions."""
    dataset = pydicom.dcmread(path)
    return apply_windowing(apply_rescale(dataset.pixel_array, dataset), dataset)


def seconds(work: Callable[[Path], object], path: Path, times: int) -> float:
    """Processor seconds of one call."""
    start = time.process_time()
    for _ in range(times):
        path.touch()  # the reader remembers the last file, unless it has changed
        work(path)
    return (time.process_time() - start) / times


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, kept_memory():
        path = slice_of_ct(Path(folder))
        for name, other in (("dcmread + pixel_array", by_pydicom), ("with its window by pydicom", by_pydicom_windowed)):
            pairs = [
                (seconds(read_image, path, options.times), seconds(other, path, options.times))
                for _ in range(options.pairs)
            ]
            ours, theirs = (1e3 * median(side) for side in zip(*pairs, strict=True))
            ratio = median(one / two for one, two in pairs)
            print(f"{name}: {theirs:.2f} ms; read_image {ours:.2f} ms, {ratio:.2f} x")


if __name__ == "__main__":
    main()
