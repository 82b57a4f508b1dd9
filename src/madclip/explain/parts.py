"""A score and a map as the sum of what each tap and branch gives to them.

Scores and maps are means over taps, so that what a tap gives is exact. Within a tap the log-odds are the sum of what
both branches say, and the probability is a sigmoid of it, which is not additive: there each branch is given its Shapley
value, the mean of what it adds before and after the other. All parts and the base sum to the score, and at each pixel
to the map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F

from madclip.head import fused
from madclip.head.head import Head
from madclip.head.memory import SIGMA, NormalMemory, nearest_rows, smooth
from madclip.head.zero_shot import ZeroShot

if TYPE_CHECKING:
    from madclip.head.scorer import Readout, Scorer

WEIGHTS = {"mean": (1.0, 0.0), "max": (0.0, 1.0), "both": (0.5, 0.5)}
"""Parts of an image score that the image as a whole has, and the map's largest value."""


@dataclass(frozen=True)
class Part:
    """What takes part in a score.

    Attributes:
        kind: A `tap`; a branch of one, `normal` or `abnormal`; the `texts`; the image as a `whole`, or its `patches`.
        tap: Which of the taps, from 1; 0 where it is of none.
    """

    kind: Literal["tap", "normal", "abnormal", "texts", "whole", "patches"]
    tap: int = 0

    @property
    def name(self) -> str:
        """What it is called."""
        if self.kind == "tap":
            return f"tap {self.tap}"
        if self.tap:
            return f"tap {self.tap}, {self.kind} branch"
        return {"texts": "texts", "whole": "texts, whole image", "patches": "texts, patch by patch"}[self.kind]

    @property
    def said(self) -> str:
        """What it is called in a sentence."""
        if self.tap:
            return f"tap {self.tap}" if self.kind == "tap" else f"the {self.kind} branch of tap {self.tap}"
        of = {"texts": "", "whole": " of the image as a whole", "patches": " of its patches"}[self.kind]
        return f"what the texts say{of}"


@dataclass(frozen=True)
class Contributions:
    """What P parts give to the scores and maps of B images.

    Attributes:
        parts: What they are.
        base: What a score or map is where all of them say nothing.
        whole: [P, B], to the image as a whole (the detection head's mean), weighted as the image score does.
        spot: [P, B], to the largest value of the map, weighted so; 0 where the image score does not look at it.
        maps: [P, B, S, S], to the map.
        place: [B, 2], row and column of the largest value of each map.
    """

    parts: tuple[Part, ...]
    base: float
    whole: torch.Tensor
    spot: torch.Tensor
    maps: torch.Tensor
    place: torch.Tensor

    @property
    def given(self) -> torch.Tensor:
        """What each part gives to each score, [P, B]."""
        return self.whole + self.spot

    @property
    def scores(self) -> torch.Tensor:
        """The image scores, [B]."""
        return self.base + self.given.sum(0)

    @property
    def anomaly_maps(self) -> torch.Tensor:
        """The maps, [B, S, S]."""
        return self.base + self.maps.sum(0)


@torch.inference_mode()
def contributions(head: Scorer, tokens: torch.Tensor, text: torch.Tensor, readout: Readout) -> Contributions:
    """What each part of a head gives to scores and maps.

    Args:
        head: What was learned.
        tokens: [B, T, G, d], as `encode_for` gives them for the head.
        text: [e, 2], the head's text features.
        readout: How scores and maps are read off.
    """
    tokens = tokens.to(text.device)
    if isinstance(head, Head):
        parts, base, whole, maps = _of_head(head, tokens, text, readout)
    elif isinstance(head, NormalMemory):
        parts, base, whole, maps = _of_memory(head, tokens, text)
    else:
        assert isinstance(head, ZeroShot)  # noqa: S101  (`explain` has asked)
        seen, said = head.shares(tokens[:, -1], text)
        parts, base = (Part("whole"), Part("patches")), 0.5
        whole = torch.stack([seen - 0.5, torch.zeros_like(seen)])
        maps = torch.stack([torch.zeros_like(said), said - 0.5])
    whole, maps = whole.float().cpu(), maps.float().cpu()
    size = maps.shape[-1]
    flat = maps.sum(0).flatten(1).argmax(1)
    weight = WEIGHTS[readout.rule]
    at = maps.flatten(2).gather(2, flat[None, :, None].expand(len(parts), -1, 1))[..., 0]
    place = torch.stack([flat // size, flat % size], 1)
    return Contributions(parts, base, weight[0] * whole, weight[1] * at, maps, place)


Found = tuple[tuple[Part, ...], float, torch.Tensor, torch.Tensor]


def _of_head(head: Head, tokens: torch.Tensor, text: torch.Tensor, readout: Readout) -> Found:
    scores = head(tokens.unbind(1), text)
    recipe = head.recipe
    count = len(scores.detection)
    mapped = scores.segmentation if readout.has_masks else scores.detection
    # Interpolation is linear, so that what the branches say of a pixel still adds up to its log-odds.
    pixels = [
        fused.interpolate(one.contiguous().unflatten(2, head.grid), head.size, align_corners=recipe.align_corners)
        for one in (-mapped[..., 0].float(), mapped[..., 1].float())
    ]
    patches = -scores.detection[..., 0].float(), scores.detection[..., 1].float()
    if not recipe.dual_branch:  # both branches are one
        whole, maps = (((one + other).sigmoid() - 0.5)[:, None] for one, other in (patches, pixels))
        parts = tuple(Part("tap", tap + 1) for tap in range(count))
    else:
        whole, maps = (torch.stack(shapley(*pair), 1) for pair in (patches, pixels))
        parts = tuple(Part(kind, tap + 1) for tap in range(count) for kind in ("normal", "abnormal"))
    return parts, 0.5, whole.flatten(0, 1).mean(-1) / count, maps.flatten(0, 1) / count


def shapley(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each of two log-odds gives to the sigmoid of their sum minus a half: the mean of first and of second."""
    alone, beside, both = one.sigmoid(), other.sigmoid(), (one + other).sigmoid()
    return (alone - 0.5 + both - beside) / 2, (beside - 0.5 + both - alone) / 2


def _of_memory(head: NormalMemory, tokens: torch.Tensor, text: torch.Tensor) -> Found:
    features = head.features(tokens)
    nearest = head.patches[nearest_rows(features, head.patches)]
    # Squared distances add up over taps; a tap is given its share of the square.
    squares = (features - nearest).square().unflatten(-1, (tokens.shape[1], -1)).sum(-1)
    far = squares.sum(-1).sqrt()
    share = far / (far + head.scale)
    each = (share[..., None] * squares / squares.sum(-1, keepdim=True).clamp_min(1e-20)).permute(2, 0, 1)
    planes = F.interpolate(each.flatten(0, 1).unflatten(1, head.grid)[:, None], head.size, mode="bilinear")
    maps = smooth(planes[:, 0], SIGMA).unflatten(0, each.shape[:2])
    parts = tuple(Part("tap", tap + 1) for tap in range(len(each)))
    if not head.texts:
        return parts, 0.0, each.mean(-1), maps
    seen, said = head.texts.shares(tokens[:, -1], text)
    kept, weight = 1 - head.weight, head.weight
    whole = torch.cat([kept * each.mean(-1), weight * (seen - 0.5)[None]])
    maps = torch.cat([kept * maps, weight * (said - 0.5)[None]])
    return (*parts, Part("texts")), weight / 2, whole, maps
