"""From a folder or a manifest to a data set, and from a labelled image to its pixels and mask."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from madclip.data.layouts import read_folders
from madclip.data.manifests import MANIFESTS, read_manifest
from madclip.data.readers import Image, read_image, read_mask
from madclip.data.samples import KINDS, Dataset, Reading, Sample
from madclip.data.volumes import with_volumes
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Collection

    import numpy as np
    import numpy.typing as npt

AUTO = Reading()


def load_dataset(
    root: Path | str, reading: Reading = AUTO, *, unmatched: bool = False, needed: Collection[str] = KINDS
) -> Dataset:
    """Finds the labelled images of a folder or a manifest; reads no pixels.

    Layouts, told apart by their folders (names in any case, images at any depth below a class folder):

    - `bmad`: `valid/` and `test/` (and `train/`), in each `good/` and `Ungood/`, images in `img/` or directly, masks in
      `anomaly_mask/` or `label/` beside `img/` or beside the class folders.
    - `folders`: `normal/`, `abnormal/`, `masks/`, with or without split folders around them; instead of the classes,
      two folders such as `benign/` and `malignant/`, `no/` and `yes/`, `0/` and `1/`, or those that `reading` names.
    - `anomalib`: `train/good`, `test/good`, `test/<defect>`, `ground_truth/<defect>`.
    - `manifest`: a `.csv` or `.jsonl` file, or a folder with `manifest.csv` or `manifest.jsonl`. Columns `image` (or
      `path`, `filename`, ...), `label`, and optionally `mask`, `patient`, `split`, `frame`, `axis`, `mask_frame`;
      paths relative to the manifest.

    A volume (NIfTI, or a file of several frames) stands for its slices: all are normal in a normal class; with a label
    map, those that it marks are abnormal and others normal, but for the next to them. The map decides.

    A mask belongs to the image of the same name, whatever the suffixes; `<name>_mask` is understood too. Hidden files
    and those of tools are passed over, links are followed, and what belongs to no image is in `Dataset.unused`.

    Args:
        root: The folder or the manifest.
        reading: How patients are known and which folders are normal and abnormal, where names do not say it.
        unmatched: Go on without the masks of folders in which nothing matches.
        needed: The classes that must have images.

    Raises:
        DataError: There is no such folder, it is empty or has no known layout, a needed class has no image, nothing in
            a mask folder matches, or a row of a manifest cannot be used (file and row are named).
    """
    dataset = scan_dataset(root, reading)
    for label, found in (("normal", dataset.normal), ("abnormal", dataset.abnormal)):
        if not found and label in needed:
            count, kinds = len(dataset.samples), "both kinds" if len(needed) > 1 else "these"
            raise DataError(f"{root}: no {label} images among {count} (layout {dataset.layout}); {kinds} are needed")
    if dataset.unmatched and not unmatched:
        first = dataset.unmatched[0]
        raise DataError(
            f"{first}: no mask in it has the name of an image; name masks as their images are named, or NAME_mask, "
            "and put masks beside split folders into a folder of the split"
        )
    return dataset


def scan_dataset(root: Path | str, reading: Reading = AUTO) -> Dataset:
    """`load_dataset` that accepts a data set with a single class or with masks that do not match, for checks."""
    return with_volumes(_as_listed(Path(root), reading), reading)


def _as_listed(root: Path, reading: Reading) -> Dataset:
    if root.is_file():
        return read_manifest(root, reading)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder or manifest")
    manifests = [root / name for name in MANIFESTS if (root / name).is_file()]
    if len(manifests) > 1:
        raise DataError(f"{root}: both {' and '.join(MANIFESTS)}; name the one to use")
    return read_manifest(manifests[0], reading) if manifests else read_folders(root, reading)


def read_sample(sample: Sample, grey_range: str = "file") -> tuple[Image, npt.NDArray[np.bool_] | None]:
    """Reads an image with its mask: bool [H, W] of the image's size, or None where there is none (or it is normal).

    Raises:
        DataError: Either cannot be read; sizes differ; an abnormal image's mask is empty, or a normal one's is not.
    """
    image = read_image(sample.image, grey_range)
    return image, read_sample_mask(sample, image.size)


def read_sample_mask(sample: Sample, size: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
    """Reads the mask of an image of a known height and width; result and errors as in `read_sample`."""
    if sample.mask is None:
        return None
    mask = read_mask(sample.mask)
    if mask.shape != size:
        (mask_height, mask_width), (height, width) = mask.shape, size
        raise DataError(
            f"{sample.mask}: mask of {mask_width} x {mask_height} pixels "
            f"for an image of {width} x {height} ({sample.image})"
        )
    if sample.label == 0:
        if mask.any():
            raise DataError(
                f"{sample.mask}: marks a lesion in a normal image ({sample.image}); correct the label or the mask"
            )
        return None
    if not mask.any():
        raise DataError(f"{sample.mask}: the mask of an abnormal image is empty; remove the mask or correct the label")
    return mask
