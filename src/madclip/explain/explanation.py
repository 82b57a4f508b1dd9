"""`explain`: everything that can be shown of what a detector learned, and of why it says what it says of an image."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from madclip.data.arrays import read_pixels
from madclip.data.geometry import fit_pixels
from madclip.data.load import scan_dataset
from madclip.data.samples import Dataset, Reading
from madclip.data.tiles import corners, cut
from madclip.errors import DataError, RecipeError
from madclip.explain.findings import findings
from madclip.explain.joint import Joint, Near, findings_of_joint, findings_of_route, joint_of, routed
from madclip.explain.parts import Contributions, Part, contributions
from madclip.explain.shots import FromMemory, Shots, find_shots, from_memory, look_at
from madclip.explain.texts import Texts, start_of, texts_of
from madclip.head.head import Head
from madclip.head.memory import NormalMemory
from madclip.head.scorer import pool
from madclip.head.zero_shot import ZeroShot
from madclip.progress import Progress, silent
from madclip.training.encode import encode_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from madclip.data.arrays import ImageLike
    from madclip.data.tiles import Corner
    from madclip.detector import MadCLIP
    from madclip.prediction import Prediction
    from madclip.recipe import View

TILES = 16
"""Tiles of an image that are scored at once."""


@dataclass(frozen=True, eq=False)
class Seen:
    """An image, and why it has its score.

    Attributes:
        prediction: What the detector says of it.
        pixels: [3, H, W] in 0..1; of an image that is seen in tiles the one with the highest score.
        corner: Top and left of that tile, pixels; None where the image is seen whole.
        view: How `pixels` were brought before the backbone.
        parts: What each part gives to its score and map; B = 1.
        pooled: [D], pooled tokens.
        distance: Cosine distance to the nearest shot, and the limit of what is familiar; None where it is not checked.
        memory: What of a memory it is nearest to; None of other heads.
        grid: Rows and columns of patches.
    """

    prediction: Prediction
    pixels: npt.NDArray[np.float32]
    corner: Corner | None
    view: View
    parts: Contributions
    pooled: torch.Tensor
    distance: tuple[float, float] | None
    memory: FromMemory | None
    grid: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a detector learned, and why it says what it says of an image.

    Attributes:
        facts: What the detector is, for people.
        texts: Where its texts point; None where it uses none.
        moved: How far training moved the adapters of each tap and branch, in parts of the length that they began
            with; empty where nothing was trained or the start is not known.
        shots: The shots, where data with them was given and holds some.
        image: The image; None where none was given.
        findings: What there is to notice, a sentence each.
        taps: How many taps the backbone is read at.
        route: How far an image that a joint detector was given is from each modality, nearest first; the rest is said
            of the modality that it was taken for.
        joint: Each modality and what they share, where a joint detector was given no image; the rest is of all.
    """

    facts: dict[str, str]
    texts: Texts | None
    moved: tuple[tuple[Part, float], ...]
    shots: Shots | None
    image: Seen | None
    findings: tuple[str, ...] = ()
    taps: int = 4
    route: tuple[Near, ...] = ()
    joint: Joint | None = None

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON values, without pictures and names."""
        texts, gap = self.texts, self.shots.gap() if self.shots else None
        said: dict[str, Any] = {"facts": self.facts, "findings": list(self.findings)}
        if texts:
            said["texts"] = {
                "between": texts.between,
                "to_fixed": texts.to_fixed,
                "change_to_fixed": texts.change,
                "change_to_start": texts.from_start,
                "lowest": texts.lowest,
                "highest": texts.highest,
                "nearest_by_chance": texts.by_chance,
                "contexts": [
                    {
                        "class": ("normal", "abnormal")[one.label],
                        "prompt": one.prompt,
                        "number": one.number,
                        "nearest": [[near.word, near.cosine] for near in one.nearest],
                        "moved": one.moved,
                    }
                    for one in texts.contexts
                ],
            }
        if self.moved:
            said["moved"] = {part.name: value for part, value in self.moved}
        if self.shots and gap is not None:
            named = zip(self.shots.parts, gap.tolist(), strict=True)
            said["share_of_gap"] = {part.name: value for part, value in named}
        if self.image:
            parts = self.image.parts
            rows = zip(parts.parts, parts.whole[:, 0].tolist(), parts.spot[:, 0].tolist(), strict=True)
            said["score"] = float(parts.scores[0])
            said["base"] = parts.base
            said["parts"] = {part.name: {"image": whole, "map": spot} for part, whole, spot in rows}
        if self.route:
            said["route"] = {one.modality: {"distance": one.distance, "limit": one.limit} for one in self.route}
        if self.joint:
            said["shared"], said["own"] = self.joint.shared, self.joint.own
            said["pairs"] = [asdict(pair) for pair in self.joint.pairs]
            said["modalities"] = {name: part.to_dict() for name, part in self.joint.parts.items()}
        return said


def explain(
    detector: MadCLIP,
    image: ImageLike | None = None,
    *,
    data: str | Path | Dataset | Sequence[str | Path | Dataset] | None = None,
    modality: str | None = None,
    progress: Progress = silent,
) -> Explanation:
    """Say what a detector learned, and why it says what it says of an image; computed by torch, whatever the engine.

    A joint detector explains an image by the modality that it takes it for, and says by how far it does.

    Args:
        detector: A fitted detector.
        image: What to explain, as for `MadCLIP.predict`; None explains the detector alone.
        data: Where its shots are, to show what the parts say of them and which are nearest; detectors keep digests
            of their shots, and no images. Several where they are not all in one.
        modality: Which one of a joint detector alone; None lets it tell by the image, or shows all.
        progress: Told of every shot that is encoded.

    Raises:
        DataError: The image or a shot cannot be read, or none of the shots is in the data.
        RecipeError: The detector is not fitted, or of a kind that is not taken apart; or there is no such modality.
    """
    if modality is not None:
        detector = detector.of(modality)
    state = detector.state
    for part in state.modalities.values() or (state,):
        if not isinstance(part.head, (Head, NormalMemory, ZeroShot)):
            raise RecipeError(f"a detector of the kind {type(part.head).__name__} cannot be explained yet")
    shots = _shots(detector, data, progress)
    if not state.modalities:
        return _explain(detector, image, shots.get(None))
    names = ", ".join(state.modalities)
    named = {name: found for name, found in shots.items() if name is not None}
    if image is None:
        parts = {name: _explain(detector.of(name), None, named.get(name)) for name in state.modalities}
        joint = joint_of(state, parts)
        facts = {"Modalities": names, **_facts(detector)}
        for name in ("Objective", "Image score"):  # which each modality has
            del facts[name]
        # Their adapters are the same, and moved as far.
        moved = next(iter(parts.values())).moved
        return Explanation(facts, None, moved, None, None, tuple(findings_of_joint(joint)), _taps(detector), (), joint)
    prediction = detector.predict(image)
    taken = prediction.modality
    assert taken is not None  # noqa: S101
    told = _explain(detector.of(taken), image, named.get(taken))
    assert told.image is not None  # noqa: S101
    route = routed(state, told.image.pooled, named)
    return replace(
        told,
        facts=told.facts | {"Modalities": names},
        image=replace(told.image, prediction=prediction),
        findings=(*findings_of_route(route), *told.findings),
        route=route,
    )


def _explain(detector: MadCLIP, image: ImageLike | None, shots: Shots | None) -> Explanation:
    """What is said of a detector of one modality."""
    state = detector.state
    texts = texts_of(state, detector.backbone, detector.objective)
    seen = None if image is None else _see(detector, image, shots)
    told = Explanation(_facts(detector), texts, _moved(detector), shots, seen, taps=_taps(detector))
    return replace(told, findings=tuple(findings(told, state)))


def _shots(
    detector: MadCLIP, data: str | Path | Dataset | Sequence[str | Path | Dataset] | None, progress: Progress
) -> dict[str | None, Shots]:
    """The shots that are in the data, by modality; see `look_at`."""
    facts = detector.state.provenance
    if data is None or detector.recipe.view.tile or not facts.shots:
        return {}
    given = [data] if isinstance(data, (str, Path, Dataset)) else data
    reading = Reading(axis=detector.recipe.axis)
    sets = [scan_dataset(one, reading) if isinstance(one, (str, Path)) else one for one in given]
    found = look_at(detector, find_shots(facts, sets), progress)
    if not found:
        where = ", ".join(str(one.root) for one in sets)
        raise DataError(f"{where}: holds none of the detector's {facts.normal + facts.abnormal} shots")
    return found


def _taps(detector: MadCLIP) -> int:
    return len(detector.backbone.spec.taps)


def _facts(detector: MadCLIP) -> dict[str, str]:
    state = detector.state
    return {
        "Objective": detector.objective,
        "Backbone": detector.backbone.spec.id,
        "Learned from": state.provenance.learned,
        "Image score": {"mean": "image as a whole", "max": "largest value of the map"}.get(
            state.readout.rule, "half the image as a whole, half the largest value of the map"
        ),
    }


def _moved(detector: MadCLIP) -> tuple[tuple[Part, float], ...]:
    """How far the adapters of each tap and branch are from where they began."""
    head = detector.state.head
    start = start_of(detector.state, detector.backbone, detector.objective)
    if start is None or not isinstance(head, Head):
        return ()
    now, then = (torch.cat([one.flatten(2) for one in each.adapters.parameters()], 2) for each in (head, start))
    ratio = ((now - then).norm(dim=-1) / then.norm(dim=-1)).detach()
    kinds = ("normal", "abnormal") if ratio.shape[1] == 2 else ("tap",)
    return tuple(
        (Part(kind, tap + 1), value)  # type: ignore[arg-type]
        for tap, row in enumerate(ratio.tolist())
        for kind, value in zip(kinds, row, strict=True)
    )


@torch.inference_mode()
def _see(detector: MadCLIP, image: ImageLike, shots: Shots | None) -> Seen:
    state, view = detector.state, detector.recipe.view
    prediction = detector.predict(image)
    pixels = read_pixels(image, view)
    corner = None
    if view.tile:
        whole, square = torch.from_numpy(pixels), replace(view, aspect="stretch", tile=0)
        places = corners((pixels.shape[1], pixels.shape[2]), view)
        scores = []
        for start in range(0, len(places), TILES):
            tiles = [fit_pixels(cut(whole, place, view), square) for place in places[start : start + TILES]]
            found, _ = encode_for(state.head, detector.backbone, square, torch.stack(tiles))
            scores.append(state.score(torch.stack(found, 1))[0])
        corner = places[int(torch.cat(scores).argmax())]
        pixels, view = cut(pixels, corner, view), square
    streams, patches = encode_for(state.head, detector.backbone, view, fit_pixels(pixels, view)[None])
    tokens = torch.stack(streams, 1)
    pooled = pool(torch.stack(patches, 1))[0].cpu()
    near = state.familiarity
    return Seen(
        prediction,
        pixels,
        corner,
        view,
        contributions(state.head, tokens, state.text, state.readout),
        pooled,
        (float(near.distance(pooled)[0]), near.limit) if near else None,
        from_memory(state.head, tokens, shots) if isinstance(state.head, NormalMemory) else None,
        detector.backbone.grid,
    )
