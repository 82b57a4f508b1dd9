"""Changes of the recipe side by side, on images of valid/ that are not shots; test/ is never opened.

    python benchmarks/recipes.py NAME=FOLDER:OBJECTIVE ... --shots 16 --seeds 3 --out rows.jsonl \
        --try "t10:temperature=10" --try "long:epochs=20" [--docs docs/recipes.md]

The recipe `madclip` itself is always the first row; `--try paper:` and `--try released:` are the other presets. Every
row has the image AUROC of all rules of the image score, from the same fit. Rows that are in the file already are not
repeated, so that sets, draws and recipes may join.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from madclip import MadCLIP, Recipe, load_backbone
from madclip.data.geometry import fit_mask, fit_pixels
from madclip.data.readers import read_image, read_mask
from madclip.data.samples import load_dataset
from madclip.data.shots import draw_shots
from madclip.evaluation.compare import mean_interval
from madclip.evaluation.metrics import auroc
from madclip.evaluation.pixel import pixel_auroc
from madclip.files import write_between
from madclip.head import scoring
from madclip.recipe import parse_field
from madclip.training.tokens import TokenCache, encode_patches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.backbones.spec import Backbone
    from madclip.data.samples import Sample

TOP = 0.02
"""Share of the pixels that `top` averages."""
RULES = ("both", "mean", "max", "top", "detection max", "flipped too")


@torch.inference_mode()
def measure(detector: MadCLIP, rest: list[Sample]) -> dict[str, float | None]:
    """AUROC of each rule of the image score, and of pixels at the recipe's size.

    The first three are the recipe's. `top` is the mean of the highest pixels of both maps, `detection max` the maximum
    of the detection head's map, `flipped too` is `both` averaged over the image and its mirror image.
    """
    recipe, head = detector.recipe, detector.head
    assert head is not None
    size, text = recipe.image_size, head.text()
    pixels = torch.stack([fit_pixels(read_image(s.image).pixels, size, recipe.aspect) for s in rest])
    found: dict[str, list[torch.Tensor]] = {rule: [] for rule in RULES}
    maps = []
    for some in pixels.split(8):
        views = [head(encode_patches(detector.backbone, recipe, view), text) for view in (some, some.flip(-1))]
        both, drawn = head.read(views[0], "both", has_masks=detector.has_masks)
        mirrored, _ = head.read(views[1], "both", has_masks=detector.has_masks)
        other = scoring.anomaly_map(head.map_logits(views[0].detection))
        highest = [m.flatten(1).topk(round(TOP * size**2)).values.mean(1) for m in (drawn, other)]
        scores = (
            both,
            scoring.mean_score(views[0].detection),
            drawn.amax((1, 2)),
            (highest[0] + highest[1]) / 2,
            other.amax((1, 2)),
            (both + mirrored) / 2,
        )
        for rule, values in zip(RULES, scores, strict=True):
            found[rule].append(values)
        maps.append(drawn)
    labels = [sample.label for sample in rest]
    out: dict[str, float | None] = {rule: auroc(labels, torch.cat(found[rule]).tolist()) for rule in RULES}
    if any(sample.mask for sample in rest):
        empty = np.zeros((size, size), bool)
        masks = [fit_mask(read_mask(s.mask), size, recipe.aspect).numpy() if s.mask else empty for s in rest]
        out["pixels"] = pixel_auroc(list(torch.cat(maps).numpy()), masks)
    return out


def held_back(pool: Sequence[Sample], chosen: Sequence[Sample]) -> list[Sample]:
    """Images that are not shots, of other patients where there are enough of them."""
    rest = [sample for sample in pool if sample not in set(chosen)]
    patients = {sample.patient for sample in chosen} - {None}
    others = [sample for sample in rest if sample.patient not in patients]
    return others if len(others) >= 20 and {sample.label for sample in others} == {0, 1} else rest


def one(backbone: Backbone, folder: str, objective: str, recipe: Recipe, shots: int, seed: int) -> dict[str, Any]:
    """Fit on shots of valid/ and measure on the rest of it, other patients where there are enough of them."""
    pool = load_dataset(folder).shot_pool
    chosen = draw_shots(pool, shots, seed)
    rest = held_back(pool, chosen)
    start = time.perf_counter()
    detector = MadCLIP(recipe, backbone=backbone, objective=objective)
    detector.fit(chosen, seed=seed, folds=0, cache=TokenCache())
    seconds = time.perf_counter() - start
    return {**measure(detector, rest), "images": len(rest), "seconds": round(seconds, 1)}


def tables(rows: list[dict[str, Any]]) -> str:
    """Rules of the image score within the first recipe, then every recipe against it; paired by set and draw."""
    first = rows[0]["try"]
    lines = ["Image AUROC of each rule minus that of `both`, same fits (mean, Student's 95 % interval):", ""]
    lines += ["| shots | sets x draws | `both` | " + " | ".join(RULES[1:]) + " |", "|" + "---|" * (len(RULES) + 2)]
    counts = sorted({row["shots"] for row in rows})
    for shots in counts:
        own = [row for row in rows if (row["try"], row["shots"]) == (first, shots)]
        cells = [gain([row[rule] - row["both"] for row in own]) for rule in RULES[1:]]
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
                known = [(one[metric], base[metric]) for one, base in pairs if one.get(metric) is not None]
                if not known:
                    cells.append("-")
                    continue
                level = f"{np.mean([one for one, _ in known]):.3f}"
                cells.append(level if name == first else f"{level}, {gain([one - base for one, base in known])}")
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
    parser.add_argument("sets", nargs="+", metavar="NAME=FOLDER:OBJECTIVE")
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--shots", type=int, nargs="+", default=[16])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--try", dest="tries", action="append", default=[], metavar="NAME:FIELD=VALUE;...")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--docs", type=Path, help="page to write between its marks `recipes`")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    if any(row["backbone"] != given.backbone for row in rows):
        parser.error(f"{given.out} holds rows of another backbone")
    done = {(row["try"], row["set"], row["shots"], row["seed"]) for row in rows}
    load = cache(lambda size: load_backbone(given.backbone, dtype="auto", image_size=size))
    for seed in range(given.seeds):
        for shots in given.shots:
            for text in given.sets:
                name, _, rest = text.partition("=")
                folder, _, objective = rest.rpartition(":")
                for change in ["madclip:", *given.tries]:
                    label, _, fields = change.partition(":")
                    if (label, name, shots, seed) in done:
                        continue
                    recipe = Recipe.preset(
                        label if label in ("paper", "released") and not fields else "madclip",
                        **dict(parse_field(field) for field in fields.split(";") if field),
                    )
                    row = {"try": label, "set": name, "shots": shots, "seed": seed, "backbone": given.backbone}
                    row |= one(load(recipe.image_size), folder, objective, recipe, shots, seed)
                    rows.append(row)
                    with given.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    print(tables(rows))
    if given.docs:
        write_between(given.docs, "recipes", tables(rows))


if __name__ == "__main__":
    main()
