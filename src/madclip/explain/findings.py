"""What there is to notice of a detector or an image, in plain sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from madclip.head.head import Head
from madclip.head.zero_shot import ZeroShot

if TYPE_CHECKING:
    from collections.abc import Iterator

    from madclip.explain.explanation import Explanation, Seen
    from madclip.explain.parts import Part
    from madclip.explain.shots import Shots
    from madclip.explain.texts import Texts
    from madclip.state import Fitted

DEAD = 0.02
"""A part is called dead where it makes less than this share of the difference between normal and abnormal shots."""
STILL = 0.1
"""Contexts barely moved where the way is less than this part of the length that they began with."""
ALIKE = 0.99
"""Two directions of texts are called the same from this cosine on."""


def findings(told: Explanation, state: Fitted) -> Iterator[str]:
    """A sentence for each thing to notice: of the image first, then of parts that are dead, then of the texts."""
    if told.image:
        yield from _of_image(told.image, told.shots)
        yield from _of_map(told.image)
    if isinstance(state.head, ZeroShot):
        yield (
            f"Taps 1 to {told.taps - 1} contribute nothing: a detector by texts alone reads the last tap only. "
            "It has learned from no image."
        )
    if told.shots:
        yield from _of_shots(told.shots, told.taps)
    if told.texts:
        yield from _of_texts(told.texts)
    still = [part for part, moved in told.moved if moved < STILL / 10]
    if still:
        yield f"Training hardly moved the adapters of {listed(still)}: less than 1 % of the way they are long."
    if isinstance(state.head, Head) and not told.moved:
        why = "was refitted" if state.provenance.refits else "does not say the seed that its training began from"
        yield f"How far training moved contexts and adapters is not known: the detector {why}."


def _of_image(image: Seen, shots: Shots | None) -> Iterator[str]:
    parts, given = image.parts, image.parts.given[:, 0]
    if not image.prediction.familiar:
        yield "The image is unlike every shot, so that its score means little."
    gap = shots.gap() if shots else None
    if shots is not None and shots.given is not None and gap is not None:
        above = shots.given.sum(0) < given.sum()
        counts = [(int(above[kind].sum()), int(kind.sum())) for kind in (~shots.labels, shots.labels)]
        yield (
            f"Its score is higher than that of {counts[0][0]} of {counts[0][1]} normal shots and of {counts[1][0]} of "
            f"{counts[1][1]} abnormal ones."
        )
        given = given - shots.given[:, ~shots.labels].mean(1)
        best = int(given.abs().argmax())
        yield (
            f"Beside the mean of the normal shots, {parts.parts[best].said} changes its score most: by "
            f"{float(given[best]):+.3f}; all parts together by {float(given.sum()):+.3f}."
        )
        return
    best = int(given.abs().argmax())
    share = float(given[best].abs() / given.abs().sum().clamp_min(1e-12))
    towards = "towards abnormal" if given[best] > 0 else "towards normal"
    said = parts.parts[best].said
    yield f"The largest part of its score comes from {said}: {float(given[best]):+.3f}, {towards} ({share:.0%} of all)."
    dead = [
        part
        for part, value in zip(parts.parts, given.tolist(), strict=True)
        if abs(value) < DEAD * float(given.abs().sum())
    ]
    if dead:
        yield f"Next to nothing of this image's score comes from {listed(dead)}."


def _of_map(image: Seen) -> Iterator[str]:
    """What makes the highest place of the map stand out from the rest of the image."""
    maps, (row, column) = image.parts.maps[:, 0], image.parts.place[0].tolist()
    lifted = maps[:, row, column] - maps.flatten(1).median(1).values
    whole = float(lifted.sum())
    if whole <= 0:
        return
    best = int(lifted.argmax())
    yield (
        f"The highest place of its map stands out by {whole:.3f} from the rest of the image; the largest part of that, "
        f"{float(lifted[best]):.3f}, comes from {image.parts.parts[best].said}."
    )


def _of_shots(shots: Shots, taps: int) -> Iterator[str]:
    gap = shots.gap()
    if gap is None:
        return
    shares = dict(zip(shots.parts, gap.tolist(), strict=True))
    best = max(shares, key=lambda part: shares[part])
    yield (
        f"What tells abnormal shots from normal ones comes from {best.said} more than from any other part: "
        f"{shares[best]:.0%} of the difference between their mean scores."
    )
    for tap in range(1, taps + 1):
        branches = [part for part in shares if part.tap == tap]
        dead = [part for part in branches if abs(shares[part]) < DEAD]
        if dead and len(dead) == len(branches):
            yield f"Tap {tap} contributes nothing: {sum(shares[part] for part in dead):.1%} of that difference."
        elif dead:
            yield f"Dead: {dead[0].said} contributes nothing, {shares[dead[0]]:.1%} of that difference."
    against = [part for part, share in shares.items() if share <= -DEAD]
    if against:
        yield f"Working against the rest: {listed(against)}, lower on abnormal shots than on normal ones."


def _of_texts(texts: Texts) -> Iterator[str]:
    if texts.between > ALIKE:
        yield (
            f"The normal and the abnormal text nearly coincide (cosine {texts.between:.4f}). Scores lie between "
            f"{texts.lowest:.3f} and {texts.highest:.3f} whatever the image."
        )
    if texts.from_start is not None and texts.from_start > ALIKE:
        yield (
            f"Learning the prompts changed next to nothing: the way from the normal to the abnormal text points "
            f"where it did before (cosine {texts.from_start:.4f})."
        )
    known = [one.moved for one in texts.contexts if one.moved is not None]
    still = sum(moved < STILL for moved in known)
    if still:
        yield f"{still} of {len(known)} learned contexts barely moved from their start (less than {STILL:.0%})."
    if texts.by_chance is not None:
        near = sum(one.nearest[0].cosine > texts.by_chance for one in texts.contexts)
        yield (
            f"{near} of {len(texts.contexts)} learned contexts lie nearer to a word than random vectors do "
            f"(cosine above {texts.by_chance:.2f}; by chance about 5 % would). "
            + ("Read the words with care." if near > len(texts.contexts) / 10 else "The words below mean nothing.")
        )


def listed(parts: list[Part]) -> str:
    """Names of parts as words."""
    names = [part.said for part in parts]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
