"""Changes of the recipe side by side, on images of valid/ that are not shots; test/ is never opened.

    python benchmarks/recipes.py NAME=FOLDER:OBJECTIVE ... --shots 16 --seeds 3 --out rows.jsonl \
        --try "t10:temperature=10" --try "long:epochs=20" --try "narrow:@narrow" [--docs docs/recipes.md]

The recipe `madclip` itself is always the first row; `--try paper:` and `--try released:` are the other presets, and
`@` names one of `changes.py`. Every row has the image AUROC of all rules of the image score, from the same fit. Rows
that are in the file already are not repeated, so that sets, draws and recipes may join.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from changes import CHANGES, Change
from madclip import MadCLIP, Recipe, load_backbone
from madclip.data.geometry import fit_mask, fit_pixels
from madclip.data.load import load_dataset
from madclip.data.readers import read_image, read_mask
from madclip.data.shots import draw_shots
from madclip.files import write_between
from madclip.head import scoring
from madclip.head.head import Head
from madclip.metrics.compare import mean_interval
from madclip.metrics.image import auroc
from madclip.metrics.pixel import pixel_auroc
from madclip.recipe import parse_field
from madclip.training.cache import TokenCache
from madclip.training.encode import encode_patches, prepare
from madclip.training.fit import fit_head
from madclip.training.out_of_fold import fold_members
from madclip.training.shots import read_shot
from sets import LabelledSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.backbones.spec import Backbone
    from madclip.data.samples import Sample
    from madclip.training.encode import TrainingSet
    from madclip.training.shots import Shot

TOP = 0.02
"""Share of the pixels that `top` averages."""
FOLDS = 4
FEWEST = 20
"""Images that a measurement needs."""
LEARNED = ("mean", "max", "detection max", "top")
"""What the learned rule combines."""
RULES = ("both", "mean", "max", "top", "detection max", "flipped too", "learned")


@torch.inference_mode()
def encode(backbone: Backbone, recipe: Recipe, samples: Sequence[Sample]) -> torch.Tensor:
    """Patch tokens [n, 2, T, G, d] of images and of their mirror images."""
    pixels = torch.stack([fit_pixels(read_image(s.image).pixels, recipe.view) for s in samples])
    pairs = torch.stack([pixels, pixels.flip(-1)], 1)
    return torch.stack([torch.stack(encode_patches(backbone, recipe.view, pair), 1) for pair in pairs])


@torch.inference_mode()
def read(head: Head, tokens: torch.Tensor, *, has_masks: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Image scores by each rule but the learned one, each [n], and maps [n, S, S], from `encode`'s tokens.

    The first three are the recipe's. `top` is the mean of the highest pixels of both maps, `detection max` the maximum
    of the detection head's map, `flipped too` is `both` averaged over the image and its mirror image.
    """
    text = head.text()
    found: dict[str, list[torch.Tensor]] = {rule: [] for rule in RULES[:-1]}
    maps = []
    for some in tokens.split(8):
        views = [head(view.unbind(1), text) for view in some.unbind(1)]
        both, drawn = head.read(views[0], "both", has_masks=has_masks)
        mirrored, _ = head.read(views[1], "both", has_masks=has_masks)
        other = scoring.anomaly_map(head.map_logits(views[0].detection))
        highest = [m.flatten(1).topk(round(TOP * m[0].numel())).values.mean(1) for m in (drawn, other)]
        scores = (
            both,
            scoring.mean_score(views[0].detection),
            drawn.amax((1, 2)),
            (highest[0] + highest[1]) / 2,
            other.amax((1, 2)),
            (both + mirrored) / 2,
        )
        for rule, values in zip(RULES, scores, strict=False):
            found[rule].append(values)
        maps.append(drawn)
    return {rule: torch.cat(values) for rule, values in found.items()}, torch.cat(maps)


def learned_score(shots: dict[str, torch.Tensor], labels: Sequence[int], rest: dict[str, torch.Tensor]) -> torch.Tensor:
    """A logistic regression on the log-odds of the mean, both maxima and `top`, from the shots' cross-fitted scores."""
    known, new = (
        torch.stack([rules[name].double() for name in LEARNED], 1).clamp(1e-6, 1 - 1e-6).logit()
        for rules in (shots, rest)
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)).fit(known.numpy(), labels)
    return torch.from_numpy(model.decision_function(new.numpy()))


def draw(pool: Sequence[Sample], count: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Shots, and what is left to measure on: images of other patients, where patients are known.

    Where the shots would take so many patients that fewer than FEWEST images are left, they come from half of the
    patients: at most `count` of each class, and as many as that half has.
    """
    shots = list(draw_shots(pool, count, seed))
    if not any(sample.patient for sample in pool):
        return shots, [sample for sample in pool if sample not in set(shots)]
    used = {sample.patient for sample in shots}
    rest = [sample for sample in pool if sample.patient not in used]
    if len(rest) >= FEWEST and {sample.label for sample in rest} == {0, 1}:
        return shots, rest
    patients = sorted({str(sample.patient) for sample in pool})
    half = set(random.Random(seed).sample(patients, len(patients) // 2))
    own = [sample for sample in pool if sample.patient in half]
    count = min(count, *(sum(sample.label == label for sample in own) for label in (0, 1)))
    return list(draw_shots(own, count, seed)), [sample for sample in pool if sample.patient not in half]


class Cell:
    """Shots of valid/ and the rest of it; tokens are made once."""

    def __init__(self, folder: str, objective: str, count: int, seed: int) -> None:
        self.objective, self.seed = objective, seed
        self.chosen, self.rest = draw(load_dataset(folder).shot_pool, count, seed)
        self._tokens: dict[tuple[object, ...], torch.Tensor] = {}

    def tokens(self, backbone: Backbone, recipe: Recipe) -> torch.Tensor:
        """Of the rest."""
        key = (backbone.fingerprint, backbone.image_size, recipe.aspect, recipe.normalise)
        if key not in self._tokens:
            self._tokens[key] = encode(backbone, recipe, self.rest)
        return self._tokens[key]

    def run(self, backbone: Backbone, recipe: Recipe, change: Change, *, learn: bool) -> dict[str, Any]:
        """Fit and measure: AUROC of each rule, and of pixels at the recipe's size."""
        backbone = MadCLIP(recipe, backbone=backbone, objective=self.objective).backbone
        shots = [read_shot(sample, recipe.view) for sample in self.chosen]
        tokens, seed, start = self.tokens(backbone, recipe), self.seed, time.perf_counter()
        if change.data:
            data, recipe = change.data(shots, backbone, recipe, seed)
        else:
            data = prepare(shots, backbone, recipe, seed=seed, cache=TokenCache())
        head = change.head(recipe, backbone, self.objective, seed=seed)
        fit_head(head, data, recipe, seed=seed)
        seconds = time.perf_counter() - start
        has_masks = any(shot.mask is not None for shot in shots)
        found, maps = read(head, tokens, has_masks=has_masks)
        if learn:
            held_out = self._cross_fit(backbone, recipe, shots, data, has_masks=has_masks)
            found["learned"] = learned_score(held_out, data.labels.tolist(), found)
        labels = [sample.label for sample in self.rest]
        out: dict[str, Any] = {rule: auroc(labels, scores.tolist()) for rule, scores in found.items()}
        if any(sample.mask for sample in self.rest):
            size = recipe.image_size
            empty = np.zeros((size, size), bool)
            masks = [fit_mask(read_mask(s.mask), recipe.view).numpy() if s.mask else empty for s in self.rest]
            out["pixels"] = pixel_auroc(list(maps.numpy()), masks)
        return {**out, "images": len(self.rest), "seconds": round(seconds, 1)}

    def _cross_fit(
        self, backbone: Backbone, recipe: Recipe, shots: list[Shot], data: TrainingSet, *, has_masks: bool
    ) -> dict[str, torch.Tensor]:
        """Scores of the shots from heads that did not see them."""
        plain, mirrored = (recipe.variants.index(name) for name in ("identity", "flip-horizontal"))
        out: dict[str, torch.Tensor] = {}
        for members in fold_members(shots, FOLDS, self.seed):
            kept = [i for i in range(len(shots)) if i not in set(members)]
            head = Head(recipe, backbone, self.objective, seed=self.seed)
            fit_head(head, data.subset(kept), recipe, seed=self.seed)
            tokens = torch.stack([data.tokens[i][[plain, mirrored]] for i in members])
            for rule, scores in read(head, tokens, has_masks=has_masks)[0].items():
                out.setdefault(rule, torch.zeros(len(shots)))[members] = scores.float()
        return out


def tables(rows: list[dict[str, Any]]) -> str:
    """Rules of the image score within the first recipe, then every recipe against it; paired by set and draw."""
    first = rows[0]["try"]
    lines = ["Image AUROC of each rule minus that of `both`, same fits (mean, Student's 95 % interval):", ""]
    lines += ["| shots | sets x draws | `both` | " + " | ".join(RULES[1:]) + " |", "|" + "---|" * (len(RULES) + 2)]
    counts = sorted({row["shots"] for row in rows})
    for shots in counts:
        own = [row for row in rows if (row["try"], row["shots"]) == (first, shots)]
        known = [[row[rule] - row["both"] for row in own if rule in row] for rule in RULES[1:]]
        cells = [gain(differences) if differences else "-" for differences in known]
        level = np.mean([row["both"] for row in own])
        lines.append(f"| {shots} | {len(own)} | {level:.3f} | " + " | ".join(cells) + " |")
    lines += ["", f"Every recipe minus `{first}`, same shots and images:", ""]
    lines += [
        "| shots | recipe | sets x draws | image AUROC | pixel AUROC | seconds of a fit |",
        "|---|---|---|---|---|---|",
    ]
    for shots in counts:
        at = {(row["try"], row["set"], row["seed"]): row for row in rows if row["shots"] == shots}
        for name in dict.fromkeys(row["try"] for row in rows if row["shots"] == shots):
            pairs = [(at[key], at[first, *key[1:]]) for key in at if key[0] == name and (first, *key[1:]) in at]
            cells = []
            for metric in ("both", "pixels"):
                both = [(one[metric], base[metric]) for one, base in pairs if one.get(metric) is not None]
                if not both:
                    cells.append("-")
                    continue
                level = f"{np.mean([one for one, _ in both]):.3f}"
                cells.append(level if name == first else f"{level}, {gain([one - base for one, base in both])}")
            seconds = np.median([one["seconds"] for one, _ in pairs])
            lines.append(f"| {shots} | {name} | {len(pairs)} | " + " | ".join(cells) + f" | {seconds:.0f} |")
    return "\n".join(lines)


def gain(differences: list[float], digits: int = 3) -> str:
    """Mean difference with Student's interval, where there are two or more."""
    found = mean_interval(differences)
    if found.low is None or found.high is None:
        return f"{found.value:+.{digits}f}"
    return f"{found.value:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def main() -> None:
    """Parse, run what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=LabelledSet.parse, metavar="NAME=FOLDER:OBJECTIVE")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--shots", type=int, nargs="+", default=[16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--try", dest="tries", action="append", default=[], metavar="NAME:FIELD=VALUE;...")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--docs", type=Path, help="page to write between its marks")
    parser.add_argument("--mark", default="recipes", help="the marks' name")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    if any(row["backbone"] != given.backbone for row in rows):
        parser.error(f"{given.out} holds rows of another backbone")
    done = {(row["try"], row["set"], row["shots"], row["seed"]) for row in rows}
    load = cache(lambda size: load_backbone(given.backbone, dtype="auto", image_size=size))
    for seed in range(given.seeds):
        for shots in given.shots:
            for name, folder, objective in given.sets:
                cell = None
                for change in ["madclip:", *given.tries]:
                    label, _, fields = change.partition(":")
                    if (label, name, shots, seed) in done:
                        continue
                    other = CHANGES[fields[1:]] if fields.startswith("@") else Change()
                    recipe = Recipe.preset(
                        label if label in ("paper", "released") and not fields else "madclip",
                        **dict(parse_field(f) for f in fields.split(";") if f and not f.startswith("@")),
                    )
                    cell = cell or Cell(folder, objective, shots, seed)
                    row = {"try": label, "set": name, "shots": shots, "seed": seed, "backbone": given.backbone}
                    row |= cell.run(load(recipe.image_size), recipe, other, learn=label == "madclip")
                    rows.append(row)
                    with given.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    named = {one.name for one in given.sets}
    text = tables([row for row in rows if row["set"] in named])
    print(text)
    if given.docs:
        write_between(given.docs, given.mark, text)


if __name__ == "__main__":
    main()
