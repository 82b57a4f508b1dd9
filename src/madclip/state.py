"""What a fit leaves behind: the head with all that was learned about its scores, and where it came from."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, Self

import torch

from madclip.calibration.familiarity import Likeness
from madclip.errors import CheckpointError, RecipeError
from madclip.head.head import Head
from madclip.head.joint import JointHead, new_heads
from madclip.head.memory import NormalMemory
from madclip.head.scorer import Readout, Scorer
from madclip.head.zero_shot import ZeroShot

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from madclip.backbones.spec import Backbone
    from madclip.calibration.calibration import Calibration, Verdict
    from madclip.calibration.familiarity import Familiarity
    from madclip.data.samples import Sample
    from madclip.recipe import Recipe
    from madclip.training.fit import History
    from madclip.training.shots import Shot


_KINDS: dict[str, tuple[type, ...]] = {"seed": (int,), "masks": (int, bool), "pool": (tuple,)}
"""Types of values that are not those of the field's default."""

SEEN = ("shots", "calibrated_on", "removed", "groups")
"""Fields of `Provenance` that say what a joint detector has seen of any modality."""


@dataclass(frozen=True)
class Provenance:
    """Where a detector came from, and every image that it has seen, for what; no names of files or patients.

    Attributes:
        madclip: Version of this package at the time of the fit.
        torch: Version of PyTorch at that time.
        seed: Determined the draw, the initial weights and the order of images; None where nothing was fitted here.
        normal: Number of normal shots.
        abnormal: Number of abnormal shots.
        masks: Number of abnormal shots with a mask.
        shots: Digests of the images that the head learned from.
        calibrated_on: Digests of further images that thresholds and probabilities come from.
        selection_images: Digests of shots that were held out to choose the epoch.
        removed: Digests of images that were seen for any of these before a refit without them.
        groups: Salted hashes of the patients and volumes that any of these images belong to.
        salt: What those hashes, and those of `pool`, are salted with.
        pool: Salted hashes of the names and sizes of images that were there to draw from and were not drawn; None
            where that is not known.
        select: How the epoch was chosen: `last`, `val` or `test-best`.
        selected_epoch: The epoch that was kept, from 1; 0 where it is the last.
        selected_on: What it was chosen by, for people.
        refits: How often the detector was refitted.
        calibrated_before_refit: Whether thresholds and probabilities are those of the detector before its refit.
        uncalibrated: Why there are no thresholds and probabilities, in one sentence; empty where there are.
        method: Name of the method where it is not MadCLIP.
        source: What the detector was converted from.
        sha256: Digest of that file.
    """

    madclip: str = ""
    torch: str = ""
    seed: int | None = None
    normal: int = 0
    abnormal: int = 0
    masks: int = 0
    shots: tuple[str, ...] = ()
    calibrated_on: tuple[str, ...] = ()
    selection_images: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    salt: str = ""
    pool: tuple[str, ...] | None = None
    select: str = ""
    selected_epoch: int = 0
    selected_on: str = ""
    refits: int = 0
    calibrated_before_refit: bool = False
    uncalibrated: str = ""
    method: str = ""
    source: str = ""
    sha256: str = ""

    @classmethod
    def of(cls, shots: Sequence[Shot], seed: int, **more: Any) -> Self:
        """What can be said of shots that were learned from with a seed; further fields by name."""
        images = {shot.digest if shot.corner else number: shot for number, shot in enumerate(shots)}.values()
        digests = tuple(sorted(shot.digest for shot in images))
        known = cls(
            madclip=version("madclip"),
            torch=torch.__version__,
            seed=seed,
            normal=sum(shot.label == 0 for shot in images),
            abnormal=sum(shot.label == 1 for shot in images),
            masks=sum(shot.mask is not None and shot.label == 1 for shot in images),
            shots=digests,
            salt=sha256("".join(digests).encode()).hexdigest()[:16],
        )
        return dataclasses.replace(known, **more).with_groups(group for shot in shots for group in shot.groups)

    @classmethod
    def joint(cls, parts: Sequence[Self]) -> Self:
        """Where a detector of several modalities came from; of each modality it is known what its shots were."""
        seen: dict[str, Any] = {
            name: tuple(sorted({one for part in parts for one in getattr(part, name)})) for name in SEEN
        }
        counts = {name: sum(getattr(part, name) for part in parts) for name in ("normal", "abnormal", "masks")}
        why = "each modality has its own threshold, by which its images are judged"
        seen["removed"] = tuple(sorted({*seen["removed"]} - {*seen["shots"]}))
        return dataclasses.replace(parts[0], **seen, **counts, pool=None, uncalibrated=why)

    @property
    def learned_from(self) -> Literal["nothing", "normal", "both"]:
        """Which images: of `both` classes, also for a published checkpoint; `normal` ones alone; or none but texts."""
        if self.abnormal or self.source:
            return "both"
        return "normal" if self.normal else "nothing"

    @property
    def learned(self) -> str:
        """What it learned from, for people."""
        if self.source:
            return self.source
        return {
            "both": f"{self.normal} normal and {self.abnormal} abnormal images",
            "normal": f"{self.normal} normal images alone",
            "nothing": "texts alone",
        }[self.learned_from]

    @property
    def verdict(self) -> Verdict | None:
        """What is said of images without a calibration: nothing, or `uncertain` where no abnormal image was seen."""
        return None if self.learned_from == "both" else "uncertain"

    @property
    def seen(self) -> frozenset[str]:
        """Digests of all images that were used for anything: none of them may be measured."""
        return frozenset((*self.shots, *self.calibrated_on, *self.selection_images, *self.removed))

    def saw(self, sample: Sample) -> bool:
        """Whether an image, or another of its patient or volume, was used for anything.

        Raises:
            OSError: Its file cannot be read.
        """
        return self.saw_group(sample) or sample.image.digest() in self.seen

    def saw_group(self, sample: Sample) -> bool:
        """Whether an image of the same patient or volume was used for anything."""
        return bool(self.groups) and any(self.hashed(group) in self.groups for group in sample.groups)

    def hashed(self, name: str) -> str:
        """A name that must not be kept, as it is kept."""
        return sha256(f"{self.salt} {name}".encode()).hexdigest()[:16]

    def with_groups(self, groups: Iterable[str]) -> Self:
        """This provenance with more patients and volumes that were seen."""
        added = {self.hashed(group) for group in groups}
        return dataclasses.replace(self, groups=tuple(sorted({*self.groups, *added})))

    def to_dict(self) -> dict[str, Any]:
        """JSON values; fields that say nothing are left out."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        always = ("seed", "normal", "abnormal", "masks", "shots") if self.seed is not None else ()
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if name in always or (name == "pool" and value == ()) or value not in (None, "", 0, False, ())
        }

    def summary(self) -> dict[str, Any]:
        """`to_dict` without the lists of hashes, for people and for reports."""
        return {name: value for name, value in self.to_dict().items() if not isinstance(value, list) and name != "salt"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """What `to_dict` wrote, also by earlier versions.

        Raises:
            CheckpointError: A value is not of its field's type.
        """
        known = {field.name: field.default for field in dataclasses.fields(cls)}
        given: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        for name, value in given.items():
            default = known.get(name, value)
            kinds = _KINDS.get(name, (type(default),))
            if not isinstance(value, kinds):
                raise CheckpointError(f"the provenance has {name} {value!r}, which makes no sense")
        return dataclasses.replace(cls(), **{name: value for name, value in given.items() if name in known})


@dataclass(frozen=True)
class Fitted:
    """A fitted detector's state, which nothing changes: a refit or a calibration makes another.

    Attributes:
        head: What was learned.
        recipe: How it was learned, and how scores are read off it.
        provenance: Where it came from and what it has seen.
        calibration: What the shots say about scores; None where no shot could be held out.
        familiarity: The out-of-distribution check; None with fewer than three shots of different patients.
        history: Mean loss terms of every epoch.
        series: What whole normal volumes and series say of the highest score in one; None where none was calibrated on.
        modalities: What a joint detector learned of each modality, by its objective; their heads share adapters.
        text: Text features of the head, [e, 2]; [0, 2] where it uses none.
    """

    head: Scorer
    recipe: Recipe
    provenance: Provenance
    calibration: Calibration | None = None
    familiarity: Familiarity | None = None
    history: History = field(default_factory=list)
    series: Calibration | None = None
    modalities: Mapping[str, Fitted] = field(default_factory=dict)
    text: torch.Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        with torch.no_grad():
            object.__setattr__(self, "text", self.head.text().detach())

    @classmethod
    def joint(cls, modalities: Mapping[str, Fitted]) -> Fitted:
        """One detector of several modalities, from what was learned of each; each has then seen what any has."""
        parts = [*modalities.values()]
        facts = Provenance.joint([part.provenance for part in parts])
        seen = {name: getattr(facts, name) for name in SEEN}
        parts = [dataclasses.replace(one, provenance=dataclasses.replace(one.provenance, **seen)) for one in parts]
        known = [part.familiarity for part in parts if part.familiarity]
        heads = [part.head for part in parts if isinstance(part.head, Head)]
        head = JointHead(heads, known, [part.readout for part in parts])
        named = dict(zip(modalities, parts, strict=True))
        return cls(head, parts[0].recipe, facts, history=parts[0].history, modalities=named)

    def of(self, modality: str | None) -> Fitted:
        """What was learned of a modality; all of it where none is named.

        Raises:
            RecipeError: There is no such modality.
        """
        if modality is None:
            return self
        if not self.modalities:
            raise RecipeError(f"modality {modality!r}: this detector was not fitted for several; leave it out")
        if modality not in self.modalities:
            raise RecipeError(f"unknown modality {modality!r}: this detector knows {', '.join(self.modalities)}")
        return self.modalities[modality]

    def on(self, backbone: Backbone, objective: str) -> Fitted:
        """The same on a backbone of the same weights that is elsewhere, or of another type."""
        if not self.modalities:
            head = new_head(self.recipe, backbone, objective, self.provenance)
            head.load_state_dict(self.head.state_dict())
            return dataclasses.replace(self, head=head)
        heads = new_heads(self.recipe, backbone, [*self.modalities])
        parts = {}
        for head, (name, part) in zip(heads, self.modalities.items(), strict=True):
            head.load_state_dict(part.head.state_dict())
            parts[name] = dataclasses.replace(part, head=head)
        return Fitted.joint(parts)

    def put(self, modality: str | None, one: Fitted) -> Fitted:
        """This state with another of a modality; the other itself where none is named."""
        return one if modality is None else Fitted.joint({**self.modalities, modality: one})

    def likeness(self, pooled: torch.Tensor) -> list[Likeness]:
        """What each image is like, from pooled tokens [B, features]."""
        if isinstance(self.head, JointHead):
            names = [[*self.modalities][number] for number in self.head.route(pooled).tolist()]
            each = [self.modalities[name].likeness(row[None])[0] for name, row in zip(names, pooled, strict=True)]
            return [one._replace(modality=name) for one, name in zip(each, names, strict=True)]
        known = self.familiarity.familiar(pooled).tolist() if self.familiarity else [True] * len(pooled)
        return [Likeness(one) for one in known]

    @property
    def readout(self) -> Readout:
        """How scores and maps are read off the head."""
        seen = self.provenance
        return Readout.of(self.recipe, has_masks=bool(seen.masks), both_classes=seen.learned_from == "both")

    def score(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [B] and maps [B, S, S] of tokens [B, T, G, d], as `encode_for` gives them for the head."""
        return self.head.score(tokens, self.readout, self.text)


def new_head(recipe: Recipe, backbone: Backbone, objective: str, facts: Provenance) -> Scorer:
    """The head of a detector that learned from what `facts` say, before its tensors are loaded."""
    if facts.learned_from == "both":
        return Head(recipe, backbone, objective)
    if facts.learned_from == "normal":
        return NormalMemory(recipe, backbone, objective, images=facts.normal)
    return ZeroShot(recipe, backbone, objective)
