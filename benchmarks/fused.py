"""Fused towers side by side, on images of valid/ that are not shots; test/ is never opened.

    python benchmarks/fused.py NAME=FOLDER:OBJECTIVE ... --shots 4 16 --seeds 3 --out rows.jsonl \
        --try "tiny=tiny" --try "pair=tiny+lite0" --try "texts alone=tiny+lite0:texts" \
        --try "pair, 6 epochs=tiny+lite0:epochs=6" --try "PatchCore=tiny+lite0:method=patchcore" \
        [--rules max] [--docs docs/backbones.md]

After the backbone come changes, separated by `;`: fields of a recipe, `texts` (of the first tower the texts alone
count), `weight=W` (partners' tokens times W), `inner=N` (width of the shared adapter layer), `near=N` (the partner's
stages averaged over N x N places), `size=S` (side in pixels of what partners see), `method=NAME` (a method of
comparison in the place of madclip; its image score is its own). The first is what the others are held against. Tokens
of a tower are kept, and rows that are in the file are not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from madclip import Recipe, load_backbone
from madclip.backbones.efficientnet import EfficientNetTower
from madclip.backbones.fused import FusedBackbone
from madclip.benchmark.tokens import RememberedBackbone, TokenMemory
from madclip.data.load import load_dataset
from madclip.files import write_between
from madclip.head.adapters import Adapters
from madclip.head.head import Head
from madclip.methods import load_baseline
from madclip.metrics.image import auroc
from madclip.metrics.pixel import pixel_auroc
from madclip.recipe import parse_field
from madclip.training.cache import TokenCache
from madclip.training.encode import TrainingSet, prepare
from madclip.training.fit import fit_head
from madclip.training.shots import read_shot
from recipes import draw, gain
from sets import LabelledSet

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from madclip.backbones.spec import Backbone, Tower
    from madclip.recipe import ImageScore

RULES: tuple[ImageScore, ...] = ("both", "mean", "max")


class Weighted(FusedBackbone):
    """Partners' tokens times a weight, and of the first tower the texts alone where that is wanted."""

    texts_alone = False

    def __init__(self, first: Backbone, partners: Sequence[Tower], *, weight: float, texts_alone: bool) -> None:
        super().__init__(first, partners)
        self.weight, self.texts_alone = weight, texts_alone
        if texts_alone:
            self.spec = replace(self.spec, width=self.spec.width - first.spec.width)

    @property
    def towers(self) -> tuple[Tower, ...]:
        """Those whose tokens are read."""
        return super().towers[1:] if self.texts_alone else super().towers

    def combine(self, tokens: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """See `FusedBackbone.combine`."""
        fused = super().combine(tokens)
        if self.weight != 1:
            own = 0 if self.texts_alone else self.first.spec.width
            fused = [torch.cat([each[..., :own], each[..., own:] * self.weight], -1) for each in fused]
        return fused


class Near(EfficientNetTower):
    """The stages averaged over other numbers of places."""

    near = 1

    @property
    def fingerprint(self) -> str:
        """Its tokens are others."""
        return f"{super().fingerprint}, averaged over {self.near}"

    def _tokens(self, stage: torch.Tensor) -> torch.Tensor:
        near = F.avg_pool2d(stage, self.near, 1, self.near // 2, count_include_pad=False)
        tokens = F.interpolate(near, self.grid, mode="bilinear").flatten(2).transpose(1, 2)
        return F.pad(F.layer_norm(tokens, tokens.shape[-1:]), (0, self.spec.width - tokens.shape[-1]))


class Inner(Head):
    """A shared adapter layer of another width."""

    def __init__(self, recipe: Recipe, backbone: Backbone, objective: str, *, inner: int, seed: int = 0) -> None:
        super().__init__(recipe, backbone, objective, seed=seed)
        self.adapters = Adapters(
            len(backbone.spec.taps),
            backbone.spec.width,
            backbone.spec.embed_dim,
            hidden=inner,
            generator=torch.Generator().manual_seed(seed),
        )


class Try(NamedTuple):
    """A backbone and what is changed."""

    name: str
    backbone: str
    changes: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Try:
        """From NAME=BACKBONE:CHANGE;CHANGE."""
        name, _, rest = text.partition("=")
        backbone, _, changes = rest.partition(":")
        return cls(name, backbone, tuple(change for change in changes.split(";") if change))

    def given(self, name: str) -> str | None:
        """The value of a change that is no field of a recipe."""
        values = [value for key, _, value in (c.partition("=") for c in self.changes) if key == name]
        return values[0] if values else None

    @property
    def recipe(self) -> Recipe:
        """With the changes that are fields."""
        own = ("texts", "weight", "inner", "near", "size", "method")
        fields = [parse_field(change) for change in self.changes if change.partition("=")[0] not in own]
        return Recipe.preset("madclip", **dict(fields))


@cache
def load(name: str, weight: float, near: int, size: int | None, *, texts_alone: bool) -> Backbone:
    """A backbone with those changes that are its own."""
    found = load_backbone(name, dtype="auto")
    if not isinstance(found, FusedBackbone):
        return found
    partners = found.towers[1:]
    for partner in partners:
        if size:
            partner.image_size = size, size
        if near != 3:
            partner.__class__, partner.near = Near, near  # type: ignore[assignment]
    return Weighted(found.first, partners, weight=weight, texts_alone=texts_alone)


class Cell:
    """Shots of valid/ and the rest of it."""

    def __init__(self, one: LabelledSet, count: int, seed: int, kept: TokenCache) -> None:
        self.objective, self.seed, self._kept = one.objective, seed, kept
        view = Recipe().view
        self.chosen, rest = draw(load_dataset(one.folder).shot_pool, count, seed)
        self.shots, self.rest = ([read_shot(sample, view) for sample in some] for some in (self.chosen, rest))
        self._memory = TokenMemory()
        self._sets: tuple[Backbone, TrainingSet, TrainingSet] | None = None

    def _tokens(self, backbone: Backbone) -> tuple[TrainingSet, TrainingSet]:
        """Of the shots and of the rest; those of the last backbone are at hand."""
        if self._sets is None or self._sets[0] is not backbone:
            recipe = Recipe()
            plain = recipe.replace(variants=("identity",))
            self._sets = (
                backbone,
                prepare(self.shots, backbone, recipe, cache=self._kept),
                prepare(self.rest, backbone, plain, cache=self._kept),
            )
        return self._sets[1:]

    def run(self, one: Try) -> dict[str, Any]:
        """Fit and measure: AUROC of each rule, and of pixels at the recipe's size."""
        near, size = int(one.given("near") or 3), int(one.given("size") or 0) or None
        backbone = load(one.backbone, float(one.given("weight") or 1), near, size, texts_alone="texts" in one.changes)
        data, rest = self._tokens(backbone)
        method = one.given("method")
        found, seconds = self._compare(method, backbone) if method else self._madclip(one, backbone, data, rest)
        return {**self.areas(found, rest), "images": len(self.rest), "seconds": round(seconds, 1)}

    def areas(self, found: dict[str, torch.Tensor], rest: TrainingSet) -> dict[str, Any]:
        """AUROC of each rule, and of pixels where there are masks, of what `read` gives."""
        labels = rest.labels.tolist()
        out: dict[str, Any] = {rule: auroc(labels, found[rule].tolist()) for rule in RULES}
        if any(shot.mask is not None for shot in self.rest):
            out["pixels"] = pixel_auroc(list(found["maps"].numpy()), list(rest.masks[:, 0].numpy()))
        return out

    def _madclip(
        self, one: Try, backbone: Backbone, data: TrainingSet, rest: TrainingSet
    ) -> tuple[dict[str, torch.Tensor], float]:
        """What `read` gives after a fit, and its processor seconds."""
        inner, recipe, start = one.given("inner"), one.recipe, time.process_time()
        head = (
            Inner(recipe, backbone, self.objective, inner=int(inner), seed=self.seed)
            if inner
            else Head(recipe, backbone, self.objective, seed=self.seed)
        )
        fit_head(head, data, recipe, seed=self.seed)
        seconds = time.process_time() - start
        return read(head, rest, has_masks=bool(data.masked.any())), seconds

    def _compare(self, method: str, backbone: Backbone) -> tuple[dict[str, torch.Tensor], float]:
        """The same of a method of comparison, which has one rule; images are encoded once for all of them."""
        remembered = RememberedBackbone(backbone, self._memory)
        with self._memory.of(backbone.fingerprint):
            start = time.process_time()
            fitted = load_baseline(method)(remembered, objective=self.objective)
            fitted.fit(self.chosen, seed=self.seed, cache=self._kept)
            seconds = time.process_time() - start
            parts = torch.stack([shot.pixels for shot in self.rest]).split(8)
            scores, maps = (torch.cat(each) for each in zip(*map(fitted.score, parts), strict=True))
        return {**dict.fromkeys(RULES, scores), "maps": maps}, seconds


@torch.inference_mode()
def read(head: Head, rest: TrainingSet, *, has_masks: bool) -> dict[str, torch.Tensor]:
    """Image scores by each rule, [n], and maps [n, S, S]."""
    text, found = head.text(), dict[str, list[torch.Tensor]]()
    for part in torch.stack(rest.plain).split(8):
        scores = head([tap.float() for tap in part.unbind(1)], text)
        for rule in RULES:
            values, maps = head.read(scores, rule, has_masks=has_masks)
            found.setdefault(rule, []).append(values)
        found.setdefault("maps", []).append(maps)
    return {name: torch.cat(values) for name, values in found.items()}


def table(rows: list[dict[str, Any]], rules: Sequence[str]) -> str:
    """Every try against the first, paired by set and draw; images by the first of the rules."""
    first, held = rows[0]["try"], rules[0]
    columns = ["shots", "what", "sets x draws", f"image AUROC by `{held}`", *(f"by `{rule}`" for rule in rules[1:])]
    columns += ["pixel AUROC", "processor s of a fit"]
    lines = [
        f"Means over sets and draws; gains over `{first}` by `{held}`, same shots and images, Student's 95 % interval:",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
    ]
    for shots in sorted({row["shots"] for row in rows}):
        at = {(row["try"], row["set"], row["seed"]): row for row in rows if row["shots"] == shots}
        for name in dict.fromkeys(row["try"] for row in rows if row["shots"] == shots):
            pairs = [(at[key], at[first, *key[1:]]) for key in at if key[0] == name and (first, *key[1:]) in at]
            cells = []
            for metric, against in (*((rule, held) for rule in rules), ("pixels", "pixels")):
                both = [(one[metric], base[against]) for one, base in pairs if metric in one]
                level = f"{np.mean([one for one, _ in both]):.3f}" if both else "-"
                itself = name == first and metric == against
                cells.append(level + ("" if itself or not both else f", {gain([one - base for one, base in both])}"))
            seconds = np.median([one["seconds"] for one, _ in pairs])
            lines.append(f"| {shots} | {name} | {len(pairs)} | {' | '.join(cells)} | {seconds:.1f} |")
    return "\n".join(lines)


C = TypeVar("C", bound=Cell)


def complete(given: argparse.Namespace, kind: type[C], tries: dict[str, Callable[[C], dict[str, Any]]]) -> list[Any]:
    """All rows of the file `given.out`, after those that it lacks were measured and added to it."""
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {(row["try"], row["set"], row["shots"], row["seed"]) for row in rows}
    kept = TokenCache()
    for seed, shots, one in ((seed, shots, one) for seed in given.seeds for shots in given.shots for one in given.sets):
        missing = [name for name in tries if (name, one.name, shots, seed) not in done]
        cell = kind(one, shots, seed, kept) if missing else None
        for name in missing if cell else ():
            row = {"try": name, "set": one.name, "shots": shots, "seed": seed, **tries[name](cell)}  # type: ignore[arg-type]
            rows.append(row)
            with given.out.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return rows


def main() -> None:
    """Parse, run what is missing, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=LabelledSet.parse, metavar="NAME=FOLDER:OBJECTIVE")
    parser.add_argument("--shots", type=int, nargs="+", default=[16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--try", dest="tries", type=Try.parse, action="append", required=True)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=["both", "max"], help="of the image score")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--docs", type=Path, help="page to write between its marks")
    parser.add_argument("--mark", default="fused", help="the marks' name")
    given = parser.parse_args()
    rows = complete(given, Cell, {some.name: partial(Cell.run, one=some) for some in given.tries})
    order = [some.name for some in given.tries]
    named = {one.name for one in given.sets}
    wanted = [row for row in rows if row["set"] in named and row["try"] in order and row["shots"] in given.shots]
    text = table(sorted(wanted, key=lambda row: order.index(row["try"])), given.rules)
    print(text)
    if given.docs:
        write_between(given.docs, given.mark, text)


if __name__ == "__main__":
    main()
