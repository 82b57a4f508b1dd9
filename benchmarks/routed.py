"""Several prototypes per class, routed per image, beside `madclip`; images of valid/ that are not shots.

    python benchmarks/routed.py NAME=FOLDER:OBJECTIVE ... --shots 4 --seeds 0 1 2 --out rows.jsonl \
        --try "text 4" --try "vectors 4" [--docs docs/backbones.md]

`text K`: each class has K sets of learned contexts, and so K text features. `vectors K`: K learned vectors beside its
text feature. An image's own text features are their means, weighed by a softmax over how near its pooled tokens come
to K learned keys of the class, which begin as the K centres of the class's shots. `text 1` is `madclip` itself in the
plain form. Tokens of a tower are kept, and rows that are in the file are not repeated.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from torch import nn

from fused import Cell, complete, load, read
from madclip import Recipe
from madclip.files import write_between
from madclip.head.adapters import DETECTION, SEGMENTATION
from madclip.head.head import Head, Scores
from madclip.head.prompts import Prompts
from madclip.head.scorer import pool
from madclip.training.fit import fit_head
from recipes import gain
from sets import LabelledSet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.backbones.spec import Backbone
    from madclip.training.encode import TrainingSet

BASELINE = "madclip"
SHARPNESS = 4.0
"""Times the nearness of a key, which is in units of the shots' mean distance from their mean."""


class Routed(Head):
    """A head with K text features for each class.

    Attributes:
        keys: [2, K, T x d], what images look like that each of them is for.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self, recipe: Recipe, backbone: Backbone, objective: str, data: TrainingSet, *, kind: str, count: int, seed: int
    ) -> None:
        super().__init__(recipe, backbone, objective, seed=seed)
        generator = torch.Generator().manual_seed(seed + 1)
        more = count - 1 if kind == "text" else 0
        self.more = nn.ModuleList(
            Prompts(backbone, objective, contexts=recipe.contexts, generator=generator) for _ in range(more)
        )
        shape = backbone.spec.embed_dim, 2, count - more
        self.offsets = nn.Parameter(0.02 * torch.randn(shape, generator=generator)) if kind == "vectors" else None
        pooled = torch.stack([pool(tokens) for tokens in data.tokens])  # [N, V, T x d]
        self.register_buffer("mean", pooled.mean((0, 1)))
        self.register_buffer("scale", (pooled - self.mean).norm(dim=-1).mean())
        own = [self._placed(pooled[data.labels == label]).flatten(0, 1) for label in (0, 1)]
        centres = [KMeans(count, n_init=1, random_state=seed).fit(each).cluster_centers_ for each in own]
        self.keys = nn.Parameter(F.normalize(torch.tensor(np.stack(centres)).float(), dim=-1))

    def _placed(self, pooled: torch.Tensor) -> torch.Tensor:
        return (pooled - self.mean) / self.scale

    def text(self) -> torch.Tensor:
        """Text features [e, 2, K], of unit length."""
        first, backbone = super().text()[..., None], self._backbone[0]
        if self.offsets is not None:
            return F.normalize(first + self.offsets, dim=0)
        return torch.cat([first, *(prompts(backbone)[..., None] for prompts in self.more)], -1)

    def weights(self, tokens: Sequence[torch.Tensor]) -> torch.Tensor:
        """What each text feature counts for an image, [B, 2, K]."""
        placed = self._placed(pool(torch.stack([*tokens], 1)))
        return (SHARPNESS * torch.einsum("bd,ckd->bck", placed, self.keys)).softmax(-1)

    def forward(self, tokens: Sequence[torch.Tensor], text: torch.Tensor) -> Scores:
        """See `Head.forward`; text [e, 2, K]."""
        own = F.normalize(torch.einsum("eck,bck->cbe", text, self.weights(tokens)), dim=-1)
        towards = (own - own.flip(0))[:, None, :, :, None]
        taps = []
        for features in self.adapters(tokens):
            length = torch.linalg.vector_norm(features, dim=-1, dtype=torch.float32).clamp_min(1e-12)
            taps.append((features @ towards.to(features.dtype))[..., 0] / length)
        scores = torch.stack(taps).permute(2, 0, 3, 4, 1)
        return Scores(scores[DETECTION], scores[SEGMENTATION])


class RoutedCell(Cell):
    """Shots of valid/ and the rest of it."""

    def measure(self, name: str) -> dict[str, Any]:
        """Fit and measure as `Cell.run` does; of a routed head also how alike its features and its images' weights are.

        `evenness` is the entropy of the weights over that of equal ones, `moved` their standard deviation over images.
        """
        recipe, backbone = Recipe.preset("madclip"), load("tiny+lite0", 1.0, 3, None, texts_alone=False)
        data, rest = self._tokens(backbone)
        start = time.process_time()
        if name == BASELINE:
            head = Head(recipe, backbone, self.objective, seed=self.seed)
        else:
            kind, _, count = name.partition(" ")
            head = Routed(recipe, backbone, self.objective, data, kind=kind, count=int(count), seed=self.seed)
        fit_head(head, data, recipe, seed=self.seed)
        out: dict[str, Any] = {"seconds": round(time.process_time() - start, 1)}
        found = read(head, rest, has_masks=bool(data.masked.any()))
        out |= self.areas(found, rest)
        if isinstance(head, Routed):
            with torch.inference_mode():
                text, weights = head.text(), head.weights(torch.stack(rest.plain).unbind(1))
            entropy = torch.special.entr(weights).sum(-1).mean() / max(np.log(weights.shape[-1]), 1e-9)
            alike = torch.einsum("eck,ecl->ckl", text, text).mean()
            moved = weights.std(0).mean()
            out |= {"alike": alike.item(), "evenness": entropy.item(), "moved": moved.item()}
        return out


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Every try against `madclip` by the same rule, paired by set and draw."""
    lines = [
        "| shots | what | sets x draws | image AUROC by `max` | by `both` | pixel AUROC | processor s of a fit |",
        "|---|---|---|---|---|---|---|",
    ]
    for shots in sorted({row["shots"] for row in rows}):
        at = {(row["try"], row["set"], row["seed"]): row for row in rows if row["shots"] == shots}
        for name in names:
            pairs = [(at[key], at[BASELINE, *key[1:]]) for key in at if key[0] == name and (BASELINE, *key[1:]) in at]
            if not pairs:
                continue
            cells = []
            for metric in ("max", "both", "pixels"):
                both = [(one[metric], base[metric]) for one, base in pairs if metric in one]
                level = f"{np.mean([one for one, _ in both]):.3f}" if both else "-"
                plain = name == BASELINE or not both
                cells.append(level if plain else f"{level}, {gain([one - base for one, base in both])}")
            seconds = np.median([one["seconds"] for one, _ in pairs])
            lines.append(f"| {shots} | {name} | {len(pairs)} | {' | '.join(cells)} | {seconds:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse, run what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=LabelledSet.parse, metavar="NAME=FOLDER:OBJECTIVE")
    parser.add_argument("--shots", type=int, nargs="+", default=[4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--try", dest="tries", action="append", required=True, metavar="KIND K")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--docs", type=Path, help="page to write between its marks")
    given = parser.parse_args()
    names = [BASELINE, *given.tries]
    rows = complete(given, RoutedCell, {name: partial(RoutedCell.measure, name=name) for name in names})
    named = {one.name for one in given.sets}
    text = table([row for row in rows if row["set"] in named and row["shots"] in given.shots], names)
    print(text)
    if given.docs:
        write_between(given.docs, "routed", text)


if __name__ == "__main__":
    main()
