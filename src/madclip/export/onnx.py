"""ONNX: one file for any runtime, float32 or int8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from madclip.export.libraries import load_library, need_library
from madclip.export.quantise import quantise

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from torch.export import ExportedProgram

MODEL = "model.onnx"
BATCH = "batch"
"""Name of the axis of images."""


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
    if precision == "int8":
        need_library("nncf", "openvino")
    import torch

    made = torch.onnx.export(
        program, dynamo=True, input_names=["pixels"], output_names=["score", "map", "pooled"], verbose=False
    )
    assert made is not None  # noqa: S101
    for node in made.model.graph:
        node.metadata_props.clear()  # stack traces, with the paths of this machine
    _name_batch(made.model.graph)
    made.save(folder / MODEL)
    if precision == "int8":
        quantise(folder / MODEL, images)


def _name_batch(graph: Any) -> None:
    """Name the axis of images, which PyTorch numbers."""
    import onnx_ir

    old = graph.inputs[0].shape[0]
    for value in (*graph.inputs, *graph.outputs, *(output for node in graph for output in node.outputs)):
        if value.shape is not None:
            dims = [onnx_ir.SymbolicDim(BATCH) if dim == old else dim for dim in value.shape]
            value.shape = onnx_ir.Shape(dims)


class ONNXModel:
    """An exported model in ONNX Runtime, on the CPU.

    Args:
        folder: Where `write` put it.

    Attributes:
        size: Side of the images that it takes, pixels.
    """

    def __init__(self, folder: Path) -> None:
        runtime = load_library("onnxruntime", "onnx")
        self._session: Any = runtime.InferenceSession(str(folder / MODEL), providers=["CPUExecutionProvider"])
        self.size = int(self._session.get_inputs()[0].shape[-1])

    def __call__(self, pixels: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Scores [B], maps [B, S, S] and pooled tokens [B, features] of pixels [B, 3, S, S] in 0..1."""
        found: list[npt.NDArray[np.float32]] = self._session.run(None, {"pixels": pixels})
        return found
