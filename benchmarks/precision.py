"""What less precision changes: losses of a whole fit, decisions and AUROC on test images.

    python benchmarks/precision.py NAME=FOLDER:OBJECTIVE ... --docs docs/performance.md

For each set one fit in float32 and one in bfloat16 on the same shots, and exports of the first. Everything is set
beside the float32 detector. Decisions are those at its calibrated threshold.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from madclip import MadCLIP, MadCLIPError, load_backbone
from madclip.evaluation.protocol import evaluate
from madclip.export.engines import export_engine
from madclip.export.use import use_engine
from madclip.files import write_between
from madclip.fitting import Run
from madclip.training.cache import TokenCache
from sets import LabelledSet

if TYPE_CHECKING:
    from madclip.evaluation.result import EvaluationResult
    from madclip.export.engines import Format, Precision

EXPORTS: tuple[tuple[Format, Precision], ...] = (
    ("openvino", "fp32"),
    ("openvino", "bf16"),
    ("openvino", "int8"),
    ("onnx", "fp32"),
    ("onnx", "int8"),
)
HEAD = "| set | what | loss, largest difference of an epoch | decisions changed | image AUROC | pixel AUROC |"


def fitted(folder: str, objective: str, dtype: str, shots: int, source: str) -> MadCLIP:
    """A detector whose tokens and products are of a type; cross-fitted for its threshold."""
    detector = MadCLIP(backbone=load_backbone(source, dtype=dtype), objective=objective)
    return detector.fit(folder, shots=shots, seed=0, run=Run(TokenCache()))


def row(name: str, what: str, loss: float | None, plain: EvaluationResult, other: EvaluationResult | str) -> str:
    """One line of the table; `other` may say why there is nothing."""
    if isinstance(other, str):
        return f"| {name} | {what} | - | {other} | - | - |"
    threshold = plain.threshold
    assert threshold is not None
    called = [np.array([one.score for one in result.rows]) >= threshold for result in (plain, other)]
    cells = ["-" if loss is None else f"{loss:.2%}", f"{(called[0] != called[1]).mean():.1%} of {len(called[0])}"]
    for metric in ("image_auroc", "pixel_auroc"):
        before, after = plain.metrics[metric].value, other.metrics[metric].value
        cells.append("-" if before is None or after is None else f"{100 * after:.2f} ({100 * (after - before):+.2f})")
    return f"| {name} | {what} | " + " | ".join(cells) + " |"


def on_set(name: str, folder: str, objective: str, shots: int, source: str) -> list[str]:
    """The rows of one set."""
    detector = fitted(folder, objective, "float32", shots, source)
    plain = evaluate(detector, folder)
    rows = [row(name, "torch, fp32", None, plain, plain)]
    half = fitted(folder, objective, "bfloat16", shots, source)
    totals = [np.array([sum(epoch.values()) for epoch in one.state.history]) for one in (detector, half)]
    rows.append(
        row(
            name,
            "fit and prediction in bf16",
            float(abs(totals[1] / totals[0] - 1).max()),
            plain,
            evaluate(half, folder),
        )
    )
    for engine, precision in EXPORTS:
        with tempfile.TemporaryDirectory() as out:
            try:
                export_engine(detector, Path(folder), Path(out) / "model", engine=engine, precision=precision)
                use_engine(detector, Path(out) / "model")
                found: EvaluationResult | str = evaluate(detector, folder)
            except MadCLIPError as error:
                found = f"not written: {error}"
        detector.engine = None
        rows.append(row(name, f"{engine}, {precision}", None, plain, found))
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Parse, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=LabelledSet.parse, metavar="NAME=FOLDER:OBJECTIVE")
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--docs", type=Path, help="page to write between its marks `precision`")
    given = parser.parse_args()
    lines = [HEAD, "|" + "---|" * (HEAD.count("|") - 1)]
    for name, folder, objective in given.sets:
        lines += on_set(name, folder, objective, given.shots, given.backbone)
    lines += [
        "",
        f"{given.shots} shots, {given.backbone}, torch {torch.__version__}, {torch.get_num_threads()} threads.",
    ]
    print("\n".join(lines))
    if given.docs:
        write_between(given.docs, "precision", "\n".join(lines))


if __name__ == "__main__":
    main()
