"""What a second run of `madclip bench` gains over a first one: other weights or another recipe, cell by cell.

    python benchmarks/two_runs.py FIRST SECOND [--method madclip] [--docs docs/results.md --mark second-tower]

FIRST and SECOND are folders that `bench --out` wrote. Cells are paired by set, shots and seed, which draw the same
shots, and are left out where they were not measured on the same test images.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from madclip.benchmark.render import markdown
from madclip.benchmark.tables import mean_difference, mean_of_draws
from madclip.files import write_between

Cells: TypeAlias = "dict[tuple[str, int, int], dict[str, Any]]"
"""Of one method, by set, shots and seed."""


def cells_of(run: Path, method: str) -> Cells:
    """Every finished cell of a method in a run."""
    all_of_them = [json.loads(path.read_text()) for path in sorted((run / "cells").glob("*.json"))]
    named = [(one["cell"], one) for one in all_of_them]
    return {(cell["set"], cell["shots"], cell["seed"]): one for cell, one in named if cell["method"] == method}


def table(first: Cells, second: Cells) -> str:
    """Levels and gains of images and pixels, by shots and set, and the mean of sets."""
    rows = []
    for shots in sorted({key[1] for key in second}):
        means: dict[str, dict[int, list[tuple[float, float]]]] = {
            name: defaultdict(list) for name in ("image", "pixel")
        }
        for name in sorted({key[0] for key in second if key[1] == shots}):
            keys = [key for key in second if key[:2] == (name, shots) and key in first]
            keys = [key for key in keys if first[key]["images"] == second[key]["images"]]
            if not keys:
                continue
            row = [str(shots), name]
            for kind, by_seed in means.items():
                values = [[run[key]["metrics"][f"{kind}_auroc"][0] for run in (first, second)] for key in keys]
                if None in chain(*values):
                    row += ["-", "-"]
                    continue
                pairs = 100 * np.array(values)
                for key, (before, after) in zip(keys, pairs, strict=True):
                    by_seed[key[2]].append((before, after))
                row += _cells(pairs)
            _, (low, high) = mean_difference([(second[key], first[key]) for key in keys])
            rows.append([*row, f"[{low:+.1f}, {high:+.1f}]"])
        row = [str(shots), "mean of sets"]
        for by_seed in means.values():
            most = max((len(of) for of in by_seed.values()), default=0)
            whole = [np.mean(of, 0) for of in by_seed.values() if len(of) == most]
            row += _cells(np.array(whole)) if whole else ["-", "-"]
        rows.append([*row, ""])
    head = ["shots", "set", "images", "gain", "pixels", "gain", "images' gain over test images"]
    return markdown(head, rows)


def _cells(pairs: np.ndarray[Any, np.dtype[np.float64]]) -> list[str]:
    return [mean_of_draws(pairs[:, 1]), mean_of_draws(pairs[:, 1] - pairs[:, 0], "+")]


def main() -> None:
    """Parse, read, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--method", default="madclip")
    parser.add_argument("--docs", type=Path, help="page to write between its marks")
    parser.add_argument("--mark", default="second-tower", help="the marks' name")
    given = parser.parse_args()
    text = table(cells_of(given.first, given.method), cells_of(given.second, given.method))
    note = (
        "AUROC of the second run in percent and its gain over the first, mean over draws of shots with Student's 95 % "
        "interval; last, the paired bootstrap over test images (patients where they are known)."
    )
    print(f"{text}\n\n{note}")
    if given.docs:
        write_between(given.docs, given.mark, f"{text}\n\n{note}")


if __name__ == "__main__":
    main()
