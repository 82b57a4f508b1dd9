"""ONNX: one file for any runtime, float32 or int8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from madclip.export.quantise import quantise
from madclip.export.quiet import load_library, quiet

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from torch.export import ExportedProgram

MODEL = "model.onnx"


def write(program: ExportedProgram, precision: str, images: npt.NDArray[np.float32], folder: Path) -> None:
    """Write model.onnx; weights too large for one file lie beside it.

    Args:
        program: The traced graph.
        precision: fp32 or int8.
        images: [N, 3, S, S] in 0..1, which int8 is calibrated on.
        folder: Where to.

    Raises:
        MissingExtraError: onnx, onnxscript or, for int8, NNCF is not installed.
    """
    for name in ("onnx", "onnxscript"):
        load_library(name, "onnx")
    import torch

    nncf = load_library("nncf", "openvino") if precision == "int8" else None
    with quiet():
        made = torch.onnx.export(
            program, dynamo=True, input_names=["pixels"], output_names=["score", "map", "pooled"], verbose=False
        )
        assert made is not None  # noqa: S101
        for node in made.model.graph:
            node.metadata_props.clear()  # stack traces, with the paths of this machine
        made.save(folder / MODEL)
        if nncf is not None:
            _quantize(nncf, folder / MODEL, images)


def _quantize(nncf: Any, path: Path, images: npt.NDArray[np.float32]) -> None:
    onnx = load_library("onnx", "onnx")
    model = quantise(nncf, onnx.load(path), [{"pixels": image[None]} for image in images], interpolation="Resize")
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    onnx.save(model, path)


class ONNXModel:
    """An exported model in ONNX Runtime, on the CPU.

    Args:
        folder: Where `write` put it.
    """

    def __init__(self, folder: Path) -> None:
        runtime = load_library("onnxruntime", "onnx")
        with quiet():
            self._session: Any = runtime.InferenceSession(str(folder / MODEL), providers=["CPUExecutionProvider"])

    def __call__(self, pixels: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Scores [B], maps [B, S, S] and pooled tokens [B, features] of pixels [B, 3, S, S] in 0..1."""
        found: list[npt.NDArray[np.float32]] = self._session.run(None, {"pixels": pixels})
        return found
