"""What `madclip bench speed` measures: one function for each row."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from madclip.benchmark.timing import (
    BATCH,
    adapter_flops,
    head_flops,
    prompt_flops,
    repeat,
    vision_flops,
)
from madclip.scale.executor import run_alone

if TYPE_CHECKING:
    from collections.abc import Callable

    from madclip.backbones.spec import Backbone
    from madclip.detector import MadCLIP
    from madclip.export.engines import Format, Precision


class Timed(NamedTuple):
    """What a row's function finds; `peak_mb` None stands for that of this process."""

    seconds: list[float]
    per: str
    flops: float | None = None
    peak_mb: float | None = None
    backbone: Literal["chosen", "tiny", "none"] = "chosen"


def _backbone(source: str, dtype: str) -> Backbone:
    from madclip.backbones import load_backbone

    return load_backbone(source, image_size=240, device="cpu", dtype=dtype)


def _detector(source: str, dtype: str) -> MadCLIP:
    """A detector as if fitted with masks: for time it does not matter what was learned."""
    from madclip.detector import MadCLIP
    from madclip.head.head import Head
    from madclip.state import Fitted, Provenance

    detector = MadCLIP(backbone=_backbone(source, dtype), objective="Brain")
    head = Head(detector.recipe, detector.backbone, "Brain")
    detector.fitted = Fitted(head, detector.recipe, Provenance(normal=16, abnormal=16, masks=16))
    return detector


def _fit_step(source: str, dtype: str) -> Timed:
    import torch

    from madclip.head.head import Head
    from madclip.recipe import Recipe
    from madclip.training.encode import TrainingSet
    from madclip.training.fit import new_optimiser, training_step

    backbone, recipe = _backbone(source, dtype), Recipe()
    patches = backbone.grid[0] * backbone.grid[1]
    tokens = [torch.randn(1, 4, patches, backbone.spec.width).to(backbone.dtype) for _ in range(BATCH)]
    labels = torch.arange(BATCH) % 2
    masks = torch.zeros(BATCH, 1, 240, 240, dtype=torch.bool)
    masks[1::2, :, 60:120, 60:120] = True
    data = TrainingSet(tokens, masks, labels, torch.ones(BATCH, dtype=torch.bool), 0)
    head = Head(recipe, backbone, "Brain")
    optimiser = new_optimiser(head, recipe)
    pairs = torch.stack([torch.arange(BATCH), torch.zeros(BATCH, dtype=torch.long)], 1)
    seconds = repeat(lambda: training_step(head, optimiser, data, pairs))
    assert head.prompts is not None  # noqa: S101
    prompts, positions, _ = head.prompts.prompt_embeddings().shape
    blocks = len(backbone.text_blocks)  # type: ignore[arg-type]
    flops = adapter_flops(backbone.spec, patches) + prompt_flops(backbone.spec, blocks, prompts, positions)
    return Timed(seconds, "step", flops)


def _tokens(source: str, dtype: str) -> Timed:
    import torch

    from madclip.recipe import Recipe
    from madclip.training.encode import encode_patches

    backbone, recipe = _backbone(source, dtype), Recipe()
    pixels = torch.rand(8, 3, 240, 240)
    with torch.inference_mode():
        seconds = [s / 8 for s in repeat(lambda: encode_patches(backbone, recipe.view, pixels))]
    return Timed(seconds, "image", vision_flops(backbone.spec, backbone.grid[0] * backbone.grid[1]))


def _predict(source: str, precision: str) -> Timed:
    import torch

    detector = _detector(source, "bfloat16" if precision == "bf16" else "float32")
    pixels = torch.rand(8, 3, 240, 240)
    seconds = repeat(lambda: detector.score(pixels))
    return Timed([s / 8 for s in seconds], "image", _image_flops(detector))


def _image_flops(detector: MadCLIP) -> float:
    patches = detector.backbone.grid[0] * detector.backbone.grid[1]
    return vision_flops(detector.backbone.spec, patches) + head_flops(detector.backbone.spec, patches)


def _predict_exported(source: str, engine: Format, precision: Precision) -> Timed:
    import numpy as np

    from madclip.export.engines import open_model

    with tempfile.TemporaryDirectory() as folder:
        # In a process of its own: writing takes several times the memory of predicting.
        flops = run_alone(_write_export, source, engine, precision, folder)
        model = open_model(Path(folder), engine, precision)
        pixels = np.random.default_rng(0).random((8, 3, 240, 240), np.float32)
        return Timed([s / 8 for s in repeat(lambda: model(pixels))], "image", flops)


def _write_export(source: str, engine: Format, precision: Precision, folder: str) -> float:
    """Write a detector for an engine; returns the operations of an image."""
    import numpy as np

    from madclip.export.engines import write_model

    detector = _detector(source, "float32")
    pixels = np.random.default_rng(0).random((8, 3, 240, 240), np.float32)
    write_model(detector, engine, precision, pixels, Path(folder))
    return _image_flops(detector)


def _whole(source: str, kind: Literal["fit", "calibrated fit", "refit"]) -> Timed:
    """A fit of 16 + 16 phantoms with masks, no token cached before; or a refit after one shot went.

    A refit goes on from any head: here from one that was only refitted before.
    """
    from madclip.data.load import load_dataset
    from madclip.fitting import Run
    from madclip.phantoms.dataset import write_phantoms
    from madclip.training.cache import TokenCache

    uses: Literal["chosen", "tiny"] = "tiny" if source == "tiny" else "chosen"
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "phantoms"
        write_phantoms(data, "brain", 1, 1, 0, 0.5, 240, shots=16)
        detector, cache = _detector(source, "auto"), TokenCache(Path(folder) / "tokens")
        if kind == "refit":
            shots = load_dataset(data).shot_pool
            detector.refit(shots, run=Run(cache=cache))
            seconds = repeat(lambda: detector.refit(shots[1:], run=Run(cache=cache)), times=3, warm=0)
        else:
            folds = 4 if kind == "calibrated fit" else 0
            seconds = repeat(lambda: detector.fit(data, shots=16, folds=folds, run=Run(cache=cache)), times=1, warm=0)
        return Timed(seconds, "run", backbone=uses)


def _metrics_image() -> Timed:
    """AUROC with DeLong's interval and average precision of 10,000 images."""
    import numpy as np

    from madclip.metrics.image import average_precision
    from madclip.metrics.intervals import delong_interval
    from madclip.metrics.scored import Scored

    generator = np.random.default_rng(0)
    labels = np.arange(10_000) % 2
    scores = generator.normal(size=10_000) + labels
    seconds = repeat(lambda: (delong_interval(Scored.of(labels, scores)), average_precision(labels, scores)))
    return Timed(seconds, "run", backbone="none")


def _metrics_pixel() -> Timed:
    """Pixel AUROC, average precision and AUPRO over 64 maps of 240 x 240, for each of them."""
    import numpy as np

    from madclip.metrics.pixel import PixelHistogram

    generator = np.random.default_rng(0)
    maps = generator.random((64, 240, 240), np.float32)
    mask = np.zeros((240, 240), np.bool_)
    mask[60:120, 60:120] = True

    def count() -> None:
        histogram = PixelHistogram()
        for index, one in enumerate(maps):
            histogram.update(one, mask if index % 2 else None)
        for metric in (histogram.auroc, histogram.average_precision, histogram.aupro):
            metric()

    return Timed([s / 64 for s in repeat(count)], "image", backbone="none")


def _process(*arguments: str, backbone: Literal["tiny", "none"] = "none") -> Timed:
    """A whole process. Its memory is asked of a small one, since a child is counted what its parent held."""
    seconds = repeat(lambda: subprocess.run(arguments, check=True, capture_output=True))  # noqa: S603
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, capture_output=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == 'darwin' else 1024))"
    )
    asked = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)  # noqa: S603
    return Timed(seconds, "run", None, int(asked.stdout) / 1e6, backbone)


def _first_prediction() -> Timed:
    """A process that loads a saved detector and scores one image."""
    with tempfile.TemporaryDirectory() as folder:
        _detector("tiny", "auto").save(Path(folder) / "detector")
        code = (
            "import sys, numpy as np; from madclip import MadCLIP; "
            "MadCLIP.load(sys.argv[1]).predict(np.zeros((240, 240), np.uint8))"
        )
        return _process(sys.executable, "-c", code, str(Path(folder) / "detector"), backbone="tiny")


MADCLIP = str(Path(sys.executable).with_name("madclip"))
ROWS: dict[str, Callable[[str], Timed]] = {
    "fit_step_fp32": lambda b: _fit_step(b, "float32"),
    "fit_step_bf16": lambda b: _fit_step(b, "bfloat16"),
    "tokens_fp32": lambda b: _tokens(b, "float32"),
    "tokens_bf16": lambda b: _tokens(b, "bfloat16"),
    "predict_torch_fp32": lambda b: _predict(b, "fp32"),
    "predict_torch_bf16": lambda b: _predict(b, "bf16"),
    "predict_openvino_fp32": lambda b: _predict_exported(b, "openvino", "fp32"),
    "predict_openvino_bf16": lambda b: _predict_exported(b, "openvino", "bf16"),
    "predict_openvino_int8": lambda b: _predict_exported(b, "openvino", "int8"),
    "predict_onnx_fp32": lambda b: _predict_exported(b, "onnx", "fp32"),
    "predict_onnx_int8": lambda b: _predict_exported(b, "onnx", "int8"),
    "fit_tiny": lambda _: _whole("tiny", "fit"),
    "fit_tiny_calibrated": lambda _: _whole("tiny", "calibrated fit"),
    "refit_tiny": lambda _: _whole("tiny", "refit"),
    "metrics_image": lambda _: _metrics_image(),
    "metrics_pixel": lambda _: _metrics_pixel(),
    "import": lambda _: _process(sys.executable, "-c", "import madclip"),
    "help": lambda _: _process(MADCLIP, "--help"),
    "first_prediction": lambda _: _first_prediction(),
}
"""What is measured, from the backbone's source; those of `tiny`, of metrics and of processes take no backbone."""
SLOW: dict[str, Callable[[str], Timed]] = {
    "fit_16_shots": lambda b: _whole(b, "fit"),
    "refit_16_shots": lambda b: _whole(b, "refit"),
}
"""What is measured on request: it takes minutes."""
