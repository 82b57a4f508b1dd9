"""Changes of the recipe side by side, on images of valid/ that are not shots; test/ is never opened.

    python benchmarks/recipes.py NAME=FOLDER:OBJECTIVE ... --shots 16 --seeds 3 --out rows.jsonl \
        --try "t10:temperature=10" --try "long:epochs=20" [--table]

The recipe `madclip` itself is always the first row. Every row has the image AUROC of all rules of the image score, from
the same fit. Rows that are in the file already are not repeated; --table prints means over sets and seeds with the
difference to the first row, paired by set and seed.
"""

from __future__ import annotations

import argparse
import json
import time
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
from madclip.head import scoring
from madclip.recipe import parse_field
from madclip.training.tokens import TokenCache, encode_patches

if TYPE_CHECKING:
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
    size = recipe.image_size
    pixels = torch.stack([fit_pixels(read_image(s.image).pixels, size, recipe.aspect) for s in rest])
    found: dict[str, list[torch.Tensor]] = {rule: [] for rule in RULES}
    maps = []
    for some in pixels.split(8):
        views = [head(encode_patches(detector.backbone, recipe, view), head.text()) for view in (some, some.flip(-1))]
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


def one(backbone: Backbone, folder: str, objective: str, recipe: Recipe, shots: int, seed: int) -> dict[str, Any]:
    """Fit on shots of valid/ and measure on the rest of it, other patients where there are enough of them."""
    pool = load_dataset(folder).shot_pool
    chosen = draw_shots(pool, shots, seed)
    rest = [sample for sample in pool if sample not in set(chosen)]
    patients = {sample.patient for sample in chosen} - {None}
    others = [sample for sample in rest if sample.patient not in patients]
    if len(others) >= 20 and {sample.label for sample in others} == {0, 1}:
        rest = others
    start = time.perf_counter()
    detector = MadCLIP(recipe, backbone=backbone, objective=objective)
    detector.fit(chosen, seed=seed, folds=0, cache=TokenCache())
    seconds = time.perf_counter() - start
    return {**measure(detector, rest), "images": len(rest), "seconds": round(seconds, 1)}


def print_table(rows: list[dict[str, Any]]) -> None:
    """Means over sets and seeds, and the mean difference to the first recipe with Student's interval over the pairs."""
    keys = [*RULES, "pixels"]
    names = list(dict.fromkeys(row["try"] for row in rows))
    shots = sorted({row["shots"] for row in rows})
    for count in shots:
        at = {(row["try"], row["set"], row["seed"]): row for row in rows if row["shots"] == count}
        print(f"\n{count} shots\n\n| recipe | " + " | ".join(keys) + " | seconds |\n|" + "---|" * (len(keys) + 2))
        for name in names:
            cells = []
            for key in keys:
                own = {k[1:]: row[key] for k, row in at.items() if k[0] == name and row.get(key) is not None}
                pairs = [v - at[names[0], *k][key] for k, v in own.items() if (names[0], *k) in at]
                if not own:
                    cells.append("-")
                    continue
                text = f"{np.mean(list(own.values())):.3f}"
                if name != names[0] and len(pairs) > 1:
                    gain = mean_interval(pairs)
                    text += f" ({gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}])"
                cells.append(text)
            seconds = np.median([row["seconds"] for k, row in at.items() if k[0] == name])
            print(f"| {name} | " + " | ".join(cells) + f" | {seconds:.0f} |")


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
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {(row["try"], row["set"], row["shots"], row["seed"]) for row in rows}
    backbone = load_backbone(given.backbone, dtype="auto")
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
                    row = {"try": label, "set": name, "shots": shots, "seed": seed}
                    row |= one(backbone, folder, objective, recipe, shots, seed)
                    rows.append(row)
                    with given.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
    if given.table:
        print_table(rows)


if __name__ == "__main__":
    main()
