"""Whether a threshold from cross-fitted scores fits the final head, on images of valid/ that are not shots.

    python benchmarks/threshold_shift.py NAME=FOLDER:OBJECTIVE ... --shots 4 16 --seeds 3 \
        --docs docs/evaluation.md

For each set, count and draw: how far the scores of new images lie above the cross-fitted scores of the shots of the
same class (log-odds, mean of each), and what the threshold for sensitivity 0.95 reaches. A shift with one sign over
the draws would say that the two heads score on different scales.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import logit

from madclip import MadCLIP, load_backbone
from madclip.data.load import load_dataset
from madclip.files import write_between
from madclip.fitting import Run
from madclip.training.cache import TokenCache
from recipes import draw, gain
from sets import LabelledSet

if TYPE_CHECKING:
    from madclip.backbones.spec import Backbone

Draw = tuple[float, float, float, float]


def one(backbone: Backbone, folder: str, objective: str, shots: int, seed: int) -> Draw:
    """Shifts of the normal and of the abnormal images, sensitivity, specificity, on images that are not shots."""
    chosen, rest = draw(load_dataset(folder).shot_pool, shots, seed)
    detector = MadCLIP(backbone=backbone, objective=objective)
    detector.fit(chosen, seed=seed, operating_point="sens=0.95", run=Run(TokenCache()))
    known = detector.calibration
    assert known is not None
    scores = np.array([found.score for found in detector.predict([sample.image for sample in rest])])
    labels = np.array([sample.label for sample in rest])
    called = scores >= known.threshold
    return (
        float(logit(scores[labels == 0]).mean() - logit(known.normal_scores).mean()),
        float(logit(scores[labels == 1]).mean() - logit(known.abnormal_scores).mean()),
        float(called[labels == 1].mean()),
        float(1 - called[labels == 0].mean()),
    )


def main() -> None:
    """Parse, measure, print one line for each set and count, and the mean shift over all draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=LabelledSet.parse, metavar="NAME=FOLDER:OBJECTIVE")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--docs", type=Path, help="page to write between its marks `threshold shift`")
    given = parser.parse_args()
    backbone = load_backbone(given.backbone, dtype="auto")
    lines = ["| K | set | shift of normals | of abnormals | sensitivity | specificity |", "|---|---|---|---|---|---|"]
    for shots in given.shots:
        every: list[Draw] = []
        for name, folder, objective in given.sets:
            found = [one(backbone, folder, objective, shots, seed) for seed in range(given.seeds)]
            columns = [", ".join(f"{value:.2f}" for value in column) for column in zip(*found, strict=True)]
            lines.append(f"| {shots} | {name} | " + " | ".join(columns) + " |")
            print(lines[-1], flush=True)
            every += found
        means = " | ".join(gain([row[side] for row in every], 2) for side in (0, 1))
        lines.append(f"| {shots} | mean over draws | {means} | | |")
        print(lines[-1], flush=True)
    if given.docs:
        write_between(given.docs, "threshold shift", "\n".join(lines))


if __name__ == "__main__":
    main()
