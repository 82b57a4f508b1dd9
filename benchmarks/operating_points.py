"""What a threshold chosen from the shots for 95 % sensitivity reaches on test images, over several draws of the shots.

    python benchmarks/operating_points.py NAME=FOLDER:OBJECTIVE ... --out RUNS --shots 4 8 16 --seeds 5 \
        --docs docs/evaluation.md

Runs that are finished are not repeated; a row counts the draws that are there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

from madclip import MadCLIP
from madclip.data.load import load_dataset
from madclip.evaluation.repeat import repeat
from madclip.files import write_between
from madclip.fitting import Run
from madclip.training.cache import TokenCache
from sets import LabelledSet

POINT = "sens=0.95"


def row(name: str, shots: int, runs: list[dict[str, Any]]) -> str:
    """One line: the median and every draw, of both rates and of the image AUROC."""
    cells = []
    for key in ("sensitivity", "specificity", "image_auroc"):
        values = [run[key] for run in runs]
        cells.append(f"{median(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})")
    return f"| {name} | {shots} | {shots / (shots + 1):.2f} | " + " | ".join(cells) + " |"


def main() -> None:
    """Parse, run what is missing, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=LabelledSet.parse, metavar="NAME=FOLDER:OBJECTIVE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--docs", type=Path, help="page to write between its marks `operating points`")
    given = parser.parse_args()
    lines = [
        "| set | K | highest promise, K / (K + 1) | sensitivity: median (each draw) | specificity | image AUROC |",
        "|---|---|---|---|---|---|",
    ]
    for name, folder, objective in given.sets:
        data = load_dataset(folder)
        for shots in given.shots:
            found = repeat(
                MadCLIP(backbone="tiny", objective=objective),
                data,
                given.out / f"{name}-{shots}",
                shots=shots,
                seeds=range(given.seeds),
                folds=4,
                operating_point=POINT,
                run=Run(cache=TokenCache()),
            )
            lines.append(row(name, shots, found["runs"]))
            print(lines[-1], flush=True)
    if given.docs:
        write_between(given.docs, "operating points", "\n".join(lines))


if __name__ == "__main__":
    main()
