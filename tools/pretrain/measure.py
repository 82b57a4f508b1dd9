"""Measure a checkpoint: texts against phantoms of other seeds, and frozen tokens on labelled real images.

python -m tools.pretrain.measure CHECKPOINT --tokenizer FILE [--real DIR ...]

`--real` reads only the images of valid/. An untrained backbone of the same shape is measured beside it: `untrained` in
place of a checkpoint.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from tokenizers import Tokenizer
from tools.pretrain import state
from tools.pretrain.data import MODALITIES
from tools.pretrain.model import TowerConfig, Towers, patchify
from tools.pretrain.texts import encode

from madclip.data.geometry import fit_mask, fit_pixels
from madclip.data.load import load_dataset
from madclip.data.readers import read_image, read_mask
from madclip.memory import kept_memory
from madclip.phantoms import generate
from madclip.phantoms.captions import ABNORMAL_STATES, NAMES, NORMAL_STATES, OBJECTIVES
from madclip.recipe import View

if TYPE_CHECKING:
    from collections.abc import Sequence

UNRELATED = Path(__file__).with_name("unrelated.txt").read_text(encoding="utf-8").split()
"""Words that no phantom has to do with and that pre-training did not meet as such."""
FORMS = ("{}", "a {}", "a {} and a {}", "the {} near the {}", "my {}", "{} {}")
UNRELATED_PAIRS = 100
SEED = 1_000_000
"""Of the phantoms that are measured on; pre-training draws with seeds of 2**62 and above."""


def auroc(labels: torch.Tensor, scores: torch.Tensor) -> float:
    """Area under the ROC curve by ranks."""
    ranks, ill = rankdata(scores.flatten().numpy()), labels.flatten().numpy().astype(bool)
    positives, negatives = int(ill.sum()), int((~ill).sum())
    return float((ranks[ill].sum() - positives * (positives + 1) / 2) / max(1, positives * negatives))


@kept_memory()
@torch.no_grad()
def read(towers: Towers, pixels: torch.Tensor, batch: int = 16) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Unit embeddings [n, e] of images, and tokens [n, 1 + G, d] at each tap; pixels [n, 3, S, S] in 0..1."""
    config = towers.config
    grid = torch.arange(config.grid**2)
    parts = []
    for some in pixels.split(batch):
        patches = patchify((some - config.mean) / config.std, config.patch_size)
        parts.append(towers.vision(patches, grid.expand(len(some), -1)))
    streams = [torch.cat(tap) for tap in zip(*parts, strict=True)]
    return F.normalize(towers.vision.embed(streams[-1][:, 0]), dim=-1), streams


@torch.no_grad()
def direction(towers: Towers, tokenizer: Tokenizer, normal: Sequence[str], abnormal: Sequence[str]) -> torch.Tensor:
    """From the mean of the normal texts to that of the abnormal ones: [e]."""
    means = []
    for texts in (normal, abnormal):
        ids, end = encode(tokenizer, list(texts), towers.config.text_length)
        means.append(F.normalize(F.normalize(towers.text(ids, end), dim=-1).mean(0), dim=-1))
    return means[1] - means[0]


def on_phantoms(towers: Towers, tokenizer: Tokenizer, modality: str, count: int) -> dict[str, float]:
    """Zero-shot AUROC of images with right texts, synonyms and unrelated texts, and of patches at each tap.

    Which of two unrelated texts is "abnormal" is anybody's guess: what counts is the distance from a half. `chance` is
    that distance for the same texts and labels in disorder.
    """
    drawn = generate(modality, count, SEED, size=towers.config.image_size)
    images, streams = read(towers, drawn.pixels.float() / 255)
    names = (OBJECTIVES[modality], *NAMES[modality])

    def with_names(forms: Sequence[str]) -> list[str]:
        return [form.format(name) for form in forms for name in names]

    right = direction(towers, tokenizer, with_names(NORMAL_STATES[1:7]), with_names(ABNORMAL_STATES[:7]))
    result = {"right": auroc(drawn.labels, images @ right)}
    synonyms = zip(NORMAL_STATES[7:13], ABNORMAL_STATES[7:13], strict=True)
    pairs = [direction(towers, tokenizer, with_names([n]), with_names([a])) for n, a in synonyms]
    result["synonyms"] = float(np.mean([auroc(drawn.labels, images @ pair) for pair in pairs]))
    random = Random(0)
    forms = [random.choice(FORMS) for _ in range(UNRELATED_PAIRS)]
    texts = [[form.format(*random.sample(UNRELATED, 2)) for form in forms] for _ in range(2)]
    pairs = [direction(towers, tokenizer, [n], [a]) for n, a in zip(*texts, strict=True)]
    disorder = drawn.labels[torch.randperm(count, generator=torch.Generator().manual_seed(0))]
    for name, labels in (("unrelated", drawn.labels), ("chance", disorder)):
        result[name] = 0.5 + float(np.mean([abs(auroc(labels, images @ pair) - 0.5) for pair in pairs]))
    areas = F.avg_pool2d(drawn.masks[:, None].float(), towers.config.patch_size).flatten(1) > 0.15
    lesion = direction(towers, tokenizer, ["normal tissue", "healthy tissue"], ["lesion", "abnormal tissue"])
    with torch.no_grad():
        for tap, scores in zip(towers.config.taps, towers.dense(streams) @ lesion, strict=True):
            result[f"patches{tap}"] = auroc(areas, scores)
    return result


def on_real(towers: Towers, root: Path, draws: int = 3) -> dict[str, float]:
    """Logistic regression on frozen tokens, 16 + 16 of valid/ against the others: images, and patches where masked."""
    samples = load_dataset(root).split("valid")
    size, patch = towers.config.image_size, towers.config.patch_size
    pixels = torch.stack([fit_pixels(read_image(s.image).pixels, View(size)) for s in samples])
    labels = torch.tensor([s.label for s in samples])
    _, streams = read(towers, pixels)
    streams = [F.layer_norm(stream[:, 1:], stream.shape[-1:]) for stream in streams]
    pooled = torch.cat([torch.cat([s.mean(1), s.amax(1)], 1) for s in streams], dim=1)
    masked = [s.mask is not None for s in samples]
    areas = torch.zeros(len(samples), towers.config.grid**2)
    for i, s in enumerate(samples):
        if s.mask is not None:
            mask = fit_mask(read_mask(s.mask), View(size))[None, None].float()
            areas[i] = F.avg_pool2d(mask, patch).flatten()
    results: dict[str, list[float]] = {"image": [], **({"patch": []} if any(masked) else {})}
    for seed in range(draws):
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
        shots = torch.cat([order[labels[order] == c][:16] for c in (0, 1)])
        rest = torch.tensor([i for i in range(len(samples)) if i not in set(shots.tolist())])
        scores = logistic(pooled[shots], labels[shots].float(), pooled[rest])
        results["image"].append(auroc(labels[rest], scores))
        if any(masked):
            tokens = torch.cat(streams, dim=-1)
            scores = logistic(tokens[shots].flatten(0, 1), (areas[shots] > 0.05).float().flatten(), tokens[rest])
            results["patch"].append(auroc(areas[rest] > 0.05, scores))
    return {name: float(np.mean(values)) for name, values in results.items()}


def logistic(inputs: torch.Tensor, labels: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Scores of others [..., d] by a logistic regression with weight decay on standardised inputs [n, d]."""
    mean, std = inputs.mean(0), inputs.std(0) + 1e-3
    inputs, others = (inputs - mean) / std, (others - mean) / std
    weight = torch.zeros(inputs.shape[1] + 1, requires_grad=True)
    balance = (len(labels) - labels.sum()) / labels.sum()
    optimiser = torch.optim.LBFGS([weight], max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = inputs @ weight[:-1] + weight[-1]
        loss = F.binary_cross_entropy_with_logits(logits, labels, pos_weight=balance) + 0.01 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return (others @ weight[:-1] + weight[-1]).detach()


def main() -> None:
    """Print one JSON line for each modality and each real data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a file, or `untrained`")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--images", type=int, default=64, help="phantoms of each modality")
    parser.add_argument("--real", type=Path, nargs="*", default=[], help="labelled sets with a valid/ split")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.checkpoint == "untrained":
        towers = Towers(TowerConfig()).initialise(torch.Generator().manual_seed(0))
    else:
        towers = state.load(Path(given.checkpoint)).towers
    tokenizer = Tokenizer.from_file(str(given.tokenizer))
    for modality in MODALITIES if given.images else ():
        _say(modality, on_phantoms(towers, tokenizer, modality, given.images))
    for root in given.real:
        _say(root.name, on_real(towers, root))


def _say(name: str, result: dict[str, float]) -> None:
    print(json.dumps({"on": name} | {key: round(value, 3) for key, value in result.items()}), flush=True)


if __name__ == "__main__":
    main()
