"""How fast this machine does each step, in seconds and as a share of what its matrix products reach.

Every row is measured in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from madclip.benchmark.render import markdown as markdown_table
from madclip.benchmark.speed_rows import ROWS, SLOW
from madclip.benchmark.timing import SHAPES, make_random, matmul_gflops, peak_mb
from madclip.errors import MadCLIPError, MissingExtraError, RecipeError
from madclip.files import first_line
from madclip.scale.executor import run_alone

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Timing:
    """One measurement.

    Attributes:
        name: What was measured.
        seconds: Median, of a step, an image, or the whole, as `per` says.
        per: `step`, `image` or `run`.
        low: Fastest of the repetitions.
        high: Slowest.
        repetitions: How many.
        flops: Operations that must be done for it; None where that is not counted.
        fraction: Share of the machine's rate of matrix products in this precision; None without `flops`.
        matmul_gflops_fp32: That rate in float32, in the same process: the mean of before and after.
        matmul_gflops_bf16: That rate in bfloat16; None where the processor has none.
        peak_mb: Largest memory of the process that does it, 1e6 bytes; exports are written by another one.
        backbone: The weights that were used.
        threads: How many threads torch had.
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
    """A row that could not be measured.

    Attributes:
        name: What was to be measured.
        reason: Why there is nothing.
        failed: True for an error; False where this machine lacks what it takes.
    """

    name: str
    reason: str
    failed: bool


def measure(name: str, source: str, shown: str) -> Timing:
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
    return Timing(
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


def measure_all(names: list[str], backbone: str) -> Iterator[Timing | Missing]:
    """Each row from a process of its own, or why there is none; the rest goes on.

    Args:
        names: Which rows.
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
            yield measure_alone(name, source, backbone)


def measure_alone(name: str, source: str, shown: str) -> Timing | Missing:
    """One row from a process of its own, or why there is none."""
    try:
        return run_alone(measure, name, source, shown)
    except MissingExtraError as error:
        return Missing(name, f"not installed: {error}", failed=False)
    except RecipeError as error:
        return Missing(name, f"not measured: {error}", failed=False)
    except MadCLIPError as error:
        return Missing(name, f"failed: {error}", failed=True)
    except Exception as error:  # noqa: BLE001 -- whatever went wrong in the other process, the rest goes on
        return Missing(name, f"failed: {type(error).__name__}: {first_line(error)}", failed=True)


def markdown(rows: list[Timing | Missing]) -> str:
    """A table for people."""
    head = ("row", "backbone", "median", "spread", "operations", "share of the matrix-product rate", "peak memory")
    return f"{markdown_table(head, map(_cells, rows))}\n"


def _cells(row: Timing | Missing) -> list[str]:
    if isinstance(row, Missing):
        return [f"`{row.name}`", "", row.reason, "", "", "", ""]
    return [
        f"`{row.name}`",
        row.backbone,
        f"{row.seconds:.3g} s per {row.per}",
        f"{row.low:.3g} to {row.high:.3g}, {row.repetitions} times",
        "-" if row.flops is None else f"{row.flops / 1e9:.1f} GFLOP",
        "-" if row.fraction is None else f"{row.fraction:.0%}",
        f"{row.peak_mb / 1000:.2f} GB",
    ]
