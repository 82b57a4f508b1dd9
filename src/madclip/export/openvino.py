"""OpenVINO: float32, bfloat16 and int8 on CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from madclip.errors import RecipeError
from madclip.export.libraries import load_library, need_library
from madclip.export.quantise import quantise

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from torch.export import ExportedProgram

MODEL = "model.xml"


def write(program: ExportedProgram, precision: str, images: npt.NDArray[np.float32], folder: Path) -> None:
    """Write model.xml and model.bin.

    Args:
        program: The traced graph.
        precision: fp32, bf16 (float32 weights, computed in bfloat16) or int8.
        images: [N, 3, S, S] in 0..1: they give the size, and int8 is calibrated on them.
        folder: Where to.

    Raises:
        MissingExtraError: OpenVINO or, for int8, NNCF is not installed.
        RecipeError: This processor has no bfloat16, so that it cannot be checked.
    """
    ov = load_library("openvino", "openvino")
    if precision == "bf16" and "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RecipeError("this processor has no bfloat16, so the model cannot be checked: choose fp32 or int8")
    if precision == "int8":
        need_library("nncf", "openvino")
    model = ov.convert_model(program)
    size = images.shape[-1]
    model.reshape([-1, 3, size, size])
    for port, name in zip(model.outputs, ("score", "map", "pooled"), strict=True):
        port.get_tensor().set_names({name})
    ov.save_model(model, str(folder / MODEL), compress_to_fp16=False)
    if precision == "int8":
        del model  # memory that the other process needs
        quantise(folder / MODEL, images)


class OpenVINOModel:
    """An exported model on the CPU.

    Args:
        folder: Where `write` put it.
        precision: As it was written.

    Attributes:
        size: Side of the images that it takes, pixels.
    """

    def __init__(self, folder: Path, precision: str) -> None:
        ov = load_library("openvino", "openvino")
        hint = "bf16" if precision == "bf16" else "f32"
        self._compiled: Any = ov.Core().compile_model(str(folder / MODEL), "CPU", {"INFERENCE_PRECISION_HINT": hint})
        side = self._compiled.inputs[0].partial_shape[-1]
        self.size = int(side.get_length()) if side.is_static else 0

    def __call__(self, pixels: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Scores [B], maps [B, S, S] and pooled tokens [B, features] of pixels [B, 3, S, S] in 0..1."""
        found = self._compiled(pixels)
        return [found[index] for index in range(3)]
