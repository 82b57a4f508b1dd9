"""Labelled images, from files or arrays, as the backbone will see them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from madclip.data.arrays import ImageLike, read_pixels, read_region
from madclip.data.geometry import fit_mask, fit_pixels
from madclip.data.load import load_dataset, read_sample
from madclip.data.ref import ImageRef, as_ref
from madclip.data.samples import NORMAL_ONLY, Dataset, Reading, Sample
from madclip.data.shots import draw_shots
from madclip.data.tiles import Corner, corners, cut
from madclip.data.unseen import LostLesions, lost_lesions
from madclip.data.volumes import volume_of
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    import torch

    from madclip.recipe import View

TILES, MOST = 4, 0.5
"""Tiles of each shot that are learned from; of an abnormal one those with at least this part of what one can hold."""
Chosen: TypeAlias = "Sequence[Sample] | Sequence[tuple[ImageLike, int, ImageLike | None]]"
"""What is learned from: samples, or images with labels and masks."""
Labelled: TypeAlias = "str | Path | Dataset | Sequence[Sample] | Sequence[ImageLike]"
"""A folder, a manifest or a data set to draw from, samples, or images, whose labels are given beside them."""


@dataclass(frozen=True)
class Shot:
    """A training image as the backbone will see it.

    Attributes:
        pixels: [3, S, S] in 0..1.
        label: 0 normal, 1 abnormal.
        mask: [S, S] bool, or None where an abnormal image has none.
        digest: The image's identity: SHA-256 of the file's bytes and the frame (or of the array's), hexadecimal.
        groups: What it shares with images that are not independent of it: its patient, its volume, or, for tiles,
            their image; that which comes first keeps images together.
        note: What is odd about the file's grey values, in one sentence.
        lost: Lesions of which nothing is left in the resized mask.
        corner: Top and left of the tile that it is, pixels; None where it is the whole image.
    """

    pixels: torch.Tensor
    label: int
    mask: torch.Tensor | None
    digest: str
    groups: tuple[str, ...] = ()
    note: str = ""
    lost: LostLesions | None = None
    corner: Corner | None = None

    @property
    def group(self) -> str | None:
        """What images are kept together by."""
        return next(iter(self.groups), None)


def draw_samples(data: Dataset, shots: int | tuple[int, int] | None, seed: int) -> tuple[Sample, ...]:
    """The samples of a data set that a method learns from: a seeded draw of its shot pool, or with None all of it.

    Where no abnormal image is there to draw from, as many normal ones are drawn alone.
    """
    pool = data.shot_pool
    if isinstance(shots, int) and not any(sample.label for sample in pool):
        shots = (shots, 0)
    return tuple(pool) if shots is None else draw_shots(pool, shots, seed)


def labelled_images(
    data: Labelled,
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
    """Samples, or images with labels and masks, as the backbone will see them: one shot each, or a few of its tiles.

    Raises:
        DataError: One cannot be read, or there is no normal image.
    """
    shots = [shot for one in chosen for shot in _shots_of(one, view)]
    counts = [sum(shot.label == c for shot in shots) for c in (0, 1)]
    if not counts[0]:
        raise DataError(f"fitting needs normal images, with or without abnormal ones: there are 0 and {counts[1]}")
    return shots


def read_shot(sample: Sample, view: View) -> Shot:
    """A labelled file and its mask as the backbone will see them, whole.

    Raises:
        DataError: Either cannot be read, they differ in size, or the mask contradicts the label.
    """
    return _whole(_read(sample, view), view)


def labelled_shot(image: ImageLike, label: int, mask: ImageLike | None, view: View) -> Shot:
    """An image given directly, file or array, as the backbone will see it; errors as in `read_shot`."""
    return _whole(_given(image, label, mask, view), view)


@dataclass(frozen=True)
class _Labelled:
    """An image [3, H, W] and its mask [H, W], at their own size."""

    name: str
    pixels: npt.NDArray[np.float32]
    label: int
    mask: npt.NDArray[np.bool_] | None
    digest: str
    groups: tuple[str, ...] = ()
    note: str = ""


def _shots_of(one: Sample | tuple[ImageLike, int, ImageLike | None], view: View) -> list[Shot]:
    found = _read(one, view) if isinstance(one, Sample) else _given(*one, view)
    return _tiles(found, view) if view.tile else [_whole(found, view)]


def _read(sample: Sample, view: View) -> _Labelled:
    image, mask = read_sample(sample, view.grey_range)
    digest = sample.image.digest()
    return _Labelled(str(sample.image), image.pixels, sample.label, mask, digest, sample.groups, image.note or "")


def _given(image: ImageLike, label: int, mask: ImageLike | None, view: View) -> _Labelled:
    if isinstance(image, (str, Path, ImageRef)):
        if not isinstance(mask, (str, Path, ImageRef, type(None))):
            raise DataError(f"{image}: its mask must be a file as well")
        return _read(Sample(image, label, mask, volume=volume_of(as_ref(image))), view)
    pixels = read_pixels(image, view)
    whole = None
    if mask is not None:
        whole = read_region(mask)
        if whole.shape != pixels.shape[1:]:
            raise DataError(f"a mask of shape {whole.shape} for an image of {pixels.shape[1:]}: they must agree")
        if whole.any() != (label == 1):
            raise DataError("a mask marks the lesion of an abnormal image: it is empty there, or marks a normal image")
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return _Labelled("an image given directly", pixels, label, whole if label else None, digest)


def _whole(one: _Labelled, view: View, corner: Corner | None = None) -> Shot:
    return Shot(
        fit_pixels(one.pixels, view),
        one.label,
        None if one.mask is None else fit_mask(one.mask, view),
        one.digest,
        one.groups,
        one.note,
        None if one.mask is None else lost_lesions(one.mask, view),
        corner,
    )


def _tiles(one: _Labelled, view: View) -> list[Shot]:
    """A few tiles of an image, which count as one group: those with most of the lesion, or some at even distances."""
    places, square = corners((one.pixels.shape[1], one.pixels.shape[2]), view), replace(view, aspect="stretch")
    if one.label:
        if one.mask is None:
            raise DataError(f"{one.name}: abnormal and without a mask, so that nothing says which of its tiles are")
        marked = np.array([cut(one.mask, corner, view).sum() for corner in places])
        order = np.argsort(-marked, kind="stable")[:TILES]
        chosen = [number for number in order if marked[number] >= MOST * marked.max()]
    else:
        chosen = np.unique(np.linspace(0, len(places) - 1, TILES).round().astype(int)).tolist()
    return [_whole(_tile(one, places[number], view), square, places[number]) for number in chosen]


def _tile(one: _Labelled, corner: Corner, view: View) -> _Labelled:
    mask = None if one.mask is None else cut(one.mask, corner, view)
    return replace(one, pixels=cut(one.pixels, corner, view), mask=mask, groups=one.groups or (f"image {one.digest}",))
