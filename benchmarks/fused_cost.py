"""What partners cost: processor seconds of one backbone and of another, in turn.

    python benchmarks/fused_cost.py tiny tiny+lite0 --images FOLDER [--rounds 7] [--only predict-files]

One thread. `score` takes batches of 8 that lie in memory, `predict-files` whole files to maps of their own size, `fit`
16 + 16 phantoms with masks without a cache or folds, `first` is a process that loads a detector and scores an image.
The ratio is the median over rounds of second to first.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from madclip.benchmark.speed_rows import _detector
from madclip.data.load import load_dataset
from madclip.fitting import Run
from madclip.phantoms.dataset import write_phantoms

if TYPE_CHECKING:
    from collections.abc import Callable

    from madclip import MadCLIP

FIRST = (
    "import sys, numpy as np; from madclip import MadCLIP; "
    "MadCLIP.load(sys.argv[1]).predict(np.zeros((240, 240), np.uint8))"
)


def work(folder: Path, images: list[Path]) -> dict[str, Callable[[MadCLIP, str], object]]:
    """What is timed, by name; it gets the detector and the name of its backbone."""
    pixels = torch.rand(8, 3, 240, 240)
    write_phantoms(folder / "phantoms", "brain", 1, 1, 0, 0.5, 240, shots=16)
    shots = load_dataset(folder / "phantoms").shot_pool

    def first(detector: MadCLIP, name: str) -> None:
        if not (saved := folder / name).exists():
            detector.save(saved)
        subprocess.run([sys.executable, "-c", FIRST, str(saved)], check=True)

    return {
        "score": lambda detector, _: detector.score(pixels),
        "predict-files": lambda detector, _: [None for _ in detector.predict_iter(images)],
        "first": first,
        "fit": lambda detector, _: detector.fit(shots, folds=0, run=Run()),
    }


def spent() -> float:
    """Processor seconds of this process and of its children."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def main() -> None:
    """Print a row for each kind of work and type of numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs=2)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", action="append")
    parser.add_argument("--dtype", default="auto")
    given = parser.parse_args()
    torch.set_num_threads(1)
    images = sorted(path for path in given.images.iterdir() if path.is_file())[:24]
    with tempfile.TemporaryDirectory() as folder:
        for name, do in work(Path(folder), images).items():
            if given.only and name not in given.only:
                continue
            rounds = 1 if name == "fit" else given.rounds
            times: list[list[float]] = [[], []]
            detectors = [_detector(backbone, given.dtype) for backbone in given.backbones]
            for turn in range(rounds + (name != "fit")):
                for seconds, detector, backbone in zip(times, detectors, given.backbones, strict=True):
                    start = spent()
                    do(detector, backbone)
                    if turn or name == "fit":  # the first round warms up
                        seconds.append(spent() - start)
            each = {"score": 8, "predict-files": len(images)}.get(name, 1)
            medians = [f"{statistics.median(seconds) / each:.4f}" for seconds in times]
            ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
            print(f"| {name}, {given.dtype} | {' | '.join(medians)} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
