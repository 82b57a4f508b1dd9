"""RD4AD's loss and map by madclip and by anomalib 2.7 on the same random features, each in a process of its own.

    python benchmarks/reverse_distillation.py --environment PEERS

PEERS is the second environment that `benchmarks/peers.py` makes. Our map is half the mean over taps, theirs the sum,
which is undone here. Maps are as large as the features, so that nothing is interpolated, and are compared where the
smoothing does not reach the border, which ours repeats and theirs reflects.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SIDE, TAPS, CHANNELS, IMAGES = 64, 4, 48, 4
SIGMA, BORDER = 4.0, 16


def ours(features: Path) -> None:
    """Loss and smoothed maps by madclip."""
    import torch

    from madclip.head.memory import smooth
    from madclip.methods.distillation import image_distance
    from madclip.methods.rd4ad import reverse_map

    with np.load(features) as arrays:
        student, teacher = (torch.from_numpy(arrays[name]) for name in ("student", "teacher"))
    loss = image_distance(student, teacher).mean(0).sum()
    maps = 2 * TAPS * reverse_map(student, teacher).unflatten(1, (SIDE, SIDE))
    np.savez(features.with_name("ours.npz"), loss=loss.numpy(), maps=smooth(maps, SIGMA).numpy())


def theirs(features: Path) -> None:
    """Loss and smoothed maps by anomalib."""
    import torch
    from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode, AnomalyMapGenerator
    from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss

    with np.load(features) as arrays:
        student, teacher = (list(torch.from_numpy(arrays[name]).unbind(1)) for name in ("student", "teacher"))
    loss = ReverseDistillationLoss()(teacher, student)
    maker = AnomalyMapGenerator((SIDE, SIDE), int(SIGMA), AnomalyMapGenerationMode.ADD)
    maps = maker(student, teacher)[:, 0]
    np.savez(features.with_name("theirs.npz"), loss=loss.numpy(), maps=maps.numpy())


def main() -> None:
    """Compare both, or be one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--environment", type=Path)
    parser.add_argument("--side", choices=["ours", "theirs"])
    parser.add_argument("--features", type=Path)
    asked = parser.parse_args()
    if asked.side:
        {"ours": ours, "theirs": theirs}[asked.side](asked.features)
        return
    with tempfile.TemporaryDirectory() as folder:
        features = Path(folder) / "features.npz"
        generator = np.random.default_rng(0)
        shape = (IMAGES, TAPS, CHANNELS, SIDE, SIDE)
        teacher = generator.standard_normal(shape, np.float32)
        np.savez(features, teacher=teacher, student=teacher + generator.standard_normal(shape, np.float32))
        for side, python in (("ours", sys.executable), ("theirs", asked.environment / "bin" / "python")):
            subprocess.run([python, __file__, "--side", side, "--features", features], check=True)
        with np.load(features.with_name("ours.npz")) as one, np.load(features.with_name("theirs.npz")) as other:
            for name in ("loss", "maps"):
                inside = (..., *(slice(BORDER, -BORDER),) * 2) if name == "maps" else ...
                a, b = one[name][inside], other[name][inside]
                print(f"{name}: means {a.mean():.6f} and {b.mean():.6f}, at most {np.abs(a - b).max():.1e} apart")


if __name__ == "__main__":
    main()
