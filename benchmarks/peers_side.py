"""What a peer does, in the peers' own environment: one task a process, its seconds and values as JSON.

    PEERS/bin/python benchmarks/peers_side.py TASK WORK

TASK is a function of this file, WORK the folder that `benchmarks/peers.py` made. Nothing of madclip is imported.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

Said = dict[str, Any]


def images(work: Path, name: str, side: int) -> list[Callable[[], torch.Tensor]]:
    """How each file of a folder becomes the pixels [1, 3, side, side] that a model sees."""
    from PIL import Image
    from torchvision.transforms import v2

    change = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize((side, side), antialias=True),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )

    def read(path: Path) -> torch.Tensor:
        pixels: torch.Tensor = change(Image.open(path).convert("RGB"))[None]
        return pixels

    return [lambda path=path: read(path) for path in sorted((work / name).iterdir())]  # type: ignore[misc]


def timed(score: Callable[[torch.Tensor], Any], files: list[Callable[[], torch.Tensor]]) -> Said:
    """Median seconds of an image, from its file to its map; the first two are not counted."""
    seconds = []
    for read in files:
        start = time.perf_counter()
        with torch.inference_mode():
            score(read())
        seconds.append(time.perf_counter() - start)
    return {"seconds": median(seconds[2:])}


def patchcore(work: Path) -> Said:
    """PatchCore as anomalib has it (WideResNet-50, a tenth of the patches of 16 normal images), random weights."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    torch.manual_seed(0)
    model = PatchcoreModel(layers=["layer2", "layer3"], backbone="wide_resnet50_2", pre_trained=False)
    model.train()
    model.feature_extractor.eval()
    with torch.inference_mode():
        for read in images(work, "normal", 240):
            model(read())
    model.subsample_embedding(0.1)
    return timed(model.eval(), images(work, "tests", 240))


def winclip(work: Path) -> Said:
    """WinCLIP as anomalib has it (ViT-B/16-plus-240, zero-shot), random weights."""
    import open_clip
    from anomalib.models.image.winclip import torch_model

    whole = open_clip.create_model_and_transforms
    torch_model.open_clip.create_model_and_transforms = lambda name, **_: whole(name, pretrained=None)
    torch.manual_seed(0)
    model = torch_model.WinClipModel(class_name="brain").eval()
    return timed(model, images(work, "tests", 240))


def pixel_metrics(work: Path) -> Said:
    """Pixel AUROC by torchmetrics and AUPRO by anomalib, exact, over all maps."""
    from anomalib.metrics.aupro import _AUPRO
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision

    maps, masks = np.load(work / "maps.npy"), np.load(work / "masks.npy")
    start = time.perf_counter()
    scores, targets = torch.from_numpy(maps), torch.from_numpy(masks).int()
    metric = _AUPRO(fpr_limit=0.3)
    metric.update(scores, targets)
    aupro = float(metric.compute())
    between = time.perf_counter()
    auroc = float(binary_auroc(scores.flatten(), targets.flatten()))
    precision = float(binary_average_precision(scores.flatten(), targets.flatten()))
    return {
        "seconds": time.perf_counter() - start,
        "seconds of AUPRO": between - start,
        "pixel AUROC": auroc,
        "pixel average precision": precision,
        "AUPRO": aupro,
    }


def peak_mb() -> float:
    """The most memory that this process held since it began, 1e6 bytes."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[3]))
    print(json.dumps({**globals()[sys.argv[1]](Path(sys.argv[2])), "peak_mb": peak_mb()}))
