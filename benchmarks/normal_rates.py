"""How many normal test images a detector of normal images alone calls anomalous, over draws of these images.

    python benchmarks/normal_rates.py NAME=FOLDER:OBJECTIVE ... --shots 9 16 --seeds 10 --docs docs/modes.md

Every threshold aims at 10 % (`spec=0.9`). Images of patients that gave a shot are left out, as `evaluate` does; only
normal images are read, and encoded once for all draws. With `--held-out` they are those of valid/ that were not drawn,
which come from where the shots come from.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

import torch

from madclip import MadCLIP
from madclip.backbones import load_backbone
from madclip.data.geometry import fit_pixels
from madclip.data.load import load_dataset
from madclip.data.readers import read_image
from madclip.files import write_between
from madclip.training.encode import backbone_pixels
from sets import LabelledSet

BATCH = 8


@torch.inference_mode()
def rates(folder: Path, objective: str, shots: list[int], seeds: int, *, held_out: bool) -> dict[int, list[float]]:
    """Share in percent of other normal images at or above the threshold, for each number of shots and draw."""
    backbone, data = load_backbone("tiny"), load_dataset(folder)
    samples = [sample for sample in (data.shot_pool if held_out else data.test_pool) if not sample.label]
    view = MadCLIP(backbone=backbone).recipe.view
    pixels = [fit_pixels(read_image(sample.image, view.grey_range).pixels, view) for sample in samples]
    batches = [torch.stack(pixels[i : i + BATCH]) for i in range(0, len(pixels), BATCH)]
    streams = [torch.stack(backbone.encode_image(backbone_pixels(backbone, view, one)), 1) for one in batches]
    found: dict[int, list[float]] = {count: [] for count in shots}
    for count in shots:
        for seed in range(seeds):
            detector = MadCLIP(backbone=backbone, objective=objective).fit(data, shots=(count, 0), seed=seed)
            scores = torch.cat([detector.state.score(one)[0] for one in streams])
            unseen = torch.tensor([not detector.provenance.saw(sample) for sample in samples])
            threshold = detector.calibration.threshold if detector.calibration else float("inf")
            found[count].append(100 * float((scores[unseen] >= threshold).float().mean()))
    return found


def main() -> None:
    """Parse, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=LabelledSet.parse, metavar="NAME=FOLDER:OBJECTIVE")
    parser.add_argument("--shots", type=int, nargs="+", default=[16])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--held-out", action="store_true", help="on images of valid/ that were not drawn, not on test/")
    parser.add_argument("--docs", type=Path, help="page to write between its marks `normal rates`")
    given = parser.parse_args()
    lines = ["| set | normal images | promised | mean of draws | each draw |", "|---|---|---|---|---|"]
    means: dict[int, list[float]] = {count: [] for count in given.shots}
    for name, folder, objective in given.sets:
        for count, values in rates(folder, objective, given.shots, given.seeds, held_out=given.held_out).items():
            promised = 100 * int((count + 1) * 0.1 + 1e-9) / (count + 1)
            each = ", ".join(f"{value:.0f}" for value in values)
            lines.append(f"| {name} | {count} | {promised:.1f} | {fmean(values):.1f} | {each} |")
            means[count].append(fmean(values))
            print(lines[-1], flush=True)
    lines += [f"| mean of sets | {count} | | {fmean(values):.1f} | |" for count, values in means.items()]
    print("\n".join(lines[-len(means) :]))
    if given.docs:
        write_between(given.docs, "normal rates", "\n".join(lines))


if __name__ == "__main__":
    main()
