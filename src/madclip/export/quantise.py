"""int8 by NNCF, for the engines that have it; in a process of its own.

NNCF writes progress bars to standard output and makes its own class that of all loggers of a process. So it gets one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from madclip.errors import CheckpointError
from madclip.export.libraries import load_library, need_library

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def quantise(model: Path, images: npt.NDArray[np.float32]) -> None:
    """Put a model in int8, calibrated on images [N, 3, S, S] in 0..1, in the place of the one in float32.

    Args:
        model: A file model.xml of OpenVINO or model.onnx, with its weights beside it.
        images: What its activations are measured on.

    Raises:
        MissingExtraError: NNCF is not installed.
        CheckpointError: NNCF gave up.
    """
    need_library("nncf", "openvino")
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        pixels = Path(folder) / "pixels.npy"
        np.save(pixels, images, allow_pickle=False)
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(part for part in (package, os.environ.get("PYTHONPATH")) if part)
        done = subprocess.run(  # noqa: S603  (this module, with paths made here)
            [sys.executable, "-m", __name__, str(model), str(pixels)],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise CheckpointError(f"{model.name}: int8 did not succeed ({said[-1][:200]}); choose another precision")


def quantised(nncf: Any, model: Any, inputs: list[Any], *, interpolation: str) -> Any:
    """A model in int8, calibrated on inputs of one image each.

    Maps are interpolated in float32: their log-odds lie close together, and in 8 bits scores drift to one side. Weights
    keep to half of their range: processors without VNNI add two products in 16 bits, which greater ones overflow, so
    that a model would say something else there than where it was checked.

    Args:
        nncf: The library.
        model: As the engine holds it.
        inputs: Inputs of the model, one image each.
        interpolation: The engine's name of that operation.
    """
    return nncf.quantize(
        model,
        nncf.Dataset(inputs),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(inputs),
        ignored_scope=nncf.IgnoredScope(types=[interpolation]),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
    )


def main(path: Path, pixels: Path) -> None:
    """Quantise the model at `path` on the images of a .npy file."""
    import numpy as np

    images = np.load(pixels, allow_pickle=False)
    nncf = load_library("nncf", "openvino")
    if path.suffix == ".xml":
        ov = load_library("openvino", "openvino")
        made = quantised(
            nncf, ov.Core().read_model(path), [image[None] for image in images], interpolation="Interpolate"
        )
        for file in path.parent.glob(f"{path.stem}.*"):
            file.unlink()
        ov.save_model(made, str(path), compress_to_fp16=False)
    else:
        onnx = load_library("onnx", "onnx")
        named = [{"pixels": image[None]} for image in images]
        made = quantised(nncf, onnx.load(path), named, interpolation="Resize")
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
        onnx.save(made, path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
