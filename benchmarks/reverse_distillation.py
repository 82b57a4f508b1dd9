"""RD4AD's loss and map by madclip and by anomalib 2.7 on the same random features, each in a process of its own.

    python benchmarks/reverse_distillation.py --environment PEERS

PEERS is the second environment that `benchmarks/peers.py` makes. Our map is half the mean over taps, theirs the sum,
which is undone here. Maps are as large as the features, so that nothing is interpolated, and are compared where the
smoothing does not reach the border, which ours repeats and theirs reflects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from two_sides import compare

if TYPE_CHECKING:
    from pathlib import Path

    from two_sides import Arrays

SIDE, TAPS, CHANNELS, IMAGES = 64, 4, 48, 4
SIGMA, BORDER = 4.0, 16
INSIDE = (..., *(slice(BORDER, -BORDER),) * 2)


def ours(folder: Path) -> Arrays:
    """Loss and smoothed maps by madclip, of features that it draws."""
    import torch

    from madclip.head.memory import smooth
    from madclip.methods.distillation import image_distance
    from madclip.methods.rd4ad import reverse_map

    generator = np.random.default_rng(0)
    shape = (IMAGES, TAPS, CHANNELS, SIDE, SIDE)
    teacher = generator.standard_normal(shape, np.float32)
    student = teacher + generator.standard_normal(shape, np.float32)
    np.savez(folder / "features.npz", teacher=teacher, student=student)
    pair = torch.from_numpy(student), torch.from_numpy(teacher)
    maps = 2 * TAPS * reverse_map(*pair).unflatten(1, (SIDE, SIDE))
    loss = image_distance(*pair).mean(0).sum()
    return {"loss": loss.numpy(), "maps": smooth(maps, SIGMA).numpy()[INSIDE]}


def theirs(folder: Path) -> Arrays:
    """Loss and smoothed maps by anomalib, of the same features."""
    import torch
    from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode, AnomalyMapGenerator
    from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss

    with np.load(folder / "features.npz") as arrays:
        student, teacher = (list(torch.from_numpy(arrays[name]).unbind(1)) for name in ("student", "teacher"))
    loss = ReverseDistillationLoss()(teacher, student)
    maker = AnomalyMapGenerator((SIDE, SIDE), int(SIGMA), AnomalyMapGenerationMode.ADD)
    return {"loss": loss.numpy(), "maps": maker(student, teacher)[:, 0].numpy()[INSIDE]}


if __name__ == "__main__":
    compare(__file__, __doc__, ours, theirs)
