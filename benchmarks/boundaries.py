"""What explains BGAD's numbers: where the likelihoods of new patches lie beside the boundaries of its shots.

    python benchmarks/boundaries.py BrainLGG=DIR:Brain FundusIDRiD=DIR:fundus --out RUNS --docs docs/benchmarks.md

16 + 16 shots of valid/ with `tiny`, seeds 0 to 2, and the rest of valid/; test/ is not opened. Each set, method and
seed is a file in RUNS, about a minute on one core; what is there is not computed again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from madclip.backbones import load_backbone
from madclip.benchmark.render import Table, render
from madclip.data.load import load_dataset
from madclip.files import write_between, write_whole
from madclip.methods import load_baseline
from madclip.methods.bgad import SCALE, boundaries
from madclip.methods.flow import TokenFlows, improbable
from madclip.methods.tokens import abnormal_patches
from madclip.training.shots import read_shot
from recipes import draw
from sets import sets_and_page

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.training.shots import Shot
    from sets import LabelledSet

METHODS, SEEDS, SHOTS, TOP = ("cflow", "bgad"), (0, 1, 2), 16, 0.1


def measure(method: str, one: LabelledSet, seed: int) -> dict[str, float]:
    """All numbers of a method on a set."""
    chosen, left = draw(load_dataset(one.folder).shot_pool, SHOTS, seed)
    model = load_baseline(method)(load_backbone("tiny"), objective=one.objective)
    assert isinstance(model, TokenFlows)
    model.fit(chosen, seed=seed)
    (learned, known), (found, kinds) = (likelihoods(model, samples) for samples in (chosen, left))
    labels = np.array([sample.label for sample in left])
    maps = improbable(found, model.peak)
    above, below = boundaries(learned.mean(0)[known == 0] / SCALE)
    normal, marked = found.mean(0)[kinds == 0], found.mean(0)[kinds == 2]
    return {
        "normal, shots": float(learned.mean(0)[known == 0].median()),
        "marked, shots": float(learned.mean(0)[known == 2].median()),
        "normal": float(normal.median()),
        "beside": float(found.mean(0)[kinds == 1].median()),
        "marked": float(marked.median()),
        "normal below": float((normal / SCALE < above).float().mean()),
        "marked below": float((marked / SCALE < below).float().mean()),
        "patches, shots": separated(learned, known, model),
        "patches": separated(found, kinds, model),
        "largest": float(roc_auc_score(labels, maps.amax(1))),
        "top": float(roc_auc_score(labels, maps.topk(int(TOP * maps.shape[1])).values.mean(1))),
        "mean": float(roc_auc_score(labels, maps.mean(1))),
    }


def separated(found: torch.Tensor, kinds: torch.Tensor, model: TokenFlows) -> float:
    """AUROC of marked patches against those of normal images."""
    seen = kinds != 1
    return float(roc_auc_score(kinds[seen] == 2, improbable(found, model.peak)[seen]))


@torch.inference_mode()
def likelihoods(model: TokenFlows, samples: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-likelihoods per channel [T, N, G], and what each patch is [N, G]: of a normal image, unmarked, or marked."""
    shots: list[Shot] = [read_shot(sample, model.recipe.view) for sample in samples]
    tokens = torch.cat([model.image_tokens(shot.pixels[None]) for shot in shots])
    kinds = torch.tensor([shot.label for shot in shots])[:, None] + abnormal_patches(shots, model.backbone.grid).long()
    return model.likelihoods(tokens), kinds


def tables(found: dict[tuple[str, str], list[dict[str, float]]]) -> str:
    """The means over draws as two tables."""
    where, gives = [], []
    for (name, method), draws in found.items():
        mean = {key: float(np.mean([one[key] for one in draws])) for key in draws[0]}
        places = ("normal, shots", "marked, shots", "normal", "beside", "marked")
        shares = (f"{100 * mean[key]:.0f}%" for key in ("normal below", "marked below"))
        where.append((name, method, *(f"{mean[key]:.2f}" for key in places), *shares))
        areas = ("patches, shots", "patches", "largest", "top", "mean")
        gives.append((name, method, *(f"{100 * mean[key]:.1f}" for key in areas)))
    first = Table(
        "Likelihoods beside the boundaries",
        (
            "set",
            "method",
            "shots, normal",
            "shots, marked",
            "new, normal",
            "new, beside lesions",
            "new, marked",
            "new normal ones below the upper boundary",
            "new marked ones below the lower",
        ),
        tuple(where),
        (
            "Log-likelihood per channel of patches, mean over taps, median over patches.",
            "The upper boundary is the 5 % quantile of the normal shots, the lower one lies 1 beneath it.",
        ),
    )
    second = Table(
        "What new images are told apart by",
        (
            "set",
            "method",
            "patches of shots",
            "new patches",
            "images by the largest",
            "by the top tenth",
            "by the mean",
        ),
        tuple(gives),
        (f"AUROC in percent, mean of {len(SEEDS)} draws; patches: marked against those of normal images.",),
    )
    return render([first, second], "md")


def main() -> None:
    """Parse, run what is missing, print."""
    given = sets_and_page(__doc__)
    given.out.mkdir(parents=True, exist_ok=True)
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for one, method, seed in ((one, method, seed) for one in given.sets for method in METHODS for seed in SEEDS):
        kept = given.out / f"{one.name} {method} {seed}.json"
        if not kept.exists():
            write_whole(kept, json.dumps(measure(method, one, seed)))
        found.setdefault((one.name, method), []).append(json.loads(kept.read_text()))
    text = tables(found)
    print(text)
    if given.docs:
        write_between(given.docs, "boundaries", text)


if __name__ == "__main__":
    main()
