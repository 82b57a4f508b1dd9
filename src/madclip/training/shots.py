"""Labelled images, from files or arrays, as the backbone will see them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from madclip.data.geometry import fit_mask, fit_pixels
from madclip.data.load import load_dataset, read_sample
from madclip.data.readers import MIN_SIDE, read_image, read_mask, to_mask
from madclip.data.ref import ImageRef
from madclip.data.samples import Dataset, Sample
from madclip.data.shots import draw_shots
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from madclip.recipe import View

ImageLike: TypeAlias = "str | Path | ImageRef | npt.NDArray[Any] | torch.Tensor"
"""A file or a frame of one, an array [H, W] or [H, W, 3] (uint8, or floats in 0..1), or a tensor [3, H, W] in 0..1."""

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
    """

    pixels: torch.Tensor
    label: int
    mask: torch.Tensor | None
    digest: str
    group: str | None = None


def draw_samples(data: Dataset, shots: int | tuple[int, int] | None, seed: int) -> tuple[Sample, ...]:
    """The samples of a data set that a method learns from: a seeded draw of its shot pool, or with None all of it."""
    return tuple(data.shot_pool) if shots is None else draw_shots(data.shot_pool, shots, seed)


def labelled_images(
    data: str | Path | Dataset | Sequence[Sample] | Sequence[ImageLike],
    labels: Sequence[int] | None,
    masks: Sequence[ImageLike | None] | None,
) -> Dataset | Chosen:
    """What `fit` was given, told apart: a data set to draw from, samples, or images with labels and masks.

    Raises:
        DataError: Labels are missing, superfluous, or not as many as images.
    """
    labelled = isinstance(data, (str, Path, Dataset)) or any(isinstance(item, Sample) for item in data)
    if labelled and not (labels is None and masks is None):
        raise DataError("labels and masks go with images given directly; a data set brings its own")
    if isinstance(data, (str, Path)):
        return load_dataset(data)
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
        DataError: One cannot be read, or there are images of one class only.
    """
    shots = [read_shot(one, view) if isinstance(one, Sample) else labelled_shot(*one, view) for one in chosen]
    counts = [sum(shot.label == c for shot in shots) for c in (0, 1)]
    if not all(counts):
        raise DataError(f"fitting needs normal and abnormal images: there are {counts[0]} and {counts[1]}")
    return shots


def read_shot(sample: Sample, view: View) -> Shot:
    """A labelled file and its mask as the backbone will see them.

    Raises:
        DataError: Either cannot be read, they differ in size, or the mask contradicts the label.
    """
    image, mask = read_sample(sample)
    return Shot(
        fit_pixels(image.pixels, view),
        sample.label,
        None if mask is None else fit_mask(mask, view),
        sample.image.digest(),
        sample.group,
    )


def labelled_shot(image: ImageLike, label: int, mask: ImageLike | None, view: View) -> Shot:
    """An image given directly, file or array, as the backbone will see it; errors as in `read_shot`."""
    if isinstance(image, (str, Path, ImageRef)):
        if not isinstance(mask, (str, Path, ImageRef, type(None))):
            raise DataError(f"{image}: its mask must be a file as well")
        return read_shot(Sample(image, label, mask), view)
    pixels = read_pixels(image)
    region = None
    if mask is not None:
        whole = read_mask(mask) if isinstance(mask, (str, Path, ImageRef)) else _mask_array(mask)
        if whole.shape != pixels.shape[1:]:
            raise DataError(f"a mask of shape {whole.shape} for an image of {pixels.shape[1:]}: they must agree")
        if whole.any() != (label == 1):
            raise DataError("a mask marks the lesion of an abnormal image: it is empty there, or marks a normal image")
        region = fit_mask(whole, view) if label else None
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return Shot(fit_pixels(pixels, view), label, region, digest)


def read_pixels(image: ImageLike) -> npt.NDArray[np.float32]:
    """An image of any kind as float32 [3, H, W] in 0..1.

    Raises:
        DataError: It is not an image, or its values have no known scale.
    """
    if isinstance(image, (str, Path, ImageRef)):
        return read_image(image).pixels
    if isinstance(image, torch.Tensor):
        pixels, white = image.detach().cpu().float().numpy(), 255 if image.dtype == torch.uint8 else 1
    else:
        values = np.asarray(image)
        if values.dtype.kind not in "buif":
            raise DataError(f"a {type(image).__name__} is not an image: give a file, an array or a tensor")
        colours = np.repeat(values[..., None], 3, -1) if values.ndim == 2 else values
        pixels, white = np.moveaxis(colours, -1, 0).astype(np.float32), 255 if values.dtype == np.uint8 else 1
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise DataError(
            f"an array of shape {np.shape(image)} is not an image: give [H, W] or [H, W, 3], or a tensor [3, H, W]"
        )
    if min(pixels.shape[1:]) < MIN_SIDE:
        raise DataError(f"an image of {pixels.shape[2]} x {pixels.shape[1]} pixels; at least {MIN_SIDE} are needed")
    pixels = pixels / white
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        raise DataError("an image given as an array has values outside 0..1 (or NaN): scale it, or give uint8")
    return np.ascontiguousarray(pixels)


def _mask_array(mask: npt.NDArray[Any] | torch.Tensor) -> npt.NDArray[np.bool_]:
    values = np.asarray(mask)
    return to_mask(values, float(values.max()) if values.size else 1.0, "a mask given as an array")
