"""Adapters for several towers: one set for their tokens side by side, or one for each tower, whose features add up."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from madclip.head.adapters import Adapters

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from madclip.backbones.spec import Backbone
    from madclip.recipe import Recipe


class TowerAdapters(nn.Module):
    """Adapters of each tower; what their heads give is added up before the last activation.

    A tower's initial weights depend on the seed and on the tower alone: neither its place nor its partners change them,
    and a partner whose tokens are 0 changes nothing at all.

    Args:
        taps: Number of taps.
        widths: Widths of the towers' tokens, in the order in which they lie side by side.
        embed_dim: Size of the features.
        seeds: For each tower, what its initial weights are drawn with.
        options: Further arguments of `Adapters`.
    """

    def __init__(self, taps: int, widths: Sequence[int], embed_dim: int, seeds: Sequence[int], **options: Any) -> None:
        super().__init__()
        generators = (torch.Generator().manual_seed(seed) for seed in seeds)
        self.towers = nn.ModuleList(
            Adapters(taps, width, embed_dim, generator=generator, **options)
            for width, generator in zip(widths, generators, strict=True)
        )

    @property
    def parts(self) -> tuple[Adapters, ...]:
        """The adapters of each tower."""
        return tuple(each for each in self.towers if isinstance(each, Adapters))

    def forward(self, tokens: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """See `Adapters.forward`; tokens of all towers side by side."""
        parts = self.parts
        widths = [part.shared.shape[-1] for part in parts]
        weights = zip(*(zip(part.shared.unbind(), part.heads.unbind(), strict=True) for part in parts), strict=True)
        for each, of_tap in zip(tokens, weights, strict=True):
            given = zip(parts, each.split(widths, -1), of_tap, strict=True)
            features = [part.products(own, *layers) for part, own, layers in given]
            yield parts[0].activate(torch.stack(features).sum(0) if len(features) > 1 else features[0])


def new_adapters(recipe: Recipe, backbone: Backbone, seed: int, generator: torch.Generator) -> Adapters | TowerAdapters:
    """The adapters that a recipe wants for a backbone.

    Args:
        recipe: Its adapters' fields.
        backbone: One tower or several.
        seed: Draws the weights of a tower's own adapters, together with its fingerprint.
        generator: Draws the weights of adapters that serve all towers.
    """
    spec = backbone.spec
    options: dict[str, Any] = {
        "dual_branch": recipe.dual_branch,
        "separate_heads": recipe.separate_heads,
        "activation": recipe.adapter_activation,
        "norm": recipe.adapter_norm,
    }
    if not recipe.adapters_per_tower:
        # Partners widen what is read, not the layer between.
        hidden = backbone.towers[0].spec.width
        return Adapters(len(spec.taps), spec.width, spec.embed_dim, hidden=hidden, generator=generator, **options)
    widths = [tower.spec.width for tower in backbone.towers]
    seeds = [_seed(seed, tower.fingerprint) for tower in backbone.towers]
    return TowerAdapters(len(spec.taps), widths, spec.embed_dim, seeds, **options)


def _seed(seed: int, fingerprint: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {fingerprint}".encode()).digest()[:8], "big") >> 1
