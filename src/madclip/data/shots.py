"""Which labelled images a detector learns from: a seeded draw, the published lists, and folds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from madclip.data.samples import KINDS
from madclip.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from madclip.data.samples import Sample


def draw_shots(samples: Sequence[Sample], shots: int | tuple[int, int], seed: int) -> tuple[Sample, ...]:
    """Draws labelled images; the same seed and names give the same draw, in whatever order the samples come.

    Each side takes one image from each patient before it takes a second one. A patient who has normal and abnormal
    images serves one side only, as far as the images suffice. With the same seed, the draw of 4 + 4 is part of
    that of 8 + 8.

    Args:
        samples: The images to draw from.
        shots: Images of either class, or (normal, abnormal), where abnormal may be 0.
        seed: Determines the draw.

    Returns:
        The normal shots, then the abnormal ones, each in the order of the draw.

    Raises:
        DataError: There are fewer images than shots.
        RecipeError: There are to be no normal shots, or the seed is negative.
    """
    if seed < 0:
        raise RecipeError(f"seed {seed}: give a whole number from 0")
    wanted = (shots, shots) if isinstance(shots, int) else shots
    if wanted[0] < 1 or wanted[1] < 0:
        raise RecipeError(f"shots must be at least 1 normal image, not {wanted[0]} normal and {wanted[1]} abnormal")
    available = [sum(sample.label == label for sample in samples) for label in (0, 1)]
    if any(count < want for count, want in zip(available, wanted, strict=True)):
        raise DataError(
            f"fewer images than shots: {wanted[0]} normal and {wanted[1]} abnormal asked for, "
            f"{available[0]} normal and {available[1]} abnormal there to draw from"
        )
    groups = _groups(samples, np.random.default_rng(seed))
    sides = _assign(groups, wanted) if wanted[1] else (groups, [])
    normal, abnormal = (
        # Only when its own patients are used up does a side turn to the other's, to those drawn last there.
        [*_in_turns(own, label), *reversed(_in_turns(other, label))][: wanted[label]]
        for label, own, other in ((0, sides[0], sides[1]), (1, sides[1], sides[0]))
    )
    return (*normal, *abnormal)


def published_shots(
    source: Literal["mvfa", "madclip"] | str,  # noqa: PYI051
    set_name: str,
    shots: int,
    samples: Sequence[Sample],
) -> tuple[Sample, ...]:
    """The shots whose file names were published with MVFA or with MadCLIP (method.md, section 7).

    Files are found by name among the samples of the list's class; a copy in another format (another suffix) will do.

    Raises:
        RecipeError: There is no such list.
        DataError: Images of the list are missing, or a name is there twice.
    """
    lists: Any = _published()
    for key, choice in (("source", source), ("set", set_name), ("number of shots", str(shots))):
        if choice not in lists:
            raise RecipeError(f"no published list for {key} {choice!r}; there are: {', '.join(lists)}")
        lists = lists[choice]
    found = [_named(samples, label, name) for label, kind in enumerate(KINDS) for name in lists[kind]]
    missing = [name for name, sample in found if sample is None]
    if missing:
        raise DataError(
            f"{len(missing)} images of the published list {source} {set_name} {shots} are missing: {', '.join(missing)}"
        )
    return tuple(sample for _, sample in found if sample is not None)


def _named(samples: Sequence[Sample], label: int, name: str) -> tuple[str, Sample | None]:
    stem = name.rpartition(".")[0]
    same_class = [sample for sample in samples if sample.label == label]
    matches = [sample for sample in same_class if sample.image.path.name == name] or [
        sample for sample in same_class if sample.image.path.stem == stem
    ]
    if len(matches) > 1:
        raise DataError(f"{name} of the published list is there twice: {matches[0].image} and {matches[1].image}")
    return name, matches[0] if matches else None


def folds(samples: Sequence[Sample], k: int, seed: int) -> tuple[tuple[Sample, ...], ...]:
    """Divides samples into k folds that keep a patient's images together and hold both classes as evenly as they can.

    Raises:
        DataError: A class has images of fewer than k patients (images without a patient count as one each).
        RecipeError: k is below 2.
    """
    if k < 2:
        raise RecipeError(f"at least 2 folds are needed, not {k}")
    groups = _groups(samples, np.random.default_rng(seed))
    for label, kind in enumerate(KINDS):
        having = sum(bool(group.sides[label]) for group in groups)
        if having < k:
            raise DataError(f"{k} folds need {kind} images of {k} patients; there are {having}")
    totals = np.array([sum(len(group.sides[label]) for group in groups) for label in (0, 1)])
    counts = np.zeros((k, 2))
    parts: list[list[Sample]] = [[] for _ in range(k)]
    # Large groups first; each goes where the classes stay most even.
    for group in sorted(groups, key=lambda group: -len(group.sides[0]) - len(group.sides[1])):
        sizes = np.array([len(side) for side in group.sides])
        cost = (((counts + sizes) ** 2 - counts**2) / totals).sum(axis=1)
        cost[(counts + sizes == totals).any(axis=1)] = np.inf  # no fold takes all of a class
        if np.isinf(cost).all():
            raise DataError(f"{k} folds leave none without a class: too many images are of one patient")
        fold = int(np.argmin(cost))
        counts[fold] += sizes
        parts[fold] += [*group.sides[0], *group.sides[1]]
    return tuple(tuple(sorted(part, key=_order)) for part in parts)


@dataclass(frozen=True)
class _Group:
    """The images of one patient, in the order in which they are drawn: normal ones and abnormal ones."""

    sides: tuple[list[Sample], list[Sample]]


def _order(sample: Sample) -> tuple[str, int]:
    return sample.image.path.as_posix(), sample.image.frame or 0


def _groups(samples: Sequence[Sample], generator: np.random.Generator) -> list[_Group]:
    """Patients in random order, their images too; an image of an unknown patient stands alone."""
    ordered = sorted(samples, key=_order)
    by_patient: dict[Hashable, _Group] = {}
    for index in generator.permutation(len(ordered)):
        sample = ordered[index]
        key: Hashable = index if sample.group is None else sample.group
        by_patient.setdefault(key, _Group(([], []))).sides[sample.label].append(sample)
    return list(by_patient.values())


def _assign(groups: list[_Group], wanted: tuple[int, int]) -> tuple[list[_Group], list[_Group]]:
    """Gives every patient to one side, so that the side that is shorter of images (for its shots) has the most."""
    pure = [[group for group in groups if group.sides[label] and not group.sides[1 - label]] for label in (0, 1)]
    mixed = [group for group in groups if group.sides[0] and group.sides[1]]
    # Those with the largest surplus of abnormal images first: the first few serve as abnormal, the others as normal.
    mixed.sort(key=lambda group: len(group.sides[0]) - len(group.sides[1]))
    has = [sum(len(group.sides[label]) for group in pure[label]) for label in (0, 1)]
    cuts = [
        min(
            (has[0] + sum(len(group.sides[0]) for group in mixed[cut:])) / wanted[0],
            (has[1] + sum(len(group.sides[1]) for group in mixed[:cut])) / wanted[1],
        )
        for cut in range(len(mixed) + 1)
    ]
    cut = int(np.argmax(cuts))
    chosen = [{id(group) for group in side} for side in ([*pure[0], *mixed[cut:]], [*pure[1], *mixed[:cut]])]
    normal, abnormal = ([group for group in groups if id(group) in side] for side in chosen)
    return normal, abnormal


def _in_turns(groups: list[_Group], label: int) -> list[Sample]:
    """One image of each patient, then a second of each, and so on."""
    longest = max((len(group.sides[label]) for group in groups), default=0)
    return [group.sides[label][turn] for turn in range(longest) for group in groups if turn < len(group.sides[label])]


@cache
def _published() -> dict[str, Any]:
    text = files("madclip.data").joinpath("published_shots.json").read_text(encoding="utf-8")
    lists: dict[str, Any] = json.loads(text)["lists"]
    return lists
