"""Detectors on disk: a folder of detector.json, head.safetensors and README.md."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from madclip.calibration.calibration import Calibration
from madclip.calibration.familiarity import Familiarity
from madclip.errors import CheckpointError, DataError, MadCLIPError, RecipeError
from madclip.files import new_folder
from madclip.recipe import Recipe
from madclip.state import Fitted, Provenance, new_head

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from madclip.backbones.spec import Backbone, BackboneSpec
    from madclip.head.scorer import Scorer
    from madclip.training.fit import History

FORMAT = 1
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
        head = new_head(self.recipe, given, self.objective, self.provenance)
        path = self.folder / _WEIGHTS
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: missing or damaged ({error})") from error
        load_exactly(head, tensors, path)
        return Fitted(head, self.recipe, self.provenance, self.calibration, self.familiarity, self.history, self.series)


def save(folder: Path, fitted: Fitted, backbone: Backbone, objective: str) -> None:
    """Write a detector's folder whole; a detector that is there is replaced, and kept until the new one is written.

    Raises:
        DataError: The folder holds something else, or cannot be written.
    """
    check_target(folder)
    spec = backbone.spec
    facts = {
        "format": FORMAT,
        "recipe": fitted.recipe.to_dict(),
        "objective": objective,
        "backbone": {
            "id": spec.id,
            "source": spec.source,
            "fingerprint": backbone.fingerprint,
            "dtype": str(backbone.dtype).removeprefix("torch."),
        },
        "calibration": fitted.calibration.to_dict() if fitted.calibration else None,
        "familiarity": fitted.familiarity.to_dict() if fitted.familiarity else None,
        "provenance": fitted.provenance.to_dict(),
        "history": fitted.history,
        "series": fitted.series.to_dict() if fitted.series else None,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in fitted.head.state_dict().items()}
    try:
        with new_folder(folder, replace=True) as staging:
            save_file(tensors, staging / _WEIGHTS, metadata={"format": str(FORMAT)})
            (staging / _FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            (staging / _CARD).write_text(model_card(fitted, spec, objective), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder}: the detector cannot be written there ({error})") from error


def read(folder: Path) -> Saved:
    """Read what a detector's folder says.

    Raises:
        CheckpointError: Not a detector, of another format version, or damaged.
    """
    facts = _read_facts(folder)
    try:
        return Saved(
            folder=folder,
            recipe=Recipe.from_dict(facts["recipe"]),
            objective=facts["objective"],
            backbone=facts["backbone"],
            provenance=_provenance(facts),
            calibration=Calibration.from_dict(facts["calibration"]) if facts["calibration"] else None,
            familiarity=Familiarity.from_dict(facts["familiarity"]) if facts["familiarity"] else None,
            history=facts["history"],
            series=Calibration.from_dict(facts["series"]) if facts.get("series") else None,
        )
    except RecipeError as error:
        raise CheckpointError(f"{folder / _FACTS}: {error}") from error
    except (MadCLIPError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / _FACTS}: damaged ({error})") from error


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
    if version != FORMAT:
        advice = "update madclip" if isinstance(version, int) and version > FORMAT else "fit it anew"
        raise CheckpointError(f"{path}: format version {version}, this madclip reads {FORMAT}; {advice}")
    for name, kinds in _KINDS.items():
        if not isinstance(facts.get(name), kinds):
            raise CheckpointError(f"{path}: damaged (no {name} in it that makes sense)")
    if not facts["objective"].strip():
        raise CheckpointError(f"{path}: damaged (the objective is empty)")
    if not all(isinstance(facts["backbone"].get(name), str) for name in ("id", "source", "fingerprint", "dtype")):
        raise CheckpointError(f"{path}: damaged (it does not say which backbone)")
    return facts  # type: ignore[no-any-return]


def load_exactly(head: Scorer, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Give a head tensors whose names, shapes and types must be its own.

    Raises:
        CheckpointError: They are not, or one is not finite.
    """
    expected = head.state_dict()
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
    head.load_state_dict(tensors)


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
