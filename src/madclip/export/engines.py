"""Write a detector for another engine: one model from pixels to score and map, checked before it is kept."""

from __future__ import annotations

import json
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch

from madclip.data.arrays import read_pixels
from madclip.data.geometry import fit_pixels
from madclip.data.inputs import expand_inputs
from madclip.data.ref import ImageRef
from madclip.errors import DataError, RecipeError
from madclip.export import onnx, openvino, pt2
from madclip.export.check import agreement, require
from madclip.export.graph import DetectorGraph, in_float32, traced
from madclip.files import new_folder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

    from madclip.detector import MadCLIP

    Model: TypeAlias = Callable[[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]]]

Format: TypeAlias = Literal["openvino", "onnx", "torch"]
Precision: TypeAlias = Literal["fp32", "bf16", "int8"]
PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "torch": ("fp32", "bf16"),
    "openvino": ("fp32", "bf16", "int8"),
    "onnx": ("fp32", "int8"),
}
OTHERS = 64
"""Images of a folder that holds none of the shots."""
BATCH = 8
FACTS = "engine.json"


def export_engine(
    detector: MadCLIP, data: Path, out: Path, *, engine: Format = "openvino", precision: Precision = "fp32"
) -> dict[str, Any]:
    """Write a detector for another engine, if it says there what the detector says in float32.

    Input `pixels` [B, 3, S, S] in 0..1, S the recipe's size; outputs `score` [B], `map` [B, S, S] and `pooled`
    [B, features]; B is free.

    Args:
        detector: Fitted.
        data: Images for the check and for the calibration of int8: those that are the detector's shots or, where there
            are none, the first `OTHERS` that can be read.
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
    pixels, shots = check_images(original, data)
    try:
        with new_folder(out) as staging:
            write_model(original, engine, precision, pixels, staging)
            model = open_model(staging, engine, precision)
            threshold = original.calibration.threshold if original.calibration else None
            expected = _run(lambda batch: [t.numpy() for t in original.score(torch.from_numpy(batch))], pixels)
            found = agreement(expected, _run(model, pixels), threshold=threshold, shots=shots)
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
                "check": asdict(found),
            }
            (staging / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
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


def open_model(folder: Path, engine: Format, precision: Precision) -> Model:
    """A written model, ready to run; of format torch only one that this process wrote.

    Raises:
        MissingExtraError: A library is missing.
    """
    if engine == "torch":
        return pt2.PT2Model(folder)
    return onnx.ONNXModel(folder) if engine == "onnx" else openvino.OpenVINOModel(folder, precision)


def check_images(detector: MadCLIP, data: Path) -> tuple[npt.NDArray[np.float32], bool]:
    """Pixels [N, 3, S, S] of the images in `data` that are shots, and True; else of the first others, and False.

    Raises:
        DataError: There is no image that can be read.
    """
    files, known = expand_inputs([data]).images, set(detector.provenance.shots)
    shots = [file for file in files if ImageRef(file).digest() in known]
    fitted: list[npt.NDArray[np.float32]] = []
    for file in shots or files:
        try:
            image = read_pixels(file, detector.recipe.view)
        except DataError:
            if shots:
                raise
            continue
        fitted.append(fit_pixels(image, detector.recipe.view).numpy())
        if not shots and len(fitted) == OTHERS:
            break
    if not fitted:
        raise DataError(f"{data}: none of its images can be read")
    return np.stack(fitted), bool(shots)


def head_fingerprint(detector: MadCLIP) -> str:
    """SHA-256 over what was learned, by name."""
    digest = sha256()
    for name, value in sorted(detector.state.head.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _run(model: Model, pixels: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    parts = [model(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
