"""Detectors on disk: the folder that MadCLIP writes, and the checkpoints that the authors of the paper published."""

from __future__ import annotations

import json
import shutil
import tempfile
from hashlib import sha256
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from madclip.calibration.calibration import Calibration
from madclip.calibration.familiarity import Familiarity
from madclip.errors import CheckpointError, DataError, MadCLIPError
from madclip.head.head import Head
from madclip.recipe import Recipe

if TYPE_CHECKING:
    from madclip.backbones.spec import Backbone
    from madclip.detector import MadCLIP

    Detector = TypeVar("Detector", bound=MadCLIP)

FORMAT = 1
_FACTS, _WEIGHTS, _CARD = "detector.json", "head.safetensors", "README.md"
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
_BRANCHES = ("normal", "abnormal")


def check_target(folder: Path) -> None:
    """A detector may go where there is nothing, an empty folder, or a detector and nothing else.

    Raises:
        DataError: There is something else, or no folder can be made there.
    """
    if folder.name in ("", ".."):
        raise DataError(f"{folder}: give another folder, by its own name")
    if folder.exists() and not (
        folder.is_dir() and {p.name for p in folder.iterdir()} <= {_FACTS, _WEIGHTS, _CARD, _ENGINES}
    ):
        raise DataError(f"{folder}: not empty and not a detector; choose another folder")
    above = next(parent for parent in folder.absolute().parents if parent.exists())
    if not above.is_dir():
        raise DataError(f"{folder}: cannot be made, {above} is not a folder; choose another folder")


def save_detector(detector: MadCLIP, folder: Path) -> None:
    """Write a detector's folder next to its final place, then rename it there; a detector that is there is replaced.

    Raises:
        DataError: The folder holds something else, or cannot be written.
    """
    head = detector._fitted()  # noqa: SLF001
    check_target(folder)
    spec = detector.backbone.spec
    facts = {
        "format": FORMAT,
        "recipe": detector.recipe.to_dict(),
        "objective": detector.objective,
        "backbone": {
            "id": spec.id,
            "source": spec.source,
            "fingerprint": detector.backbone.fingerprint,
            "dtype": str(detector.backbone.dtype).removeprefix("torch."),
        },
        "calibration": detector.calibration.to_dict() if detector.calibration else None,
        "familiarity": detector.familiarity.to_dict() if detector.familiarity else None,
        "provenance": detector.provenance,
        "history": detector.history.epochs,
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    staging = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        save_file(tensors, staging / _WEIGHTS, metadata={"format": str(FORMAT)})
        (staging / _FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        (staging / _CARD).write_text(model_card(detector), encoding="utf-8")
        staging.chmod(0o755)
        if folder.exists():
            old = staging.with_name(staging.name + ".old")
            folder.rename(old)
            try:
                staging.rename(folder)
            except BaseException:
                old.rename(folder)
                raise
            shutil.rmtree(old)
        else:
            staging.rename(folder)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder}: the detector cannot be written there ({error})") from error
    finally:
        if staging and staging.exists():
            shutil.rmtree(staging, ignore_errors=True)


def load_detector(kind: type[Detector], folder: Path, backbone: str | Path | Backbone | None, device: str) -> Detector:
    """Read a detector's folder; see MadCLIP.load."""
    facts = _read_facts(folder)
    wanted = facts["backbone"]
    try:
        recipe = Recipe.from_dict(facts["recipe"])
        calibration = Calibration.from_dict(facts["calibration"]) if facts["calibration"] else None
        familiarity = Familiarity.from_dict(facts["familiarity"]) if facts["familiarity"] else None
    except (MadCLIPError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / _FACTS}: damaged ({error})") from error
    try:
        source = wanted["source"] if backbone is None else backbone
        detector = kind(recipe, backbone=source, objective=facts["objective"], device=device, dtype=wanted["dtype"])
    except CheckpointError as error:
        if backbone is not None:
            raise
        raise CheckpointError(
            f"{folder}: its backbone {wanted['id']} is not where it was; name it with --backbone ({error})"
        ) from error
    given = detector.backbone
    if given.fingerprint != wanted["fingerprint"]:
        raise CheckpointError(
            f"{folder}: fitted with backbone {wanted['id']} (weights {wanted['fingerprint'][:12]}), "
            f"not with {given.spec.id} (weights {given.fingerprint[:12]}); name the right one"
        )
    head = Head(recipe, detector.backbone, facts["objective"])
    path = folder / _WEIGHTS
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: missing or damaged ({error})") from error
    _load_exactly(head, tensors, path)
    detector.head = head
    detector.provenance = facts["provenance"]
    detector.history.epochs = facts["history"]
    detector.calibration, detector.familiarity = calibration, familiarity
    return detector


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


def _load_exactly(head: Head, tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Names, shapes and types must be those of the recipe's head."""
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


def model_card(detector: MadCLIP) -> str:
    """What a reader of a detector's folder wants to know, in Markdown."""
    spec, facts = detector.backbone.spec, detector.provenance
    shots = (
        f"{facts['normal']} normal and {facts['abnormal']} abnormal images, {facts['masks']} with masks, "
        f"seed {facts['seed']}"
        if "normal" in facts
        else f"converted from a published checkpoint (SHA-256 {facts.get('sha256', '')[:12]})"
    )
    licence = {True: "commercial use allowed", False: "no commercial use", None: "commercial use not known"}
    return (
        f"# Anomaly detector: {detector.objective}\n\n"
        f"- Made by madclip {facts.get('madclip', '')}, recipe `{detector.recipe.name}`\n"
        f"- Backbone: {spec.id}, licence {spec.licence} ({licence[spec.commercial]})\n"
        f"- Learned from: {shots}\n"
        f"- Image score: {detector.image_score}; "
        f"map: {'segmentation' if detector.has_masks else 'detection'} head\n\n"
        'Load it with `MadCLIP.load("this folder")` or `madclip predict`.\n\n'
        "It ranks images by how anomalous they look beside its few examples. It is not a medical device.\n"
    )


def load_released(detector: Detector, path: Path) -> Detector:
    """Fill a detector of the `released` recipe from a published checkpoint; see MadCLIP.from_released."""
    states = _read_released(path)
    backbone = detector.backbone
    for name in ("prompt_maker_normal", "prompt_maker_abnormal"):
        _check_same_text_tower(states[name], backbone, path)
    head = Head(detector.recipe, backbone, detector.objective)
    taps = len(backbone.spec.taps)
    try:
        layers = [
            [
                [states[f"{branch}_det_adapters"][f"{tap}.fc{layer}.0.weight"] for layer in (1, 2, 3)]
                for branch in _BRANCHES
            ]
            for tap in range(taps)
        ]
        contexts = [
            [
                states[f"prompt_maker_{branch}"][f"prompt_learner.ctx.{branch}_{position}"]
                for position in detector.recipe.positions
            ]
            for branch in _BRANCHES
        ]
        tensors = {
            "adapters.shared": torch.stack([torch.stack([b[0].float() for b in tap]) for tap in layers]),
            "adapters.heads": torch.stack(
                [torch.stack([torch.stack([b[1].float(), b[2].float()]) for b in tap]) for tap in layers]
            ),
            "prompts.contexts": torch.stack([torch.stack([c.float() for c in group]) for group in contexts]),
        }
    except KeyError as error:
        raise CheckpointError(f"{path}: not a released checkpoint (no tensor {error})") from None
    except (RuntimeError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: tensors do not fit together ({error})") from error
    _load_exactly(head, tensors, path)
    detector.head = head
    detector.provenance = {
        "source": "released checkpoint",
        "sha256": sha256(path.read_bytes()).hexdigest(),
        "masks": True,  # the released code reads maps off the segmentation head, whatever it was trained on
    }
    return detector


def _read_released(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    wanted = [f"{branch}_det_adapters" for branch in _BRANCHES] + [f"prompt_maker_{branch}" for branch in _BRANCHES]
    try:
        states = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:  # noqa: BLE001 -- a damaged pickle may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a checkpoint of plain tensors, or damaged ({reason})") from None
    if not isinstance(states, dict) or not all(isinstance(states.get(name), dict) for name in wanted):
        raise CheckpointError(f"{path}: not a released checkpoint; it needs the state dicts {', '.join(wanted)}")
    found = {name: states[name] for name in wanted}
    if not all(isinstance(value, torch.Tensor) for state in found.values() for value in state.values()):
        raise CheckpointError(f"{path}: not a released checkpoint; its state dicts hold something else than tensors")
    return found


def _check_same_text_tower(state: dict[str, torch.Tensor], backbone: Backbone, path: Path) -> None:
    """Published files carry a copy of CLIP's text tower: its token embeddings tell which CLIP it was."""
    for name, table in state.items():
        if not name.endswith("token_embedding.weight"):
            continue
        ids = torch.arange(min(256, len(table)), device=backbone.device)
        own = backbone.embed_tokens(ids[None])[0].float().cpu()
        # Published tensors may be in half precision.
        if own.shape[1:] != table.shape[1:] or not torch.allclose(own, table[: len(own)].float(), atol=2e-3):
            raise CheckpointError(
                f"{path}: trained with another CLIP than {backbone.spec.id} (its copy of the text tower differs); "
                "the published detectors need OpenAI's ViT-L/14@336px"
            )
