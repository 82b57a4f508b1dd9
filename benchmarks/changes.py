"""Changes of the method that no recipe has, for `recipes.py` to compare: heads and training sets of their own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from madclip.head.adapters import Adapters
from madclip.head.head import Head, Scores, Terms
from madclip.training.encode import TrainingSet, encode_variants, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from madclip.backbones.spec import Backbone
    from madclip.recipe import Recipe
    from madclip.training.shots import Shot


class LearnedScale(Head):
    """Temperature and bias of the SigLIP term are learned, as the work that the paper cites learns them."""

    def __init__(self, recipe: Recipe, backbone: Backbone, objective: str, *, seed: int = 0) -> None:
        super().__init__(recipe, backbone, objective, seed=seed)
        self.scale, self.bias = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def loss(
        self, scores: Scores, labels: torch.Tensor, masks: torch.Tensor | None, masked: torch.Tensor | None = None
    ) -> Terms:
        """Terms with the detection head's S scaled."""
        scaled = self.scale.exp() * scores.detection + self.bias
        return super().loss(Scores(scaled, scores.segmentation), labels, masks, masked)


class LearnedWeights(Head):
    """Every term weighs exp(-s) and costs s, s learned (Kendall, Gal and Cipolla, Multi-Task Learning, 2018)."""

    def __init__(self, recipe: Recipe, backbone: Backbone, objective: str, *, seed: int = 0) -> None:
        super().__init__(recipe, backbone, objective, seed=seed)
        self.uncertainty = nn.Parameter(torch.zeros(3))

    def loss(
        self, scores: Scores, labels: torch.Tensor, masks: torch.Tensor | None, masked: torch.Tensor | None = None
    ) -> Terms:
        """Weighted terms."""
        terms = super().loss(scores, labels, masks, masked)
        return Terms(*(term * (-s).exp() + s for term, s in zip(terms, self.uncertainty, strict=True)))


class Narrow(Head):
    """The shared adapter layer has a quarter of the width."""

    def __init__(self, recipe: Recipe, backbone: Backbone, objective: str, *, seed: int = 0) -> None:
        super().__init__(recipe, backbone, objective, seed=seed)
        generator, width = torch.Generator().manual_seed(seed), backbone.spec.width // 4
        assert isinstance(self.adapters, Adapters)
        shared, heads = self.adapters.shared, self.adapters.heads
        self.adapters.shared = nn.Parameter(shared.detach()[:, :, :width].clone())
        self.adapters.heads = nn.Parameter(torch.empty(*heads.shape[:-1], width))
        nn.init.uniform_(self.adapters.heads, -(width**-0.5), width**-0.5, generator=generator)


def fresh(shots: Sequence[Shot], backbone: Backbone, recipe: Recipe, seed: int) -> tuple[TrainingSet, Recipe]:
    """Augmentation drawn anew for every epoch, in the range of the fixed variants; as many steps as `recipe` takes."""
    return combined(shots, backbone, recipe.replace(epochs=1), seed, count=len(recipe.variants) * recipe.epochs)


def combined(
    shots: Sequence[Shot], backbone: Backbone, recipe: Recipe, seed: int, count: int | None = None
) -> tuple[TrainingSet, Recipe]:
    """Variants that are turned, moved, enlarged, mirrored and jittered at once, where fixed ones are one of these."""
    generator, count = torch.Generator().manual_seed(seed), count or len(recipe.variants)
    tokens, masks = [], []
    for shot in shots:
        both = torch.cat(
            [shot.pixels, torch.zeros_like(shot.pixels[:1]) if shot.mask is None else shot.mask[None].float()]
        )
        moved = _moved(both.expand(count, -1, -1, -1), generator)
        pixels = _jittered(moved[:, :3], generator)
        tokens.append(encode_variants(backbone, recipe.view, pixels))
        masks.append(moved[:, 3] > 0.5)
    plain = prepare(shots, backbone, recipe.replace(variants=("identity",)))
    return TrainingSet(tokens, torch.stack(masks), plain.labels, plain.masked, plain.identity), recipe


def _moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Turned by up to 22.5 degrees, moved by up to a tenth, enlarged by up to 1.3, half of them mirrored."""
    count = len(images)
    turn = (2 * torch.rand(count, generator=generator) - 1) * math.radians(22.5)
    shift = 0.2 * torch.rand(2, count, generator=generator) - 0.1
    scale = 1 / (1 + 0.3 * torch.rand(count, generator=generator))
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    rows = (
        (mirror * scale * turn.cos(), -scale * turn.sin(), shift[0]),
        (mirror * scale * turn.sin(), scale * turn.cos(), shift[1]),
    )
    theta = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _jittered(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    brightness, contrast = 0.8 + 0.4 * torch.rand(2, len(pixels), 1, 1, 1, generator=generator)
    bright = pixels * brightness
    mean = bright.mean((1, 2, 3), keepdim=True)
    found: torch.Tensor = (mean + contrast * (bright - mean)).clamp(0, 1)
    return found


class Change(NamedTuple):
    """What takes the place of the head or of the training set."""

    head: type[Head] = Head
    data: Callable[[Sequence[Shot], Backbone, Recipe, int], tuple[TrainingSet, Recipe]] | None = None


CHANGES = {
    "learned-scale": Change(head=LearnedScale),
    "learned-weights": Change(head=LearnedWeights),
    "narrow": Change(head=Narrow),
    "fresh": Change(data=fresh),
    "combined": Change(data=combined),
}
"""By the name that `recipes.py --try NAME:@CHANGE` gives."""
