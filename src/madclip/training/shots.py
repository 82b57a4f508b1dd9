"""Labelled images, from files or arrays, as the backbone will see them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from madclip.data.geometry import fit_mask, fit_pixels
from madclip.data.readers import MIN_SIDE, read_image, read_mask, to_mask
from madclip.data.ref import ImageRef
from madclip.data.samples import Sample, read_sample
from madclip.errors import DataError

if TYPE_CHECKING:
    import numpy.typing as npt

    from madclip.recipe import View

ImageLike: TypeAlias = "str | Path | ImageRef | npt.NDArray[Any] | torch.Tensor"
"""A file or a frame of one, an array [H, W] or [H, W, 3] (uint8, or floats in 0..1), or a tensor [3, H, W] in 0..1."""


@dataclass(frozen=True)
class Shot:
    """A training image as the backbone will see it.

    Attributes:
        pixels: [3, S, S] in 0..1.
        label: 0 normal, 1 abnormal.
        mask: [S, S] bool, or None where an abnormal image has none.
        digest: SHA-256 of the image file's bytes (or of the array's), hexadecimal.
        patient: Whose image it is; None where that is not known.
    """

    pixels: torch.Tensor
    label: int
    mask: torch.Tensor | None
    digest: str
    patient: str | None = None


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
        sample.patient,
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
