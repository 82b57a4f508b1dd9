"""A detector that computes with an exported model: the same predictions, another engine underneath."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from madclip.errors import CheckpointError, MadCLIPError
from madclip.export.engines import FACTS, PRECISIONS, Format, head_fingerprint, open_model
from madclip.files import digest

if TYPE_CHECKING:
    from madclip.detector import MadCLIP

ENGINES = "engines"
"""Folder in a detector's own where exports lie that `auto` finds."""
_BEST_FIRST = [(engine, precision) for engine in ("openvino", "onnx") for precision in ("int8", "bf16", "fp32")]


def choose_engine(detector: MadCLIP, folder: Path, wanted: str) -> tuple[Path | None, list[str]]:
    """The export that a detector is to compute with, or None for torch; and what was wrong with others.

    Args:
        detector: As loaded.
        folder: Where it was loaded from; exports lie in `engines/` there.
        wanted: `torch`, the detector itself; `openvino` or `onnx`, the fastest precision that is there; `auto`, the
            fastest of all, which passes over exports that do not fit and falls back on torch; or an export's folder.

    Raises:
        CheckpointError: An export was asked for that is not there, or belongs to another detector.
    """
    if wanted == "torch":
        return None, []
    if wanted not in ("auto", *PRECISIONS):
        path = Path(wanted)
        if not (path / FACTS).is_file():
            raise CheckpointError(f"--engine {wanted}: give auto, {', '.join(PRECISIONS)}, or an export's folder")
        check_engine(detector, path)
        return path, []
    passed = []
    for engine, precision in _BEST_FIRST:
        path = folder / ENGINES / f"{engine}-{precision}"
        if wanted not in ("auto", engine) or not (path / FACTS).is_file():
            continue
        try:
            check_engine(detector, path)
        except CheckpointError as error:
            passed.append(str(error))
        else:
            return path, passed
    if wanted == "auto":
        return None, passed
    if passed:
        raise CheckpointError(passed[0])
    raise CheckpointError(
        f"{folder}: there is no {wanted} export; make one with: madclip export {folder} --data SHOTS --format {wanted}"
    )


def check_engine(detector: MadCLIP, folder: Path) -> dict[str, Any]:
    """What engine.json of an export says, once its files are those that were exported.

    Raises:
        CheckpointError: It cannot be read, the export was made of another detector, or a file has changed.
    """
    path = folder / FACTS
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        engine: Format = facts["format"]
        known = facts["precision"] in PRECISIONS[engine]
        same = (facts["backbone"], facts["head"]) == (detector.backbone.fingerprint, head_fingerprint(detector))
        shape = (facts["image_size"], facts["aspect"]) == (detector.recipe.image_size, detector.recipe.aspect)
        rule = facts["image_score"] == detector.image_score
        files, _ = dict(facts["files"]), list(facts["seen"])
        known = known and bool(files)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged or of another version ({error!r}); export again") from error
    if not (known and same and shape and rule):
        raise CheckpointError(
            f"{folder}: the export of another detector or modality, or of this one before it changed; export again"
        )
    _check_files(folder, files)
    return facts


def _check_files(folder: Path, files: dict[str, str]) -> None:
    """Whether the files of an export are, bit for bit, those that were written."""
    for name, known in files.items():
        file = folder / name
        try:
            same = Path(name).name == name and digest(file) == known
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read ({error.strerror}); export again") from error
        if not same:
            raise CheckpointError(f"{file}: not the file that was exported, by its SHA-256; export again")


def use_engine(detector: MadCLIP, folder: Path) -> dict[str, Any]:
    """Let a detector compute with an export; its thresholds and probabilities stay as they are.

    Images that the export was checked or calibrated on, and that are not shots, are seen from then on.

    Returns:
        What engine.json says.

    Raises:
        CheckpointError: See `check_engine`; or the model cannot be read.
        MissingExtraError: The engine's library is missing.
    """
    facts = check_engine(detector, folder)
    if facts["format"] == "torch":
        raise CheckpointError(f"{folder}: a program of torch is for use elsewhere; here --engine torch does the same")
    try:
        model = open_model(folder, facts["format"], facts["precision"])
    except MadCLIPError:
        raise
    except Exception as error:  # whatever the engine raises on a damaged file
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{folder}: the model cannot be read ({reason}); export again") from error

    def run(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        score, maps, pooled = (torch.from_numpy(found.copy()) for found in model(pixels.float().cpu().numpy()))
        return score, maps, pooled

    fitted = detector.state
    if facts["seen"]:
        seen = tuple(sorted({*fitted.provenance.calibrated_on, *facts["seen"]}))
        detector.fitted = replace(fitted, provenance=replace(fitted.provenance, calibrated_on=seen))
    detector.engine = run
    return facts
