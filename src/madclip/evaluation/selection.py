"""Which epoch is kept: the last, the best on held-out shots, or, as was published, the best on the test set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from madclip.data.shots import draw_shots, folds
from madclip.errors import DataError, RecipeError
from madclip.metrics.image import auroc

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from madclip.data.samples import Dataset, Sample
    from madclip.detector import MadCLIP
    from madclip.head.head import Head

Select = Literal["last", "val", "test-best"]
HELD_OUT = 4
"""One shot in so many is held out for `val`."""


def fit_selected(
    detector: MadCLIP,
    data: Dataset,
    select: Select,
    *,
    shots: int | tuple[int, int] | None = 16,
    seed: int = 0,
    **arguments: Any,
) -> MadCLIP:
    """Fit a detector and keep the weights of the chosen epoch; `provenance["select"]` says how it was chosen.

    Args:
        detector: To be fitted.
        data: Shots come from its `shot_pool`; `test-best` opens its test images too.
        select: `last` epoch; `val`: best image AUROC on a quarter of the shots, which are held out of the fit;
            `test-best`: best image AUROC on the test images, as published. Every number of such a detector is
            optimistic and carries the mark; it is not calibrated.
        shots: As for `MadCLIP.fit`.
        seed: Likewise.
        arguments: Further ones of `MadCLIP.fit`.

    Raises:
        DataError: There are too few shots to hold some out, or no test images.
        RecipeError: A fit that selects an epoch is to be resumed: the epochs before the kill were not kept.
    """
    if select != "last" and arguments.get("resume"):
        raise RecipeError(f"a fit with --select {select} cannot be resumed; run it again without --resume")
    chosen: Sequence[Sample] = data.shot_pool if shots is None else draw_shots(data.shot_pool, shots, seed)
    if select == "last":
        detector.fit(chosen, seed=seed, **arguments)
        detector.provenance["select"] = "last"
        return detector
    if select == "val":
        parts = folds(chosen, HELD_OUT, seed)
        watched: Sequence[Sample] = parts[0]
        chosen = [sample for part in parts[1:] for sample in part]
        where = f"{len(watched)} held-out shots"
    else:
        watched, where = data.test_pool, "the test images"
        arguments["folds"] = 0
        if not watched:
            raise DataError(f"{data.root}: no test images to select an epoch on")
    best = _Best(detector, watched)
    detector.fit(chosen, seed=seed, on_epoch=best.watch, **arguments)
    best.restore()
    detector.provenance |= {
        "select": select,
        "selected_epoch": best.epoch,
        "selected_on": f"image AUROC {best.value:.4f} of {where}",
    }
    return detector


class _Best:
    """The weights of the epoch with the highest image AUROC so far; the earliest of equals."""

    def __init__(self, detector: MadCLIP, samples: Sequence[Sample]) -> None:
        self.detector, self.samples = detector, samples
        self.value, self.epoch = -1.0, 0
        self.weights: dict[str, torch.Tensor] = {}

    def watch(self, epoch: int, head: Head) -> None:
        predictions = self.detector.predict([sample.image for sample in self.samples])
        value = auroc([sample.label for sample in self.samples], [p.score for p in predictions])
        if value is None:
            raise DataError("selecting an epoch needs normal and abnormal images")
        if value > self.value:
            self.value, self.epoch = value, epoch
            self.weights = {name: tensor.clone() for name, tensor in head.state_dict().items()}

    def restore(self) -> None:
        assert self.detector.head is not None  # noqa: S101
        self.detector.head.load_state_dict(self.weights)
