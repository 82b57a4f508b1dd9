"""How fast this machine does each step, in seconds and as a share of what its matrix products reach.

Every row runs in a process of its own, so that its peak memory is its own: `python -m madclip.benchmark.speed ROW ...`.
"""

from __future__ import annotations

import argparse
import json
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from madclip.errors import MissingExtraError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from madclip.backbones.spec import Backbone, BackboneSpec
    from madclip.detector import MadCLIP
    from madclip.export.engines import Format, Precision


class Shape(NamedTuple):
    """Of a CLIP: vision tower (width, blocks, patch and image side in pixels), shared space, text tower."""

    width: int
    depth: int
    patch: int
    image: int
    embed: int
    text_width: int
    text_depth: int


SHAPES = {
    "random-vit-l-14": Shape(1024, 24, 14, 336, 768, 768, 12),
    "random-vit-b-16": Shape(768, 12, 16, 224, 512, 512, 12),
}
"""Shapes of OpenAI's towers by the name that stands for one with random weights: they serve where only time counts."""
BATCH = 16
WARM, TIMES = 1, 5
_NOT_HERE = 3


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
        name: What was measured.
        seconds: Median, of a step, an image, or the whole, as `per` says.
        per: `step`, `image` or `run`.
        low: Fastest of the repetitions.
        high: Slowest.
        repetitions: How many.
        flops: Operations that must be done for it; None where that is not counted.
        fraction: Of the machine's rate of matrix products in this precision; None without `flops`.
        matmul_gflops_fp32: That rate, in the same process: the mean of before and after.
        matmul_gflops_bf16: Likewise; None where the processor has no bfloat16.
        peak_mb: Largest memory of the process that does it, 1e6 bytes; exports are written by another one.
        backbone: With which weights.
        threads: Of torch.
    """

    name: str
    seconds: float
    per: str
    low: float
    high: float
    repetitions: int
    flops: float | None
    fraction: float | None
    matmul_gflops_fp32: float
    matmul_gflops_bf16: float | None
    peak_mb: float
    backbone: str
    threads: int


@dataclass(frozen=True)
class Missing:
    """A row that there is none of.

    Attributes:
        name: What was to be measured.
        reason: Why there is nothing.
        failed: True for an error; False where this machine lacks what it takes.
    """

    name: str
    reason: str
    failed: bool


class Timed(NamedTuple):
    """What a row's function finds: see `Row`; `peak_mb` None is that of this process."""

    seconds: list[float]
    per: str
    flops: float | None = None
    peak_mb: float | None = None
    backbone: Literal["chosen", "tiny", "none"] = "chosen"


# Counts: a product of [n, k] and [k, m] takes 2 n k m operations


def adapter_flops(spec: BackboneSpec, patches: int, batch: int = BATCH) -> float:
    """Of a training step in the adapters: no gradient flows to the tokens.

    The shared layers need a forward and a weight gradient, the heads an input gradient as well.
    """
    tokens, d, e = batch * patches, spec.width, spec.embed_dim
    shared, heads = 2 * tokens * d * 2 * d, 2 * tokens * d * 4 * e
    return float(4 * (2 * shared + 3 * heads))


def prompt_flops(spec: BackboneSpec, blocks: int, prompts: int, positions: int) -> float:
    """Of a training step in the frozen text tower: forward and input gradient, projections of the blocks only."""
    return 2.0 * prompts * positions * blocks * 24 * spec.text_width**2


def vision_flops(spec: BackboneSpec, patches: int) -> float:
    """Of one image in the vision tower: projections, MLPs of four times the width, attention."""
    tokens = patches + spec.prefix_tokens
    return float(spec.depth * tokens * (24 * spec.width**2 + 4 * tokens * spec.width))


def head_flops(spec: BackboneSpec, patches: int) -> float:
    """Of one image in the adapters at prediction."""
    return float(4 * patches * (4 * spec.width**2 + 8 * spec.width * spec.embed_dim))


# The machine


def matmul_gflops(dtype: torch.dtype, side: int = 2048) -> float:
    """Rate of square matrix products, 1e9 operations a second: the median of several."""
    import torch

    first, second = torch.randn(2, side, side).to(dtype)
    return 2 * side**3 / 1e9 / median(repeat(lambda: first @ second, times=7))


def peak_mb() -> float:
    """Largest memory of this process so far, 1e6 bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the process that started this one held
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def repeat(action: Callable[[], Any], *, times: int = TIMES, warm: int = WARM) -> list[float]:
    """Seconds of each repetition after some that do not count; memory is kept, as in the loops of fit and predict."""
    from madclip.memory import kept_memory

    seconds = []
    with kept_memory():
        for index in range(warm + times):
            start = time.perf_counter()
            action()
            if index >= warm:
                seconds.append(time.perf_counter() - start)
    return seconds


# What is measured


def make_random(folder: Path, shape: Shape) -> Path:
    """A folder with a CLIP of a shape and seeded random weights."""
    from madclip.backbones.random_weights import clip_config, write_random

    return write_random(folder, clip_config(*shape).with_activation("quick_gelu"))


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
    detector.fitted = Fitted(head, detector.recipe, Provenance(masks=16))
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
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            flops = pool.submit(_write_export, source, engine, precision, folder).result()
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


def _naive(source: str) -> Timed:
    """The step of the released code, from `benchmarks/naive.py`."""
    script = Path(__file__).parents[3] / "benchmarks" / "naive.py"
    if not script.is_file():
        raise RecipeError("the naive step is in benchmarks/ of the source tree, and this is an installed package")
    return Timed(runpy.run_path(str(script))["naive_seconds"](source), "step")


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
    "fit_step_naive": _naive,
}
"""What is measured on request; with ViT-L/14 the naive step takes up to 21 GB."""


def measure(name: str, source: str, shown: str) -> Row:
    """Measure one row in this process.

    Raises:
        MissingExtraError: Its engine is not installed.
        RecipeError: This processor lacks its precision.
    """
    import torch

    from madclip.backbones.load import computes_in_bfloat16

    half = computes_in_bfloat16(torch.device("cpu"))
    kinds = [torch.float32, torch.bfloat16] if half else [torch.float32]
    before = [matmul_gflops(kind) for kind in kinds]
    found = (ROWS | SLOW)[name](source)
    peak = peak_mb() if found.peak_mb is None else found.peak_mb
    rates = [(one + matmul_gflops(kind)) / 2 for one, kind in zip(before, kinds, strict=True)]
    bf16 = rates[1] if half else None
    rate = None if name.endswith("int8") else bf16 if name.endswith("bf16") else rates[0]
    spent = median(found.seconds)
    return Row(
        name=name,
        seconds=spent,
        per=found.per,
        low=min(found.seconds),
        high=max(found.seconds),
        repetitions=len(found.seconds),
        flops=found.flops,
        fraction=None if found.flops is None or rate is None else found.flops / 1e9 / spent / rate,
        matmul_gflops_fp32=rates[0],
        matmul_gflops_bf16=bf16,
        peak_mb=peak,
        backbone={"chosen": shown, "tiny": "tiny", "none": "-"}[found.backbone],
        threads=torch.get_num_threads(),
    )


def measure_all(names: list[str], backbone: str) -> Iterator[Row | Missing]:
    """Each row from a process of its own, or why there is none; the rest goes on.

    Args:
        names: Of rows.
        backbone: As for `MadCLIP`, or one of `SHAPES`.

    Raises:
        RecipeError: A row is not known.
    """
    for name in names:
        if name not in ROWS | SLOW:
            raise RecipeError(f"unknown row {name!r}: choose among {', '.join(ROWS | SLOW)}")
    with tempfile.TemporaryDirectory() as folder:
        source = backbone
        if backbone in SHAPES:
            source = str(make_random(Path(folder) / backbone, SHAPES[backbone]))
        for name in names:
            command = [sys.executable, "-m", "madclip.benchmark.speed", name, "--backbone", source, "--shown", backbone]
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode == 0:
                yield Row(**json.loads(done.stdout.splitlines()[-1]))
            elif done.returncode == _NOT_HERE:
                yield Missing(name, done.stdout.strip(), failed=False)
            else:
                said = done.stderr.strip().splitlines() or [f"ended with {done.returncode}, perhaps for want of memory"]
                yield Missing(name, f"failed: {said[-1]}", failed=True)


def markdown(rows: list[Row | Missing]) -> str:
    """A table for people, and what follows from its rows together."""
    lines = [
        "| row | backbone | median | spread | operations | share of the matrix-product rate | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if isinstance(row, Missing):
            lines.append(f"| `{row.name}` | | {row.reason} | | | | |")
            continue
        count = "-" if row.flops is None else f"{row.flops / 1e9:.1f} GFLOP"
        share = "-" if row.fraction is None else f"{row.fraction:.0%}"
        spread = f"{row.low:.3g} to {row.high:.3g}, {row.repetitions} times"
        lines.append(
            f"| `{row.name}` | {row.backbone} | {row.seconds:.3g} s per {row.per} | {spread} | {count} | {share} "
            f"| {row.peak_mb / 1000:.2f} GB |"
        )
    if ratios := naive_ratios(rows):
        said = " and ".join(f"{ratio:.1f} times as long as `{name}`" for name, ratio in ratios.items())
        lines += ["", f"The naive step takes {said}."]
    return "\n".join(lines) + "\n"


def naive_ratios(rows: list[Row | Missing]) -> dict[str, float]:
    """Seconds of the naive step over those of each of ours, where the rows have them."""
    seconds = {row.name: row.seconds for row in rows if isinstance(row, Row)}
    if "fit_step_naive" not in seconds:
        return {}
    ours = [name for name in ("fit_step_fp32", "fit_step_bf16") if name in seconds]
    return {name: seconds["fit_step_naive"] / seconds[name] for name in ours}


def main() -> None:
    """One row, printed as JSON; another exit code and a reason where it cannot be measured here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=ROWS | SLOW)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--shown", default="tiny")
    given = parser.parse_args()
    try:
        print(json.dumps(asdict(measure(given.name, given.backbone, given.shown))))
    except (MissingExtraError, RecipeError) as error:
        reason = "not installed" if isinstance(error, MissingExtraError) else "not measured"
        print(f"{reason}: {error}")
        raise SystemExit(_NOT_HERE) from None


if __name__ == "__main__":
    main()
