"""A joint detector as a whole: which modality an image is taken for and by how far, and what its modalities share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from madclip.explain.shots import SAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from madclip.calibration.familiarity import Familiarity
    from madclip.data.samples import Sample
    from madclip.explain.explanation import Explanation
    from madclip.explain.shots import Shots
    from madclip.state import Fitted


@dataclass(frozen=True, eq=False)
class Near:
    """How far an image is from a modality.

    Attributes:
        modality: Its objective.
        distance: Cosine distance of pooled tokens to its nearest shot; an image is taken for the modality with the
            smallest one.
        limit: The largest distance at which an image is familiar to it.
        shot: That shot; None where it was not found.
    """

    modality: str
    distance: float
    limit: float
    shot: Sample | None


@dataclass(frozen=True)
class Pair:
    """Two modalities beside each other.

    Attributes:
        names: Their objectives.
        distance: Cosine distance of pooled tokens between the two shots of them that are nearest to each other.
        mistaken: How many shots of both are nearer to one of the other modality than to any other one of their own.
        shots: How many there are.
        texts: Cosine of the ways from the normal to the abnormal text.
    """

    names: tuple[str, str]
    distance: float
    mistaken: int
    shots: int
    texts: float


@dataclass(frozen=True, eq=False)
class Joint:
    """What a joint detector is as a whole.

    Attributes:
        parts: What was learned of each modality.
        pairs: How far apart they are.
        shared: How many learned numbers all of them share: the adapters.
        own: How many each has beside: its prompts.
    """

    parts: Mapping[str, Explanation]
    pairs: tuple[Pair, ...]
    shared: int
    own: int


def joint_of(state: Fitted, parts: Mapping[str, Explanation]) -> Joint:
    """A joint detector's state, as a whole, with the explanation of each modality."""
    pairs = []
    for (one, mine), (other, theirs) in combinations(state.modalities.items(), 2):
        rows = [np.asarray(_known(part).features) for part in (mine, theirs)]
        across = 1 - rows[0] @ rows[1].T
        apart = np.concatenate([across.min(1), across.min(0)])
        ways = torch.stack([part.text[:, 1] - part.text[:, 0] for part in (mine, theirs)])
        pairs.append(
            Pair(
                (one, other),
                float(apart.min()),
                int((apart < np.concatenate([_within(each) for each in rows])).sum()),
                len(apart),
                float(F.cosine_similarity(ways[0], ways[1], dim=0)),
            )
        )
    first = next(iter(state.modalities.values())).head
    shared = sum(one.numel() for name, one in first.named_parameters() if name.startswith("adapters."))
    return Joint(parts, tuple(pairs), shared, sum(one.numel() for one in first.parameters()) - shared)


def routed(state: Fitted, pooled: torch.Tensor, shots: Mapping[str, Shots]) -> tuple[Near, ...]:
    """How far an image is from each modality, nearest first: its pooled tokens [D], and the shots that were found."""
    near = []
    for name, part in state.modalities.items():
        known, shot = _known(part), None
        distance = float(known.distance(pooled)[0])
        if name in shots:
            first, cosine = shots[name].nearest(pooled)[0]
            # Another shot is the nearest of those that were found where the nearest of all was not.
            shot = first if abs(1 - cosine - distance) <= SAME * known.limit else None
        near.append(Near(name, distance, known.limit, shot))
    return tuple(sorted(near, key=lambda one: one.distance))


def _within(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Cosine distance of each shot to the nearest other one: features [n, d] at unit length -> [n]."""
    distance = 1 - rows @ rows.T
    np.fill_diagonal(distance, np.inf)
    return np.asarray(distance.min(1))


def _known(part: Fitted) -> Familiarity:
    assert part.familiarity is not None  # noqa: S101  (a joint fit has refused fewer shots than it needs)
    return part.familiarity


def findings_of_route(near: Sequence[Near]) -> Iterator[str]:
    """A sentence on what an image is taken for, and by how far."""
    first, second = near[:2]
    times = f", {second.distance / first.distance:.1f} times as far" if first.distance > 1e-6 else ""
    yield (
        f"It is taken for {first.modality!r}: the nearest of its shots is at distance {first.distance:.4f}, that of "
        f"{second.modality!r} at {second.distance:.4f}{times}."
    )


def findings_of_joint(joint: Joint) -> Iterator[str]:
    """A sentence for each thing to notice; what holds for all modalities is said once."""
    if joint.own:
        share = joint.shared / (joint.shared + joint.own * len(joint.parts))
        yield (
            f"All modalities share the adapters, {share:.0%} of all that was learned ({joint.shared:,} numbers); each "
            f"has prompts of its own ({joint.own:,} numbers)."
        )
    else:
        yield (
            f"All modalities share all that was learned, the adapters ({joint.shared:,} numbers): their prompts are "
            "fixed, and differ by the objective alone."
        )
    for pair in joint.pairs:
        if pair.mistaken:
            yield (
                f"{pair.names[0]!r} and {pair.names[1]!r} look alike: {pair.mistaken} of their {pair.shots} shots are "
                "nearer to one of the other than to any of their own. Images of one may be taken for the other."
            )
    said = Counter(line for part in joint.parts.values() for line in part.findings)
    yield from (line for line, count in said.items() if count == len(joint.parts))
    for name, part in joint.parts.items():
        yield from (f"{name}: {line}" for line in part.findings if said[line] < len(joint.parts))
