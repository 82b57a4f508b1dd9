"""Which epoch is kept: the last, the best on held-out shots, or, as was published, the best on the test set."""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from madclip.data.geometry import fit_pixels
from madclip.data.readers import read_image, read_many
from madclip.data.samples import Sample
from madclip.data.shots import folds
from madclip.errors import DataError
from madclip.metrics.image import auroc
from madclip.progress import Progress, silent
from madclip.training.encode import encode_patches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

    from madclip.backbones.spec import Backbone
    from madclip.data.ref import ImageRef
    from madclip.data.samples import Dataset
    from madclip.head.head import Head
    from madclip.head.scorer import Readout
    from madclip.recipe import View
    from madclip.training.shots import Chosen

Select = Literal["last", "val", "test-best"]
HELD_OUT = 4
"""One shot in so many is held out for `val`."""
BATCH = 16
"""Images that are encoded at once."""


class Watched(NamedTuple):
    """Images by which the epoch is chosen, and what they are, for people."""

    samples: Sequence[Sample]
    where: str


def watch(data: Dataset | None, chosen: Chosen, select: Select, seed: int) -> tuple[Chosen, Watched]:
    """Divide what was drawn into what is learned from and what the epoch is chosen by.

    Args:
        data: The data set, whose test images `test-best` opens.
        chosen: The shots that were drawn.
        select: `val` holds out a quarter of the shots; `test-best` takes the test images, as published: every number
            of such a detector is optimistic and carries the mark.
        seed: Determines which shots are held out.

    Raises:
        DataError: There are too few shots to hold some out, no test images, or images of one class only.
    """
    if select == "val":
        samples = [one for one in chosen if isinstance(one, Sample)]
        if len(samples) < len(chosen):
            raise DataError("selecting an epoch needs files, not images given directly: give a data set or Samples")
        parts = folds(samples, HELD_OUT, seed)
        chosen, watched = [sample for part in parts[1:] for sample in part], parts[0]
        found = Watched(watched, f"{len(watched)} held-out shots")
    else:
        if data is None or not data.test_pool:
            raise DataError(f"{data.root if data else 'images given directly'}: no test images to select an epoch on")
        found = Watched(data.test_pool, "the test images")
    if len({sample.label for sample in found.samples}) < 2:
        raise DataError("selecting an epoch needs normal and abnormal images: give more shots or test images")
    return chosen, found


class EpochWeights:
    """The weights after every epoch, in a temporary folder while the fit lasts."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="madclip-epochs-")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._folder.cleanup()

    def keep(self, epoch: int, head: Head) -> None:
        """Keep a head's weights as those of an epoch, from 1."""
        weights = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
        save_file(weights, self._path(epoch))
        self.count = epoch

    def put(self, epoch: int, head: Head) -> None:
        """Give a head the weights of an epoch."""
        head.load_state_dict(load_file(self._path(epoch)))

    def _path(self, epoch: int) -> Path:
        return Path(self._folder.name, f"{epoch}.safetensors")


def best_epoch(
    weights: EpochWeights,
    head: Head,
    watched: Watched,
    backbone: Backbone,
    view: View,
    readout: Readout,
    progress: Progress = silent,
) -> tuple[int, float]:
    """Leave a head with the weights of the epoch whose image AUROC is highest, the earliest of equals.

    Every watched image is read and encoded once, and scored with the weights of every epoch.

    Returns:
        The epoch, from 1, and that AUROC.

    Raises:
        DataError: An image cannot be read.
    """
    labels = [sample.label for sample in watched.samples]
    scores = np.zeros((weights.count, len(labels)))
    texts = []
    for epoch in range(weights.count):
        weights.put(epoch + 1, head)
        with torch.inference_mode():
            texts.append(head.text().clone())
    done = 0
    for pixels in _batches([sample.image for sample in watched.samples], view):
        with torch.inference_mode():
            tokens = torch.stack(encode_patches(backbone, view, pixels), 1)
            for epoch in range(weights.count):
                weights.put(epoch + 1, head)
                scores[epoch, done : done + len(pixels)] = head.score(tokens, readout, texts[epoch])[0].numpy()
        done += len(pixels)
        progress("select", done, len(labels))
    values = [auroc(labels, row) or 0.0 for row in scores]
    best = int(np.argmax(values))
    weights.put(best + 1, head)
    return best + 1, values[best]


def _batches(images: Sequence[ImageRef], view: View) -> Iterator[torch.Tensor]:
    """Pixels [B, 3, S, S] of the images in order, a batch at a time."""
    found = read_many(images, lambda image: fit_pixels(read_image(image, view.grey_range).pixels, view))
    while batch := list(islice(found, BATCH)):
        for _, one in batch:
            if isinstance(one, DataError):
                raise one
        yield torch.stack([one for _, one in batch if isinstance(one, torch.Tensor)])
