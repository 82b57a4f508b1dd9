"""How often a detector says of an image that it is unlike the shots, of the right kind and of others.

    python benchmarks/familiarity.py NAME=FOLDER:OBJECTIVE ... --draws 40 --docs docs/evaluation.md

Shots and images come from valid/ of each folder, all of different kinds; the other folders' images are the wrong kind.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from madclip import Recipe, load_backbone
from madclip.calibration.familiarity import Familiarity
from madclip.data.load import load_dataset
from madclip.files import write_between
from madclip.head.scorer import pool
from madclip.training.encode import encode_patches
from madclip.training.shots import read_shot
from sets import LabelledSet


def main() -> None:
    """A row for each number of shots and folder: mean and worst draw of both rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=LabelledSet.parse, metavar="NAME=FOLDER:OBJECTIVE")
    parser.add_argument("--draws", type=int, default=40)
    parser.add_argument("--shots", type=int, nargs="+", default=[2, 4, 8, 16])
    parser.add_argument("--docs", type=Path, help="page to write between its marks `familiarity`")
    given = parser.parse_args()
    backbone, recipe = load_backbone("tiny", image_size=Recipe().image_size), Recipe()
    features, labels = {}, {}
    for name, folder, _ in given.sets:
        samples = load_dataset(folder).split("valid")
        with torch.inference_mode():
            rows = [
                pool(torch.stack(encode_patches(backbone, recipe.view, read_shot(sample, recipe.view).pixels[None]), 1))
                for sample in samples
            ]
        features[name] = torch.cat(rows).numpy()
        labels[name] = np.array([sample.label for sample in samples])
    lines = [
        "| shots | set | right kind, warned of: mean (worst draw) | other kinds, warned of: mean (worst draw) |",
        "|---|---|---|---|",
    ]
    for shots in given.shots:
        for name in features:
            others = np.concatenate([features[other] for other in features if other != name])
            false, true = [], []
            for seed in range(given.draws):
                random = np.random.default_rng(seed)
                sides = (np.flatnonzero(labels[name] == label) for label in (0, 1))
                drawn = np.concatenate([random.choice(side, shots, replace=False) for side in sides])
                found = Familiarity.fit(features[name][drawn])
                rest = np.setdiff1d(np.arange(len(labels[name])), drawn)
                false.append(1 - found.familiar(features[name][rest]).mean())
                true.append(1 - found.familiar(others).mean())
            rates = f"{np.mean(false):.3f} ({np.max(false):.2f}) | {np.mean(true):.3f} ({np.min(true):.2f})"
            lines.append(f"| {shots} | {name} | {rates} |")
    print("\n".join(lines))
    if given.docs:
        write_between(given.docs, "familiarity", "\n".join(lines))


if __name__ == "__main__":
    main()
