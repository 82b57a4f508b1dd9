"""What tiles bring where a lesion is small in a large image: sheets of phantoms, one of which is abnormal or none.

    python benchmarks/tiles.py --modality histology --shots 8 --docs docs/data.md

A sheet is SIDE x SIDE phantoms of 240 pixels. A detector that sees it whole at 240 pixels is compared with one that
sees it in tiles of 240 (of the sheet), on new sheets, with the same shots and seed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from madclip.detector import MadCLIP
from madclip.evaluation.protocol import evaluate
from madclip.files import write_between
from madclip.phantoms import generate
from madclip.recipe import Recipe

SIDE, PIXELS = 4, 240


def write_sheets(folder: Path, modality: str, count: int, seed: int) -> None:
    """Writes `count` normal and `count` abnormal sheets, and masks of the lesion."""
    drawn = generate(modality, 2 * count * SIDE**2, seed=seed, size=PIXELS)
    labels, pixels, masks = drawn.labels.numpy(), drawn.pixels.numpy(), 255 * drawn.masks.numpy().astype(np.uint8)
    normal, abnormal = list(np.flatnonzero(labels == 0)), list(np.flatnonzero(labels == 1))
    rng = np.random.default_rng(seed)
    for number in range(2 * count):
        kind = "abnormal" if number % 2 else "normal"
        cells = [normal[(number * SIDE**2 + place) % len(normal)] for place in range(SIDE**2)]
        if kind == "abnormal":
            cells[rng.integers(len(cells))] = abnormal[number % len(abnormal)]
        for name, parts in ((kind, pixels), ("masks", masks)):
            if name == "masks" and kind == "normal":
                continue
            rows = [np.concatenate([np.atleast_3d(parts[c].T) for c in cells[r::SIDE]], 0) for r in range(SIDE)]
            sheet = np.concatenate(rows, 1).swapaxes(0, 1)
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(sheet.squeeze()).save(folder / name / f"{number:03d}.png")


def main() -> None:
    """Fits and measures both, and prints or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modality", default="histology")
    parser.add_argument("--shots", type=int, default=8)
    parser.add_argument("--tests", type=int, default=40, help="normal and abnormal sheets that are measured, of each")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    lines = ["| seen | image AUROC | pixel AUROC | fit | an image |", "|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as work:
        write_sheets(Path(work, "shots"), options.modality, options.shots, 0)
        write_sheets(Path(work, "tests"), options.modality, options.tests, 1)
        for name, tile in (("whole", 0), (f"in tiles of {PIXELS} px", PIXELS)):
            detector = MadCLIP(Recipe(tile=tile), backbone=options.backbone, objective=options.modality)
            start = time.perf_counter()
            detector.fit(Path(work, "shots"), shots=options.shots, folds=0)
            fitted = time.perf_counter()
            found = evaluate(detector, Path(work, "tests")).metrics
            each = (time.perf_counter() - fitted) / (2 * options.tests)
            cells = [
                f"{e.value:.3f} ({e.low:.3f} to {e.high:.3f})" for e in (found["image_auroc"], found["pixel_auroc"])
            ]
            lines.append(f"| {name} | {' | '.join(cells)} | {fitted - start:.0f} s | {each:.2f} s |")
    table = "\n".join(lines)
    print(table)
    if options.docs:
        write_between(options.docs, f"tiles {options.backbone}", table)


if __name__ == "__main__":
    main()
