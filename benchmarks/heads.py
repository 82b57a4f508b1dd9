"""What explains DRA's numbers: how well each of its four heads tells new images apart, beside their sum.

    python benchmarks/heads.py ChestXray=DIR:film FundusIDRiD=DIR:fundus --out rows.jsonl --docs docs/benchmarks.md

16 + 16 shots of valid/ with `tiny`, seeds 0 to 2, and the rest of valid/; test/ is not opened. A row takes about a
minute on one core; those that are in the file are not computed again.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import torch

from madclip.backbones import load_backbone
from madclip.benchmark.render import Table, render
from madclip.data.load import load_dataset
from madclip.files import write_between
from madclip.methods.dra import DRA, top_mean
from madclip.metrics.image import auroc
from madclip.training.shots import read_shot
from recipes import draw
from sets import sets_and_page

if TYPE_CHECKING:
    from sets import LabelledSet

SEEDS, SHOTS = (0, 1, 2), 16
HEADS = ("holistic", "seen", "pseudo", "residual")


def measure(one: LabelledSet, seed: int) -> dict[str, float | None]:
    """Image AUROC by each head and by their sum; the holistic one scores what is normal."""
    chosen, left = draw(load_dataset(one.folder).shot_pool, SHOTS, seed)
    model = DRA(load_backbone("tiny"), objective=one.objective).fit(chosen, seed=seed)
    labels, found = [sample.label for sample in left], []
    with torch.inference_mode():
        for sample in left:
            pixels = read_shot(sample, model.recipe.view).pixels[None]
            holistic, *patches = model.heads(model._features(model.image_tokens(pixels)), model.reference)  # noqa: SLF001
            scores = (-holistic, *map(top_mean, patches), model.score(pixels)[0])
            found.append([float(score) for score in scores])
    return {name: auroc(labels, scores) for name, scores in zip((*HEADS, "sum"), zip(*found, strict=True), strict=True)}


def main() -> None:
    """Parse, run what is missing, print."""
    given = sets_and_page(__doc__)
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {(row["set"], row["seed"]) for row in rows}
    for one, seed in ((one, seed) for one in given.sets for seed in SEEDS if (one.name, seed) not in done):
        rows.append({"set": one.name, "seed": seed, **measure(one, seed)})
        with given.out.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    means = [
        (name, *(f"{100 * np.mean([row[head] for row in rows if row['set'] == name]):.1f}" for head in (*HEADS, "sum")))
        for name in dict.fromkeys(row["set"] for row in rows)
    ]
    note = f"Image AUROC in percent, mean of {len(SEEDS)} draws."
    columns = ("set", *HEADS, "sum, as scored")
    text = render([Table("Which of DRA's heads tells new images apart", columns, tuple(means), (note,))], "md")
    print(text)
    if given.docs:
        write_between(given.docs, "heads", text)


if __name__ == "__main__":
    main()
