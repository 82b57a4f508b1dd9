"""Write a detector for another engine: one model from pixels to score and map, checked before it is kept."""

from __future__ import annotations

import json
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import torch

from madclip.errors import DataError, RecipeError
from madclip.export import onnx, openvino, pt2
from madclip.export.check import agreement, require
from madclip.export.graph import DetectorGraph, in_float32, traced
from madclip.export.images import check_images
from madclip.files import digest, new_folder, write_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from madclip.detector import MadCLIP

Format: TypeAlias = Literal["openvino", "onnx", "torch"]
Precision: TypeAlias = Literal["fp32", "bf16", "int8"]
PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "torch": ("fp32", "bf16"),
    "openvino": ("fp32", "bf16", "int8"),
    "onnx": ("fp32", "int8"),
}
BATCH = 8
FACTS = "engine.json"


class Model(Protocol):
    """A model in an engine."""

    size: int

    def __call__(self, pixels: npt.NDArray[np.float32], /) -> list[npt.NDArray[np.float32]]:
        """Scores [B], maps [B, S, S] and pooled tokens [B, features] of pixels [B, 3, S, S] in 0..1."""


class CheckedModel:
    """A model that refuses what it cannot answer, and answers nothing that is not a number.

    Args:
        model: As an engine runs it.
        name: What errors begin with: its folder.

    Attributes:
        size: Side of the images that it takes, pixels.
    """

    def __init__(self, model: Model, name: str) -> None:
        self._model, self._name, self.size = model, name, model.size

    def __call__(self, pixels: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Scores [B], maps [B, S, S] and pooled tokens [B, features] of pixels [B, 3, S, S] in 0..1.

        Raises:
            DataError: The pixels are of another size, or a pixel or a result is not finite.
        """
        if pixels.ndim != 4 or pixels.shape[1:] != (3, self.size, self.size):
            wanted = f"[B, 3, {self.size}, {self.size}]"
            raise DataError(f"{self._name}: takes pixels {wanted}, not {list(pixels.shape)}; resize as the recipe says")
        if not np.isfinite(pixels).all():
            raise DataError(f"{self._name}: was given pixels that are not finite (NaN or infinity)")
        found = self._model(np.ascontiguousarray(pixels, np.float32))
        if not all(np.isfinite(part).all() for part in found):
            raise DataError(f"{self._name}: the engine computed values that are not finite; use --engine torch")
        return found


def export_engine(
    detector: MadCLIP,
    data: Path | Sequence[Path] | None,
    out: Path,
    *,
    engine: Format = "openvino",
    precision: Precision = "fp32",
) -> dict[str, Any]:
    """Write a detector for another engine, if it says there what the detector says in float32.

    Input `pixels` [B, 3, S, S] in 0..1, S the recipe's size; outputs `score` [B], `map` [B, S, S] and `pooled`
    [B, features]; B is free. An image with a pixel outside 0..1 or NaN gives NaN.

    Args:
        detector: Fitted.
        data: Images for the check and for the calibration of int8, with or without labels, in one place or several:
            see `check_images`. None takes phantoms, which says less.
        out: A new folder: the model and engine.json.
        engine: openvino, onnx or torch.
        precision: fp32, bf16 or int8; see `PRECISIONS`.

    Returns:
        What engine.json holds.

    Raises:
        RecipeError: The engine does not have this precision, or the detector is not fitted.
        DataError: No image in `data`, or the folder exists or cannot be written.
        CheckpointError: The model disagrees with the detector; nothing is written.
        MissingExtraError: A library is missing.
    """
    if precision not in PRECISIONS.get(engine, ()):
        known = "; ".join(f"{name}: {', '.join(kinds)}" for name, kinds in PRECISIONS.items())
        raise RecipeError(f"there is no {precision} for {engine}; there are {known}")
    if out.exists():
        raise DataError(f"{out}: exists already; choose a new folder")
    original = in_float32(detector)
    images = check_images(original, data)
    try:
        with new_folder(out) as staging:
            write_model(original, engine, precision, images.pixels, staging)
            model = open_model(staging, engine, precision)
            threshold = original.calibration.threshold if original.calibration else None
            expected = _run(lambda batch: [t.numpy() for t in original.score(torch.from_numpy(batch))], images.pixels)
            answered = _run(model, images.pixels)
            found = agreement(expected, answered, threshold=threshold, shots=images.shots)
            require(found, precision)
            del model  # it holds its files open
            facts = {
                "format": engine,
                "precision": precision,
                "image_size": original.recipe.image_size,
                "aspect": original.recipe.aspect,
                "image_score": original.image_score,
                "backbone": original.backbone.fingerprint,
                "head": head_fingerprint(original),
                "check": asdict(found) | {"note": images.note},
                "seen": list(images.others),
                "files": {path.name: digest(path) for path in sorted(staging.iterdir())},
            }
            write_whole(staging / FACTS, json.dumps(facts, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{out}: the model cannot be written there ({error})") from error
    return facts


def write_model(
    detector: MadCLIP, engine: Format, precision: Precision, images: npt.NDArray[np.float32], folder: Path
) -> None:
    """Write the model of a detector in float32, unchecked; int8 is calibrated on images [N, 3, S, S] in 0..1.

    Raises:
        MissingExtraError: A library is missing.
    """
    half = engine == "torch" and precision == "bf16"
    program = traced(DetectorGraph(detector, torch.bfloat16 if half else torch.float32))
    if engine == "torch":
        pt2.write(program, folder)
    elif engine == "onnx":
        onnx.write(program, precision, images, folder)
    else:
        openvino.write(program, precision, images, folder)


def open_model(folder: Path, engine: Format, precision: Precision) -> CheckedModel:
    """A written model, ready to run; of format torch only one that this process wrote.

    Raises:
        MissingExtraError: A library is missing.
    """
    model: Model
    if engine == "torch":
        model = pt2.PT2Model(folder)
    else:
        model = onnx.ONNXModel(folder) if engine == "onnx" else openvino.OpenVINOModel(folder, precision)
    return CheckedModel(model, str(folder))


def head_fingerprint(detector: MadCLIP) -> str:
    """SHA-256 over what was learned, by name."""
    digest = sha256()
    for name, value in sorted(detector.state.head.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _run(
    model: Callable[[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]]], pixels: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    parts = [model(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
