"""Scores of the shots from heads that did not see them: what thresholds and probabilities are learned from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from madclip.data.samples import Sample
from madclip.data.shots import folds as divide
from madclip.training.fit import fit_head

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from madclip.head.head import Head
    from madclip.recipe import Recipe
    from madclip.training.encode import TrainingSet
    from madclip.training.shots import Shot

    Scorer = Callable[[Head, Sequence[torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]
    """Image scores [B] and maps [B, S, S] from a head and the patch tokens of the taps, each [B, G, d]."""


class HeldOut(NamedTuple):
    """Cross-fitted results of the shots, in their order: scores [N] and maps [N, S, S]."""

    scores: torch.Tensor
    maps: torch.Tensor


def can_cross_fit(shots: Sequence[Shot]) -> bool:
    """Whether each class has images of at least two patients, so that one can be held out."""
    return min(_patients(shots)) > 1


def _patients(shots: Sequence[Shot]) -> list[int]:
    """Patients of the normal and of the abnormal shots; a shot without a patient counts as one."""
    return [len({s.patient or i for i, s in enumerate(shots) if s.label == label}) for label in (0, 1)]


def fold_members(shots: Sequence[Shot], folds: int, seed: int) -> list[list[int]]:
    """Indices of the shots of each fold: patients kept together, classes even; at most as many folds as a class has."""
    count = min(folds, *_patients(shots))
    named = [Sample(Path(f"{i:06d}"), shot.label, patient=shot.patient) for i, shot in enumerate(shots)]
    return [[int(sample.image.path.name) for sample in part] for part in divide(named, count, seed)]


def cross_fit(
    shots: Sequence[Shot],
    data: TrainingSet,
    new_head: Callable[[], Head],
    score: Scorer,
    recipe: Recipe,
    *,
    folds: int,
    seed: int,
    on_step: Callable[[int, int, float], None] | None = None,
    torch_compile: bool = False,
) -> HeldOut:
    """Fit on all folds but one, score that one; every shot is scored once, as it is (no variant).

    Raises:
        DataError: A class has images of fewer than two patients.
    """
    parts = fold_members(shots, folds, seed)
    plain = recipe.variants.index("identity")
    scores, maps = torch.zeros(len(shots)), None
    done = 0

    def count(step: int, total: int, loss: float) -> None:
        if on_step:
            on_step(done * total + step, len(parts) * total, loss)

    for members in parts:
        kept = [i for i in range(len(shots)) if i not in set(members)]
        head = new_head()
        fit_head(head, subset(data, kept), recipe, seed=seed, on_step=count, torch_compile=torch_compile)
        done += 1
        tokens = torch.stack([data.tokens[i][plain] for i in members])
        with torch.inference_mode():
            found, drawn = score(head, tokens.unbind(1))
        maps = torch.zeros(len(shots), *drawn.shape[1:]) if maps is None else maps
        scores[members], maps[members] = found.float(), drawn.float()
    assert maps is not None  # noqa: S101
    return HeldOut(scores, maps)


def subset(data: TrainingSet, members: Sequence[int]) -> TrainingSet:
    """The training set of some of its shots."""
    chosen = list(members)
    return replace(
        data,
        tokens=[data.tokens[i] for i in chosen],
        masks=data.masks[chosen],
        labels=data.labels[chosen],
        masked=data.masked[chosen],
    )
