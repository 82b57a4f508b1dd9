"""What explains the numbers of RD4AD and MKD: how far a student is from the tower, where, and at which tap.

    python benchmarks/students.py BrainLGG=DIR:Brain FundusIDRiD=DIR:fundus --out RUNS --docs docs/benchmarks.md

Each set and method is a file in RUNS, about a minute on one core; what is there is not computed again. 16 normal shots
of seed 0 with `tiny`, and the first 40 test images of each class, with maps at 60 x 60.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score

from floors import centre_map, intensity_map
from madclip.backbones import load_backbone
from madclip.benchmark.render import Table, render
from madclip.data.geometry import fit_mask, fit_pixels
from madclip.data.load import load_dataset, read_sample
from madclip.files import write_between, write_whole
from madclip.head.memory import smooth
from madclip.head.scorer import pool
from madclip.methods import rd4ad
from madclip.methods.distillation import image_distance, patch_distance, to_planes
from madclip.methods.mkd import MKD
from madclip.methods.rd4ad import RD4AD
from madclip.recipe import View
from madclip.training.shots import draw_samples
from sets import sets_and_page

if TYPE_CHECKING:
    from madclip.data.samples import Sample

IMAGES, SIDE, SMALL = 40, 240, 60
PLAIN = rd4ad.Student
METHODS: dict[str, type[RD4AD | MKD]] = {"rd4ad": RD4AD, "rd4ad, half the grid": RD4AD, "mkd": MKD}


class HalfGrid(rd4ad.Student):
    """RD4AD's student with an embedding of half the taps' size, as the authors' has half that of their last level."""

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """See `rd4ad.Student.forward`."""
        hidden = F.avg_pool2d(self.embed(planes.flatten(1, 2)), 2, ceil_mode=True)
        hidden = F.interpolate(hidden, planes.shape[3:], mode="bilinear")
        said = []
        for decode, say in zip(self.decode, self.say, strict=True):
            hidden = decode(hidden)
            said.append(say(hidden))
        return torch.stack(said[::-1], 1)


def measure(name: str, folder: Path, objective: str) -> dict[str, Any]:
    """All numbers of a method on a set."""
    rd4ad.Student = HalfGrid if name.endswith("grid") else PLAIN  # type: ignore[misc]
    data = load_dataset(folder)
    shots = draw_samples(data, 16, 0)
    test = [s for label in (0, 1) for s in [t for t in data.test_pool if t.label == label][:IMAGES]]
    model = METHODS[name](load_backbone("tiny", image_size=SIDE, device="cpu"), objective=objective)
    model.fit(shots)
    normal = [sample for sample in shots if not sample.label]
    seen, near = (distances(model, samples) for samples in (test, normal))
    labels = np.array([sample.label for sample in test])
    marked = np.stack([mask(sample) for sample in test])
    maps = shrunk(seen["taps"].mean(1) / 2)
    area = torch.from_numpy(marked)
    abnormal = torch.from_numpy(labels == 1)
    return {
        "image": roc_auc_score(labels, seen["score"]),
        "image, mean": roc_auc_score(labels, seen["taps"].mean((1, 2))),
        "image, largest": roc_auc_score(labels, maps.amax((1, 2))),
        "image, floor": roc_auc_score(labels, 1 - (seen["pooled"] @ near["pooled"].mT).amax(1)),
        "pixel": pixel(marked, maps),
        "pixel, taps": [pixel(marked, shrunk(tap)) for tap in seen["taps"].unbind(1)],
        "pixel, intensity": pixel(marked, torch.stack([small(intensity_map(sample)) for sample in test])),
        "pixel, centre": pixel(marked, torch.stack([small(centre_map(sample)) for sample in test])),
        "distance": [float(one.mean()) for one in (near["far"], seen["far"][~abnormal], seen["far"][abnormal])],
        "map": [float(maps[area].mean()), float(maps[abnormal][~area[abnormal]].mean()), float(maps[~abnormal].mean())],
        "marked": float(area[abnormal].float().mean()),
    }


@torch.inference_mode()
def distances(model: RD4AD | MKD, samples: list[Sample]) -> dict[str, torch.Tensor]:
    """Of each image the score, the distance of whole taps, that of each patch at each tap, and the pooled tokens."""
    found: dict[str, list[torch.Tensor]] = {"score": [], "far": [], "taps": [], "pooled": []}
    for sample in samples:
        pixels = fit_pixels(read_sample(sample)[0].pixels, model.recipe.view)[None]
        tokens = model.image_tokens(pixels)
        planes = to_planes(model.standard(tokens), model.backbone.grid)
        # MKD's student reads the pixels, RD4AD's the taps themselves.
        inputs = model._pixels(pixels) if isinstance(model, MKD) else planes  # noqa: SLF001
        said = model.student(inputs)
        found["score"].append(model.score(pixels)[0])
        found["far"].append(image_distance(said, planes).sum(1))
        found["taps"].append(patch_distance(said, planes))
        found["pooled"].append(F.normalize(pool(tokens), dim=1))
    return {name: torch.cat(values) for name, values in found.items()}


def mask(sample: Sample) -> np.ndarray[Any, Any]:
    """What is marked, [60, 60]."""
    found = read_sample(sample)[1]
    if found is None:
        return np.zeros((SMALL, SMALL), bool)
    fitted = fit_mask(found, View(SIDE))
    return F.max_pool2d(fitted.float()[None, None], SIDE // SMALL)[0, 0].numpy() > 0


def shrunk(patches: torch.Tensor) -> torch.Tensor:
    """Values of patches [B, G] as smoothed maps [B, 60, 60]."""
    side = round(patches.shape[1] ** 0.5)
    drawn = F.interpolate(patches.unflatten(1, (side, side))[:, None], (SMALL, SMALL), mode="bilinear")[:, 0]
    return smooth(drawn, 4.0 * SMALL / SIDE)


def small(values: np.ndarray[Any, Any]) -> torch.Tensor:
    """A map [240, 240] at [60, 60]."""
    return F.avg_pool2d(torch.from_numpy(values)[None, None].float(), SIDE // SMALL)[0, 0]


def pixel(marked: np.ndarray[Any, Any], maps: torch.Tensor) -> float:
    """Pixel AUROC."""
    return float(roc_auc_score(marked.reshape(-1), maps.numpy().reshape(-1)))


def tables(found: dict[tuple[str, str], dict[str, Any]]) -> str:
    """The numbers as two tables."""
    apart, rows = [], []
    for (name, method), one in found.items():
        shots, normal, abnormal = one["distance"]
        inside, beside, without = one["map"]
        apart.append(
            (
                name,
                method,
                *(f"{v:.2f}" for v in (shots, normal, abnormal)),
                f"{inside:.3f}",
                f"{beside:.3f}",
                f"{without:.3f}",
                f"{one['marked']:.1%}",
            )
        )
        taps = ", ".join(f"{100 * v:.1f}" for v in one["pixel, taps"])
        images = (one["image"], one["image, mean"], one["image, largest"], one["image, floor"])
        pixels = (one["pixel"], one["pixel, intensity"], one["pixel, centre"])
        rows.append((name, method, *(f"{100 * v:.1f}" for v in images), *(f"{100 * v:.1f}" for v in pixels), taps))
    first = Table(
        "How far the student is from the tower",
        (
            "set",
            "method",
            "16 shots",
            "test, normal",
            "test, abnormal",
            "map in lesions",
            "beside them",
            "normal images",
            "area of lesions",
        ),
        tuple(apart),
        ("Distance: 1 - cosine of whole taps, summed over four. Map: half the mean over taps.",),
    )
    second = Table(
        "What that gives",
        (
            "set",
            "method",
            "image, as scored",
            "by the map's mean",
            "by its largest",
            "nearest normal shot",
            "pixels",
            "blurred intensity",
            "centre prior",
            "pixels by taps 1 to 4 alone",
        ),
        tuple(rows),
        ("AUROC in percent, 40 test images of each class, one draw.",),
    )
    return render([first, second], "md")


def main() -> None:
    """Measure what is missing, and write the tables."""
    asked = sets_and_page(__doc__)
    found = {}
    for one in asked.sets:
        for method in METHODS:
            path = asked.out / f"{one.name}-{method.replace(', ', '-').replace(' ', '-')}.json"
            if not path.exists():
                write_whole(path, json.dumps(measure(method, Path(one.folder), one.objective)))
            found[one.name, method] = json.loads(path.read_text())
    text = tables(found)
    print(text)
    if asked.docs:
        write_between(asked.docs, "students", text)


if __name__ == "__main__":
    main()
