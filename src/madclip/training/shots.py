"""Labelled images, from files or arrays, as the backbone will see them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from madclip.data.arrays import ImageLike, read_pixels, read_region
from madclip.data.geometry import fit_mask, fit_pixels
from madclip.data.load import load_dataset, read_sample
from madclip.data.ref import ImageRef
from madclip.data.samples import Dataset, Reading, Sample
from madclip.data.shots import draw_shots
from madclip.data.unseen import LostLesions, lost_lesions
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from madclip.recipe import View

NORMAL_ONLY = ("normal",)
"""What a data set must have to be learned from."""

Chosen: TypeAlias = "Sequence[Sample] | Sequence[tuple[ImageLike, int, ImageLike | None]]"
"""What is learned from: samples, or images with labels and masks."""


@dataclass(frozen=True)
class Shot:
    """A training image as the backbone will see it.

    Attributes:
        pixels: [3, S, S] in 0..1.
        label: 0 normal, 1 abnormal.
        mask: [S, S] bool, or None where an abnormal image has none.
        digest: The image's identity: SHA-256 of the file's bytes and the frame (or of the array's), hexadecimal.
        group: What it shares with images that are not independent of it, its patient or its volume; None where that
            is not known.
        note: What is odd about the file's grey values, in one sentence.
        lost: Lesions of which nothing is left in the resized mask.
    """

    pixels: torch.Tensor
    label: int
    mask: torch.Tensor | None
    digest: str
    group: str | None = None
    note: str = ""
    lost: LostLesions | None = None


def draw_samples(data: Dataset, shots: int | tuple[int, int] | None, seed: int) -> tuple[Sample, ...]:
    """The samples of a data set that a method learns from: a seeded draw of its shot pool, or with None all of it.

    Where no abnormal image is there to draw from, as many normal ones are drawn alone.
    """
    pool = data.shot_pool
    if isinstance(shots, int) and not any(sample.label for sample in pool):
        shots = (shots, 0)
    return tuple(pool) if shots is None else draw_shots(pool, shots, seed)


def labelled_images(
    data: str | Path | Dataset | Sequence[Sample] | Sequence[ImageLike],
    labels: Sequence[int] | None,
    masks: Sequence[ImageLike | None] | None,
    axis: str = "axial",
) -> Dataset | Chosen:
    """What `fit` was given, told apart: a data set to draw from, samples, or images with labels and masks.

    Volumes in a folder or manifest are cut into slices along `axis`.

    Raises:
        DataError: Labels are missing, superfluous, or not as many as images.
    """
    labelled = isinstance(data, (str, Path, Dataset)) or any(isinstance(item, Sample) for item in data)
    if labelled and not (labels is None and masks is None):
        raise DataError("labels and masks go with images given directly; a data set brings its own")
    if isinstance(data, (str, Path)):
        return load_dataset(data, Reading(axis=axis), needed=NORMAL_ONLY)
    if isinstance(data, Dataset):
        return data
    if labels is None:
        samples = [item for item in data if isinstance(item, Sample)]
        if len(samples) != len(data):
            raise DataError("images given directly need labels: fit(images, labels), 0 normal and 1 abnormal")
        return samples
    labels = np.asarray(labels).tolist()
    masks = [None] * len(labels) if masks is None else masks
    if not len(data) == len(labels) == len(masks):
        raise DataError(f"{len(data)} images, {len(labels)} labels, {len(masks)} masks: as many of each are needed")
    if not set(labels) <= {0, 1}:
        raise DataError(f"labels are 0 (normal) or 1 (abnormal), not {sorted(set(labels) - {0, 1})}")
    images = [item for item in data if not isinstance(item, Sample)]
    return [(image, int(label), mask) for image, label, mask in zip(images, labels, masks, strict=True)]


def read_shots(chosen: Chosen, view: View) -> list[Shot]:
    """Samples, or images with labels and masks, as the backbone will see them.

    Raises:
        DataError: One cannot be read, or there is no normal image.
    """
    shots = [read_shot(one, view) if isinstance(one, Sample) else labelled_shot(*one, view) for one in chosen]
    counts = [sum(shot.label == c for shot in shots) for c in (0, 1)]
    if not counts[0]:
        raise DataError(f"fitting needs normal images, with or without abnormal ones: there are 0 and {counts[1]}")
    return shots


def read_shot(sample: Sample, view: View) -> Shot:
    """A labelled file and its mask as the backbone will see them.

    Raises:
        DataError: Either cannot be read, they differ in size, or the mask contradicts the label.
    """
    image, mask = read_sample(sample, view.grey_range)
    return Shot(
        fit_pixels(image.pixels, view),
        sample.label,
        None if mask is None else fit_mask(mask, view),
        sample.image.digest(),
        sample.group,
        image.note or "",
        None if mask is None else lost_lesions(mask, view),
    )


def labelled_shot(image: ImageLike, label: int, mask: ImageLike | None, view: View) -> Shot:
    """An image given directly, file or array, as the backbone will see it; errors as in `read_shot`."""
    if isinstance(image, (str, Path, ImageRef)):
        if not isinstance(mask, (str, Path, ImageRef, type(None))):
            raise DataError(f"{image}: its mask must be a file as well")
        return read_shot(Sample(image, label, mask), view)
    pixels = read_pixels(image, view)
    region, lost = None, None
    if mask is not None:
        whole = read_region(mask)
        if whole.shape != pixels.shape[1:]:
            raise DataError(f"a mask of shape {whole.shape} for an image of {pixels.shape[1:]}: they must agree")
        if whole.any() != (label == 1):
            raise DataError("a mask marks the lesion of an abnormal image: it is empty there, or marks a normal image")
        region, lost = (fit_mask(whole, view), lost_lesions(whole, view)) if label else (None, None)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return Shot(fit_pixels(pixels, view), label, region, digest, lost=lost)
