"""Detectors on disk: a folder of detector.json, head.safetensors and README.md."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from madclip.calibration.calibration import Calibration
from madclip.calibration.familiarity import Familiarity
from madclip.errors import CheckpointError, DataError, MadCLIPError, RecipeError
from madclip.files import new_folder
from madclip.head.joint import new_heads
from madclip.recipe import Recipe
from madclip.state import Fitted, Provenance, new_head

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from madclip.backbones.spec import Backbone, BackboneSpec
    from madclip.head.scorer import Scorer
    from madclip.training.fit import History

FORMAT, JOINT = 1, 2
"""Versions of detector.json: of one modality, and of several."""
_FACTS, _WEIGHTS, _CARD = "detector.json", "head.safetensors", "README.md"
PARTS = (_FACTS, _WEIGHTS, _CARD)
"""The files of a detector."""
_ENGINES = "engines"
"""Exports that lie with a detector; they go when another takes its place."""
_KINDS: dict[str, tuple[type, ...]] = {
    "recipe": (dict,),
    "objective": (str,),
    "backbone": (dict,),
    "calibration": (dict, NoneType),
    "familiarity": (dict, NoneType),
    "provenance": (dict,),
    "history": (list,),
}
"""What detector.json holds besides the format's version."""
_MAPS = {"normal": "distance to the nearest normal patch, and the texts", "nothing": "nearness to the texts"}
"""Where the map of a detector comes from that learned from no abnormal image."""


def check_target(folder: Path) -> None:
    """A detector may go where there is nothing, an empty folder, or a detector and nothing else.

    Raises:
        DataError: There is something else, or no folder can be made there.
    """
    if folder.name in ("", ".."):
        raise DataError(f"{folder}: give another folder, by its own name")
    if folder.exists() and not (folder.is_dir() and {p.name for p in folder.iterdir()} <= {*PARTS, _ENGINES}):
        raise DataError(f"{folder}: not empty and not a detector; choose another folder")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir():
        raise DataError(f"{folder}: cannot be made, {above} is not a folder; choose another folder")


@dataclass(frozen=True)
class Saved:
    """What a detector's folder says, before its backbone is loaded.

    Attributes:
        folder: Where it is.
        recipe: How it was learned.
        objective: What its images show.
        backbone: `id`, `source`, `fingerprint` and `dtype` of the backbone.
        provenance: Where it came from.
        calibration: What the shots said of scores.
        familiarity: The out-of-distribution check.
        history: Mean loss terms of every epoch.
        series: What whole volumes and series said of their highest scores.
        modalities: The same of each modality of a joint detector, by its objective.
    """

    folder: Path
    recipe: Recipe
    objective: str
    backbone: dict[str, str]
    provenance: Provenance
    calibration: Calibration | None
    familiarity: Familiarity | None
    history: History
    series: Calibration | None
    modalities: Mapping[str, Saved] = field(default_factory=dict)

    def fitted(self, load: Callable[[], Backbone], *, moved: bool) -> Fitted:
        """The fitted state, on the backbone that `load` gives.

        Args:
            load: Loads the backbone.
            moved: Whether the user said where the backbone is.

        Raises:
            CheckpointError: The backbone is missing or another one, or the weights are damaged.
        """
        wanted = self.backbone
        try:
            given = load()
        except CheckpointError as error:
            if moved:
                raise
            raise CheckpointError(
                f"{self.folder}: its backbone {wanted['id']} is not where it was; name it with --backbone ({error})"
            ) from error
        if given.fingerprint != wanted["fingerprint"]:
            raise CheckpointError(
                f"{self.folder}: fitted with backbone {wanted['id']} (weights {wanted['fingerprint'][:12]}), "
                f"not with {given.spec.id} (weights {given.fingerprint[:12]}); name the right one"
            )
        path = self.folder / _WEIGHTS
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: missing or damaged ({error})") from error
        if not self.modalities:
            head = new_head(self.recipe, given, self.objective, self.provenance)
            load_exactly(head, tensors, path)
            return self.with_head(head)
        heads = new_heads(self.recipe, given, [*self.modalities])
        load_exactly(nn.ModuleDict({"heads": nn.ModuleList(heads)}), tensors, path)
        each = zip(self.modalities.items(), heads, strict=True)
        return Fitted.joint({name: saved.with_head(head) for (name, saved), head in each})

    def with_head(self, head: Scorer) -> Fitted:
        """The fitted state of a head that has its tensors."""
        return Fitted(head, self.recipe, self.provenance, self.calibration, self.familiarity, self.history, self.series)


def save(folder: Path, fitted: Fitted, backbone: Backbone, objective: str) -> None:
    """Write a detector's folder whole; a detector that is there is replaced, and kept until the new one is written.

    Raises:
        DataError: The folder holds something else, or cannot be written.
    """
    check_target(folder)
    spec = backbone.spec
    facts: dict[str, Any] = {
        "format": JOINT if fitted.modalities else FORMAT,
        "recipe": fitted.recipe.to_dict(),
        "objective": objective,
        "backbone": {
            "id": spec.id,
            "source": spec.source,
            "fingerprint": backbone.fingerprint,
            "dtype": str(backbone.dtype).removeprefix("torch."),
        },
        **_learned(fitted),
    }
    if fitted.modalities:
        facts["modalities"] = {name: _learned(one) for name, one in fitted.modalities.items()}
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors_of(fitted.head).items()}
    try:
        with new_folder(folder, replace=True) as staging:
            save_file(tensors, staging / _WEIGHTS, metadata={"format": str(facts["format"])})
            (staging / _FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            (staging / _CARD).write_text(model_card(fitted, spec, objective), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder}: the detector cannot be written there ({error})") from error


def _learned(fitted: Fitted) -> dict[str, Any]:
    return {
        "calibration": fitted.calibration.to_dict() if fitted.calibration else None,
        "familiarity": fitted.familiarity.to_dict() if fitted.familiarity else None,
        "provenance": fitted.provenance.to_dict(),
        "history": fitted.history,
        "series": fitted.series.to_dict() if fitted.series else None,
    }


def read(folder: Path) -> Saved:
    """Read what a detector's folder says.

    Raises:
        CheckpointError: Not a detector, of another format version, or damaged.
    """
    facts = _read_facts(folder)
    try:
        recipe = Recipe.from_dict(facts["recipe"])
        saved = Saved(folder, recipe, facts["objective"], facts["backbone"], **_read_learned(facts))
        if facts["format"] == FORMAT:
            return saved
        return replace(saved, modalities=_read_modalities(facts["modalities"], saved))
    except RecipeError as error:
        raise CheckpointError(f"{folder / _FACTS}: {error}") from error
    except (MadCLIPError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder / _FACTS}: damaged ({error})") from error


def _read_modalities(facts: dict[str, Any], whole: Saved) -> dict[str, Saved]:
    each = {name: replace(whole, objective=name, **_read_learned(one)) for name, one in facts.items()}
    widths = {len(one.familiarity.features[0]) if one.familiarity else 0 for one in each.values()}
    if len(widths) != 1 or 0 in widths or not all(name.strip() for name in each):
        raise CheckpointError("its modalities make no sense")
    return each


def _read_learned(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "provenance": _provenance(facts),
        "calibration": Calibration.from_dict(facts["calibration"]) if facts["calibration"] else None,
        "familiarity": Familiarity.from_dict(facts["familiarity"]) if facts["familiarity"] else None,
        "history": facts["history"],
        "series": Calibration.from_dict(facts["series"]) if facts.get("series") else None,
    }


def _provenance(facts: dict[str, Any]) -> Provenance:
    """Where a detector came from; one that was saved without thresholds before it had to say why says that."""
    known = Provenance.from_dict(facts["provenance"])
    if facts["calibration"] or known.uncalibrated:
        return known
    return replace(known, uncalibrated="not calibrated: it was saved without thresholds")


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / _FACTS
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        version = facts["format"]
    except FileNotFoundError:
        raise CheckpointError(f"{folder}: not a detector (no {_FACTS}); `madclip fit` writes one") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    if version not in (FORMAT, JOINT):
        advice = "update madclip" if isinstance(version, int) and version > JOINT else "fit it anew"
        raise CheckpointError(f"{path}: format version {version}, this madclip reads {FORMAT} and {JOINT}; {advice}")
    for name, kinds in _KINDS.items():
        if not isinstance(facts.get(name), kinds):
            raise CheckpointError(f"{path}: damaged (no {name} in it that makes sense)")
    if not facts["objective"].strip():
        raise CheckpointError(f"{path}: damaged (the objective is empty)")
    if not all(isinstance(facts["backbone"].get(name), str) for name in ("id", "source", "fingerprint", "dtype")):
        raise CheckpointError(f"{path}: damaged (it does not say which backbone)")
    return facts  # type: ignore[no-any-return]


def tensors_of(head: nn.Module) -> dict[str, torch.Tensor]:
    """What a head learned, by name; what several share is there once, under the first of its names."""
    named = head.state_dict(keep_vars=True)
    first = {id(value): name for name, value in reversed(named.items())}
    return {name: named[name] for name in reversed(first.values())}


def load_exactly(head: nn.Module, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Give a head tensors whose names, shapes and types must be its own.

    Raises:
        CheckpointError: They are not, or one is not finite.
    """
    expected = tensors_of(head)
    if set(tensors) != set(expected):
        raise CheckpointError(f"{path}: holds {sorted(tensors)}, this recipe has {sorted(expected)}")
    for name, value in expected.items():
        if tensors[name].shape != value.shape:
            raise CheckpointError(
                f"{path}: {name} has shape {list(tensors[name].shape)}, "
                f"this recipe and backbone need {list(value.shape)}"
            )
        if not torch.isfinite(tensors[name]).all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinite values")
    head.load_state_dict(tensors, strict=False)  # what is shared has further names


def model_card(fitted: Fitted, spec: BackboneSpec, objective: str) -> str:
    """What a reader of a detector's folder wants to know, in Markdown."""
    facts = fitted.provenance
    shots = (
        f"converted from a published checkpoint (SHA-256 {facts.sha256[:12]})"
        if facts.source
        else f"{facts.learned}, {facts.masks} with masks, seed {facts.seed}"
        if facts.abnormal
        else facts.learned
    )
    head = f"{'segmentation' if fitted.readout.has_masks else 'detection'} head"
    licence = {True: "commercial use allowed", False: "no commercial use", None: "commercial use not known"}
    threshold = f"{fitted.calibration.threshold:.4f}" if fitted.calibration else facts.uncalibrated or "none"
    return (
        f"# Anomaly detector: {objective}\n\n"
        f"- Made by madclip {facts.madclip}, recipe `{fitted.recipe.name}`\n"
        f"- Backbone: {spec.id}, licence {spec.licence} ({licence[spec.commercial]})\n"
        f"- Learned from: {shots}\n"
        f"- Image score: {fitted.readout.rule}; map: {_MAPS.get(facts.learned_from, head)}\n"
        f"- Threshold: {threshold}\n\n"
        'Load it with `MadCLIP.load("this folder")` or `madclip predict`.\n\n'
        "It ranks images by how anomalous they look beside its few examples. It is not a medical device.\n"
    )
