"""How fast this machine does each step, in seconds and as a share of what its matrix products reach.

Every row runs in a process of its own, so that its peak memory is its own: `python -m madclip.benchmark.speed ROW ...`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from madclip.errors import DataError, MissingExtraError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import torch

    from madclip.backbones.spec import Backbone, BackboneSpec
    from madclip.detector import MadCLIP

VIT_L_14 = {
    "model_type": "clip",
    "projection_dim": 768,
    "text_config": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    },
    "vision_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 336,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
    },
}
"""Shape of CLIP ViT-L/14@336px; random weights serve where only time is measured."""
RANDOM = "random-vit-l-14"
BATCH = 16
WARM, TIMES = 1, 5


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
        matmul_gflops_fp32: That rate, measured in the same process.
        matmul_gflops_bf16: Likewise; None where the processor has no bfloat16.
        peak_mb: Largest memory of the process, 1e6 bytes.
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


def repeat(action: Callable[[], Any], *, times: int = TIMES, warm: int = WARM) -> list[float]:
    """Seconds of each repetition after some that do not count."""
    seconds = []
    for index in range(warm + times):
        start = time.perf_counter()
        action()
        if index >= warm:
            seconds.append(time.perf_counter() - start)
    return seconds


# What is measured


def make_random(folder: Path) -> Path:
    """A folder with a CLIP of `VIT_L_14`'s shape and seeded random weights."""
    import torch
    from transformers.models.clip.configuration_clip import CLIPConfig
    from transformers.models.clip.modeling_clip import CLIPModel

    torch.manual_seed(0)
    CLIPModel(CLIPConfig.from_dict(VIT_L_14)).save_pretrained(folder)
    return folder


def _backbone(source: str, dtype: str) -> Backbone:
    from madclip.backbones import load_backbone

    return load_backbone(source, image_size=240, device="cpu", dtype=dtype)


def _detector(source: str, dtype: str) -> MadCLIP:
    """A detector as if fitted with masks: for time it does not matter what was learned."""
    from madclip.detector import MadCLIP
    from madclip.head.head import Head

    detector = MadCLIP(backbone=_backbone(source, dtype), objective="Brain")
    detector.head = Head(detector.recipe, detector.backbone, "Brain")
    detector.provenance = {"masks": 16}
    return detector


def _fit_step(source: str, dtype: str) -> tuple[list[float], str, float]:
    import torch

    from madclip.head.head import Head
    from madclip.recipe import Recipe
    from madclip.training.fit import training_step
    from madclip.training.tokens import TrainingSet

    backbone, recipe = _backbone(source, dtype), Recipe()
    patches = backbone.grid[0] * backbone.grid[1]
    tokens = [torch.randn(1, 4, patches, backbone.spec.width).to(backbone.dtype) for _ in range(BATCH)]
    labels = torch.arange(BATCH) % 2
    masks = torch.zeros(BATCH, 1, 240, 240, dtype=torch.bool)
    masks[1::2, :, 60:120, 60:120] = True
    data = TrainingSet(tokens, masks, labels, torch.ones(BATCH, dtype=torch.bool))
    head = Head(recipe, backbone, "Brain")
    optimiser = torch.optim.AdamW(head.parameters(), lr=1e-3)
    pairs = torch.stack([torch.arange(BATCH), torch.zeros(BATCH, dtype=torch.long)], 1)
    seconds = repeat(lambda: training_step(head, optimiser, data, pairs))
    assert head.prompts is not None  # noqa: S101
    prompts, positions, _ = head.prompts.prompt_embeddings().shape
    blocks = len(backbone.text_blocks)  # type: ignore[arg-type]
    flops = adapter_flops(backbone.spec, patches) + prompt_flops(backbone.spec, blocks, prompts, positions)
    return seconds, "step", flops


def _tokens(source: str, dtype: str) -> tuple[list[float], str, float]:
    import torch

    from madclip.recipe import Recipe
    from madclip.training.tokens import encode_patches

    backbone, recipe = _backbone(source, dtype), Recipe()
    pixels = torch.rand(8, 3, 240, 240)
    with torch.inference_mode():
        seconds = [s / 8 for s in repeat(lambda: encode_patches(backbone, recipe, pixels))]
    return seconds, "image", vision_flops(backbone.spec, backbone.grid[0] * backbone.grid[1])


def _predict(source: str, engine: str, precision: str) -> tuple[list[float], str, float]:
    import torch

    detector = _detector(source, "bfloat16" if (engine, precision) == ("torch", "bf16") else "float32")
    patches = detector.backbone.grid[0] * detector.backbone.grid[1]
    flops = vision_flops(detector.backbone.spec, patches) + head_flops(detector.backbone.spec, patches)
    pixels = torch.rand(8, 3, 240, 240)
    if engine == "torch":
        return [s / 8 for s in repeat(lambda: detector.score(pixels))], "image", flops
    from madclip.export import onnx, openvino
    from madclip.export.graph import DetectorGraph, traced

    with tempfile.TemporaryDirectory() as folder:
        program = traced(DetectorGraph(detector))
        model: Any
        if engine == "onnx":
            onnx.write(program, Path(folder))
            model = onnx.ONNXModel(Path(folder))
        else:
            openvino.write(program, precision, pixels.numpy(), Path(folder))
            model = openvino.OpenVINOModel(Path(folder), precision)
        del program
        return [s / 8 for s in repeat(lambda: model(pixels.numpy()))], "image", flops


def _fit_tiny(kind: str) -> tuple[list[float], str, None]:
    """A whole fit of 16 + 16 phantoms with masks, tokens not yet cached; or a refit after one shot went."""
    from madclip.data.phantoms.dataset import write_phantoms
    from madclip.data.samples import load_dataset
    from madclip.detector import MadCLIP
    from madclip.training.tokens import TokenCache

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "phantoms"
        write_phantoms(data, "brain", 1, 1, 0, 0.5, 240, shots=16)
        cache = TokenCache(Path(folder) / "tokens")
        detector = MadCLIP(objective="Brain")
        folds = 4 if kind == "calibrated" else 0
        start = time.perf_counter()
        detector.fit(data, shots=16, folds=folds, cache=cache)
        if kind != "refit":
            return [time.perf_counter() - start], "run", None
        rest = load_dataset(data).shot_pool[1:]
        return repeat(lambda: detector.refit(rest, cache=cache), times=3, warm=0), "run", None


def _process(*arguments: str) -> tuple[list[float], str, None]:
    return repeat(lambda: subprocess.run(arguments, check=True, capture_output=True)), "run", None  # noqa: S603


def _first_prediction() -> tuple[list[float], str, None]:
    """A process that loads a saved detector and scores one image."""
    with tempfile.TemporaryDirectory() as folder:
        _detector("tiny", "auto").save(Path(folder) / "detector")
        code = (
            "import sys, numpy as np; from madclip import MadCLIP; "
            "MadCLIP.load(sys.argv[1]).predict(np.zeros((240, 240), np.uint8))"
        )
        return _process(sys.executable, "-c", code, str(Path(folder) / "detector"))


MADCLIP = str(Path(sys.executable).with_name("madclip"))
ROWS: dict[str, Callable[[str], tuple[list[float], str, float | None]]] = {
    "fit_step_fp32": lambda b: _fit_step(b, "float32"),
    "fit_step_bf16": lambda b: _fit_step(b, "bfloat16"),
    "tokens_fp32": lambda b: _tokens(b, "float32"),
    "tokens_bf16": lambda b: _tokens(b, "bfloat16"),
    "predict_torch_fp32": lambda b: _predict(b, "torch", "fp32"),
    "predict_torch_bf16": lambda b: _predict(b, "torch", "bf16"),
    "predict_openvino_fp32": lambda b: _predict(b, "openvino", "fp32"),
    "predict_openvino_bf16": lambda b: _predict(b, "openvino", "bf16"),
    "predict_openvino_int8": lambda b: _predict(b, "openvino", "int8"),
    "predict_onnx_fp32": lambda b: _predict(b, "onnx", "fp32"),
    "fit_tiny": lambda _: _fit_tiny("plain"),
    "fit_tiny_calibrated": lambda _: _fit_tiny("calibrated"),
    "refit_tiny": lambda _: _fit_tiny("refit"),
    "import": lambda _: _process(sys.executable, "-c", "import madclip"),
    "help": lambda _: _process(MADCLIP, "--help"),
    "first_prediction": lambda _: _first_prediction(),
}
"""What can be measured, with the backbone's source; those of `tiny` and of processes take no backbone."""


def measure(name: str, source: str, shown: str) -> Row:
    """Measure one row in this process.

    Raises:
        MissingExtraError: Its engine is not installed.
        RecipeError: This processor lacks its precision.
    """
    import torch

    from madclip.backbones.load import computes_in_bfloat16

    half = computes_in_bfloat16(torch.device("cpu"))
    before = matmul_gflops(torch.float32), matmul_gflops(torch.bfloat16) if half else None
    seconds, per, flops = ROWS[name](source)
    rates = (before[0] + matmul_gflops(torch.float32)) / 2, before[1]
    rate = rates[1] if name.endswith("bf16") else rates[0]
    spent = median(seconds)
    fraction = None if flops is None or rate is None or name.endswith("int8") else flops / 1e9 / spent / rate
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    threads = torch.get_num_threads()
    own = "tiny" if name.endswith(("tiny", "calibrated", "prediction")) else shown if flops else "-"
    return Row(
        name,
        spent,
        per,
        min(seconds),
        max(seconds),
        len(seconds),
        flops,
        fraction,
        *rates,
        peak * 1024 / 1e6,
        own,
        threads,
    )


def measure_all(names: list[str], backbone: str) -> Iterator[Row | tuple[str, str]]:
    """Each row from a process of its own, or its name and why there is none.

    Args:
        names: Of rows.
        backbone: As for `MadCLIP`, or `RANDOM`.

    Raises:
        RecipeError: A row is not known.
        DataError: A row failed.
    """
    for name in names:
        if name not in ROWS:
            raise RecipeError(f"unknown row {name!r}: choose among {', '.join(ROWS)}")
    with tempfile.TemporaryDirectory() as folder:
        source = str(make_random(Path(folder) / RANDOM)) if backbone == RANDOM else backbone
        for name in names:
            command = [sys.executable, "-m", "madclip.benchmark.speed", name, "--backbone", source, "--shown", backbone]
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
            if done.returncode == 3:
                yield name, done.stdout.strip()
            elif done.returncode:
                raise DataError(f"{name}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
            else:
                yield Row(**json.loads(done.stdout.splitlines()[-1]))


def markdown(rows: list[Row | tuple[str, str]]) -> str:
    """A table for people."""
    lines = [
        "| row | backbone | median | spread | operations | share of the matrix-product rate | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if not isinstance(row, Row):
            lines.append(f"| `{row[0]}` | | {row[1]} | | | | |")
            continue
        count = "-" if row.flops is None else f"{row.flops / 1e9:.1f} GFLOP"
        share = "-" if row.fraction is None else f"{row.fraction:.0%}"
        spread = f"{row.low:.3g} to {row.high:.3g}, {row.repetitions} times"
        lines.append(
            f"| `{row.name}` | {row.backbone} | {row.seconds:.3g} s per {row.per} | {spread} | {count} | {share} "
            f"| {row.peak_mb / 1000:.2f} GB |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """One row, printed as JSON; exit code 3 and a reason where it cannot be measured here."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=ROWS)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--shown", default="tiny")
    given = parser.parse_args()
    try:
        print(json.dumps(asdict(measure(given.name, given.backbone, given.shown))))
    except (MissingExtraError, RecipeError) as error:
        print(f"not measured: {error}")
        raise SystemExit(3) from None


if __name__ == "__main__":
    main()
