"""OpenVINO: float32, bfloat16 and int8 on CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from madclip.errors import RecipeError
from madclip.export.quiet import load_library, quiet

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
        images: [N, 3, S, S] in 0..1, which int8 is calibrated on.
        folder: Where to.

    Raises:
        MissingExtraError: OpenVINO or, for int8, NNCF is not installed.
        RecipeError: This processor has no bfloat16, so that it cannot be checked.
    """
    ov = load_library("openvino", "openvino")
    if precision == "bf16" and "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise RecipeError("this processor has no bfloat16, so the model cannot be checked: choose fp32 or int8")
    nncf = load_library("nncf", "openvino") if precision == "int8" else None
    with quiet():
        model = ov.convert_model(program)
        for port, name in zip(model.outputs, ("score", "map", "pooled"), strict=True):
            port.get_tensor().set_names({name})
        if nncf is not None:
            shots = nncf.Dataset([image[None] for image in images])
            model = quantised(nncf, model, shots, len(images), maps="Interpolate")
        ov.save_model(model, str(folder / MODEL), compress_to_fp16=False)


def quantised(nncf: Any, model: Any, shots: Any, count: int, *, maps: str) -> Any:
    """A model in int8, calibrated on `count` shots.

    Maps are interpolated in float32: their log-odds lie close together, and in 8 bits scores drift to one side.

    Args:
        nncf: The library.
        model: As the engine holds it.
        shots: The calibration data set, for that engine.
        count: Its images.
        maps: The engine's name of the interpolation.
    """
    return nncf.quantize(
        model,
        shots,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=count,
        ignored_scope=nncf.IgnoredScope(types=[maps]),
    )


class OpenVINOModel:
    """An exported model on the CPU.

    Args:
        folder: Where `write` put it.
        precision: As it was written.
    """

    def __init__(self, folder: Path, precision: str) -> None:
        ov = load_library("openvino", "openvino")
        hint = "bf16" if precision == "bf16" else "f32"
        with quiet():
            self._compiled: Any = ov.Core().compile_model(
                str(folder / MODEL), "CPU", {"INFERENCE_PRECISION_HINT": hint}
            )

    def __call__(self, pixels: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Scores [B], maps [B, S, S] and pooled tokens [B, features] of pixels [B, 3, S, S] in 0..1."""
        found = self._compiled(pixels)
        return [found[index] for index in range(3)]
