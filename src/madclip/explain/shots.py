"""The shots beside an image: found again by their digests, what the parts say of each, and which are nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from madclip.explain.parts import Part, contributions
from madclip.head.memory import NormalMemory, nearest_rows
from madclip.head.scorer import pool
from madclip.progress import Progress, silent
from madclip.training.encode import encode_for
from madclip.training.shots import read_shot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.data.samples import Dataset, Sample
    from madclip.detector import MadCLIP
    from madclip.state import Fitted, Provenance

PATCHES = 4
"""Places of an image that are shown beside the nearest patch of the memory."""

SAME = 0.01
"""Patches, or images, are the same up to rounding where they are nearer than this part of the usual distance of two."""


@dataclass(frozen=True, eq=False)
class Shots:
    """The shots that were found again.

    Attributes:
        samples: They, in the order of the data set.
        of: How many shots the detector has.
        given: [P, N], what each part gives to each shot's score; None of a memory, in which every shot is itself.
        parts: What the parts are.
        pooled: [N, D], pooled tokens at unit length of each tap.
        rows: [N, G, D], what a memory compares, shot by shot; None of other heads.
    """

    samples: tuple[Sample, ...]
    of: int
    given: torch.Tensor | None
    parts: tuple[Part, ...]
    pooled: torch.Tensor
    rows: torch.Tensor | None = None

    @property
    def labels(self) -> torch.Tensor:
        """Whether each is abnormal, [N]."""
        return torch.tensor([sample.label == 1 for sample in self.samples], dtype=torch.bool)

    def gap(self) -> torch.Tensor | None:
        """Which share of the distance between the mean scores of normal and abnormal shots each part makes, [P].

        None where a class is missing, or its mean is not the higher one.
        """
        if self.given is None or not self.labels.any() or self.labels.all():
            return None
        apart = self.given[:, self.labels].mean(1) - self.given[:, ~self.labels].mean(1)
        return apart / apart.sum() if apart.sum() > 0 else None

    def nearest(self, pooled: torch.Tensor) -> list[tuple[Sample, float]]:
        """All shots with the cosine of their pooled tokens to those of an image [D], nearest first."""
        cosines = torch.nn.functional.cosine_similarity(self.pooled, pooled[None], dim=1)
        return [(self.samples[i], float(cosines[i])) for i in cosines.argsort(descending=True, stable=True).tolist()]


def find_shots(facts: Provenance, sets: Sequence[Dataset]) -> list[Sample]:
    """The images of data sets that the head learned from, known by their digests; those of a shot pool first."""
    left, found = set(facts.shots), []
    for sample in dict.fromkeys(sample for data in sets for sample in (*data.shot_pool, *data.samples)):
        if not left:
            break
        digest = sample.image.digest()
        if digest in left:
            left.remove(digest)
            found.append(sample)
    return found


@torch.inference_mode()
def look_at(detector: MadCLIP, samples: Sequence[Sample], progress: Progress = silent) -> dict[str | None, Shots]:
    """Encode the shots anew, as they are; of a joint detector by the modality that each is of, else under None.

    Where the detector is one modality of a joint one, shots of the others are left out.

    Raises:
        DataError: One cannot be read.
    """
    state, view, backbone = detector.state, detector.recipe.view, detector.backbone
    found: dict[str | None, list[_Looked]] = {}
    for done, sample in enumerate(samples, 1):
        streams, patches = encode_for(state.head, backbone, view, read_shot(sample, view).pixels[None])
        pooled = pool(torch.stack(patches, 1)).cpu()
        modality = state.likeness(pooled)[0].modality
        part = state.of(modality)
        if _learned(part, pooled):
            found.setdefault(modality, []).append(_look(part, sample, torch.stack(streams, 1), pooled))
        progress("shots", done, len(samples))
    return {modality: _gathered(state.of(modality), looked) for modality, looked in found.items()}


class _Looked(NamedTuple):
    """A shot: what the parts give [P, 1], pooled tokens [1, D], and what a memory compares [1, G, D]."""

    sample: Sample
    parts: tuple[Part, ...]
    given: torch.Tensor | None
    pooled: torch.Tensor
    rows: torch.Tensor | None


def _look(state: Fitted, sample: Sample, tokens: torch.Tensor, pooled: torch.Tensor) -> _Looked:
    if isinstance(state.head, NormalMemory):
        return _Looked(sample, (), None, pooled, state.head.features(tokens).cpu())
    found = contributions(state.head, tokens, state.text, state.readout)
    return _Looked(sample, found.parts, found.given, pooled, None)


def _gathered(state: Fitted, looked: Sequence[_Looked]) -> Shots:
    given = [one.given for one in looked if one.given is not None]
    rows = [one.rows for one in looked if one.rows is not None]
    return Shots(
        tuple(one.sample for one in looked),
        _count(state.provenance),
        torch.cat(given, 1) if given else None,
        looked[0].parts,
        torch.cat([one.pooled for one in looked]),
        torch.cat(rows) if rows else None,
    )


def _count(facts: Provenance) -> int:
    """How many shots a detector has; `facts.shots` of one modality are those of all that learned with it."""
    return facts.normal + facts.abnormal


def _learned(state: Fitted, pooled: torch.Tensor) -> bool:
    """Whether a shot with pooled tokens [1, D] is of this modality, which is asked of those that learned jointly."""
    near = state.familiarity
    if near is None or len(state.provenance.shots) == _count(state.provenance):
        return True
    return float(near.distance(pooled)[0]) <= SAME * near.limit


@dataclass(frozen=True)
class NearPatch:
    """A place of an image, and what of the memory is nearest to it.

    Attributes:
        patch: Number of the patch in the image's grid, row by row.
        distance: Euclidean distance of the features.
        shot: Number of the shot in the memory, from 0.
        there: Number of the patch in that shot's grid; None where the shot is not at hand.
    """

    patch: int
    distance: float
    shot: int
    there: int | None = None


@dataclass(frozen=True)
class FromMemory:
    """What of a memory an image is nearest to.

    Attributes:
        shots: For each shot of the memory, from 0, the share of the image's patches that are nearest to it.
        patches: The places farthest from the memory, none beside another, farthest first.
        samples: The shot of each number, where it was found.
    """

    shots: tuple[float, ...]
    patches: tuple[NearPatch, ...]
    samples: dict[int, Sample]


@torch.inference_mode()
def from_memory(memory: NormalMemory, tokens: torch.Tensor, shots: Shots | None) -> FromMemory:
    """Which shots the nearest patches of a memory come from: tokens [1, T, prefix + G, d]."""
    features = memory.features(tokens.to(memory.patches.device))
    nearest = nearest_rows(features, memory.patches)[0]
    far = (features[0] - memory.patches[nearest]).norm(dim=-1)
    known = _places(memory, shots) if shots and shots.rows is not None else {}
    chosen = [
        NearPatch(
            patch,
            float(far[patch]),
            row // memory.kept,
            known[row // memory.kept][1].get(row) if row // memory.kept in known else None,
        )
        for patch in _apart(far, memory.grid)
        for row in (int(nearest[patch]),)
    ]
    count = len(memory.patches) // memory.kept
    shares = torch.bincount(nearest // memory.kept, minlength=count) / len(nearest)
    samples = {number: shots.samples[one] for number, (one, _) in known.items()} if shots else {}
    return FromMemory(tuple(shares.tolist()), tuple(chosen), samples)


def _places(memory: NormalMemory, shots: Shots) -> dict[int, tuple[int, dict[int, int]]]:
    """For each shot of the memory that was found, which it is, and the patch that each row of the memory is."""
    assert shots.rows is not None  # noqa: S101
    own, found = memory.patches.cpu().unflatten(0, (-1, memory.kept)), {}
    for number, rows in enumerate(own):
        far = torch.stack([(one - rows[0]).norm(dim=-1).amin() for one in shots.rows])
        which = int(far.argmin())
        if float(far[which]) <= SAME * float(memory.scale):
            patches = nearest_rows(rows[None], shots.rows[which])[0].tolist()
            found[number] = which, {number * memory.kept + row: patch for row, patch in enumerate(patches)}
    return found


def _apart(far: torch.Tensor, grid: tuple[int, int]) -> list[int]:
    """The patches [G] with the largest values, none of which touches another."""
    chosen: list[int] = []
    for patch in far.argsort(descending=True, stable=True).tolist():
        row, column = divmod(patch, grid[1])
        if all(max(abs(row - r), abs(column - c)) > 2 for r, c in (divmod(one, grid[1]) for one in chosen)):
            chosen.append(patch)
        if len(chosen) == PATCHES:
            break
    return chosen
