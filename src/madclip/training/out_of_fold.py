"""Out-of-fold scores: each shot scored by a head that did not learn from it, for thresholds and probabilities."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from madclip.data.samples import Sample
from madclip.data.shots import folds as divide
from madclip.errors import DataError
from madclip.progress import Progress, silent
from madclip.training.fit import fit_heads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from madclip.head.head import Head
    from madclip.head.scorer import Readout
    from madclip.recipe import Recipe
    from madclip.training.encode import TrainingSet
    from madclip.training.shots import Shot


class OutOfFold(NamedTuple):
    """Out-of-fold results of the shots, in their order: scores [N] and maps [N, S, S]."""

    scores: torch.Tensor
    maps: torch.Tensor


def why_not(shots: Sequence[Shot]) -> str:
    """Why no shot can be held out, in one sentence; empty where each class has images of at least two patients."""
    for label, kind in enumerate(("normal", "abnormal")):
        count = sum(shot.label == label for shot in shots)
        if count == 1:
            return f"there is one {kind} image, and none is left to learn from when it is held out"
        if _groups(shots)[label] < 2:
            return f"all {count} {kind} images are of one patient or volume, so that none can be held out"
    try:
        fold_members(shots, 2, 0)
    except DataError:
        return "almost all images of a class are of one patient or volume, so that it cannot be held out"
    return ""


def why_not_normal(shots: Sequence[Shot]) -> str:
    """Why none of the normal shots can be held out, in one sentence; empty where they are of two patients at least."""
    if len(shots) == 1:
        return "there is one normal image, and none is left to compare it with"
    if _groups(shots)[0] < 2:
        return f"all {len(shots)} normal images are of one patient or volume, so that none can be held out"
    return ""


def _groups(shots: Sequence[Shot]) -> list[int]:
    """Groups of the normal and of the abnormal shots; a shot without a group counts as one."""
    return [len({s.group or i for i, s in enumerate(shots) if s.label == label}) for label in (0, 1)]


def fold_members(shots: Sequence[Shot], folds: int, seed: int) -> list[list[int]]:
    """Indices of the shots of each fold: groups kept together, classes even; at most as many folds as a class has."""
    count = min(folds, *_groups(shots))
    named = [Sample(Path(f"{i:06d}"), shot.label, patient=shot.group) for i, shot in enumerate(shots)]
    return [[int(sample.image.path.name) for sample in part] for part in divide(named, count, seed)]


class FoldSet(NamedTuple):
    """Shots that are held out in turn, their tokens in the same order, and how scores are read off their head."""

    shots: Sequence[Shot]
    data: TrainingSet
    readout: Readout


def out_of_fold(
    sets: Sequence[FoldSet],
    new_heads: Callable[[], Sequence[Head]],
    recipe: Recipe,
    *,
    folds: int,
    seed: int,
    progress: Progress = silent,
) -> list[OutOfFold | None]:
    """Fit on all folds but one, score that one; every shot is scored once, as it is (no variant).

    Heads of several sets learn together, with a fold of each set held out at a time.

    Args:
        sets: What is learned from; a set of which nothing can be held out (`why_not`) is learned from in every fold.
        new_heads: Makes the heads that every fold starts from, one for each set.
        recipe: How a head is trained.
        folds: How many parts the shots of a set are divided into, where the groups suffice.
        seed: Determines the division and the order of images.
        progress: Told of every step, over all folds.

    Returns:
        For each set its results; None for one of which nothing can be held out.
    """
    parts = [[] if why_not(one.shots) else fold_members(one.shots, folds, seed) for one in sets]
    count = max(map(len, parts))
    found = [_nothing(one) if folded else None for one, folded in zip(sets, parts, strict=True)]
    for number in range(count):

        def advance(_: str, done: int, total: int, /, *, loss: float | None = None, part: str = "") -> None:
            name = f"fold {number + 1} of {count}{part}"  # noqa: B023  (called within this turn of the loop)
            progress("out-of-fold", number * total + done, count * total, loss=loss, part=name)  # noqa: B023

        held_out = [folded[number] if number < len(folded) else [] for folded in parts]
        heads = new_heads()
        kept = [one.data.without(members) for one, members in zip(sets, held_out, strict=True)]
        fit_heads(nn.ModuleList(heads), [*zip(heads, kept, strict=True)], recipe, seed=seed, progress=advance)
        for one, head, members, into in zip(sets, heads, held_out, found, strict=True):
            if into is not None and members:
                with torch.inference_mode():
                    tokens = torch.stack([one.data.plain[i] for i in members])
                    into.scores[members], into.maps[members] = head.score(tokens, one.readout)
    return found


def _nothing(one: FoldSet) -> OutOfFold:
    return OutOfFold(torch.zeros(len(one.shots)), torch.zeros(len(one.shots), *one.data.masks.shape[2:]))
