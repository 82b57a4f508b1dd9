"""How time, operations and memory are measured: what every timing stands on.

A product of [n, k] and [k, m] counts as 2 n k m operations.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from madclip.backbones.spec import BackboneSpec

BATCH = 16
"""Images of a training step."""
WARM, TIMES = 1, 5
"""Repetitions that do not count, and that do."""


class Shape(NamedTuple):
    """Sizes of a CLIP: vision tower (width, blocks, patch and image side in pixels), shared space, text tower."""

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


def make_random(folder: Path, shape: Shape) -> Path:
    """A folder with a CLIP of a shape and seeded random weights."""
    from madclip.backbones.random_weights import clip_config, write_random

    return write_random(folder, clip_config(*shape).with_activation("quick_gelu"))


def adapter_flops(spec: BackboneSpec, patches: int, batch: int = BATCH) -> float:
    """Operations of a training step in the adapters: no gradient flows to the tokens.

    The shared layers need a forward and a weight gradient, the heads an input gradient as well.
    """
    tokens, d, e = batch * patches, spec.width, spec.embed_dim
    shared, heads = 2 * tokens * d * 2 * d, 2 * tokens * d * 4 * e
    return float(4 * (2 * shared + 3 * heads))


def prompt_flops(spec: BackboneSpec, blocks: int, prompts: int, positions: int) -> float:
    """Operations of a training step in the frozen text tower: forward and input gradient, projections alone."""
    return 2.0 * prompts * positions * blocks * 24 * spec.text_width**2


def vision_flops(spec: BackboneSpec, patches: int) -> float:
    """Operations of one image in the vision tower: projections, MLPs of four times the width, attention."""
    tokens = patches + spec.prefix_tokens
    return float(spec.depth * tokens * (24 * spec.width**2 + 4 * tokens * spec.width))


def head_flops(spec: BackboneSpec, patches: int) -> float:
    """Operations of one image in the adapters at prediction."""
    return float(4 * patches * (4 * spec.width**2 + 8 * spec.width * spec.embed_dim))


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
