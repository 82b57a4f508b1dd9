"""What every head has in common: patch tokens in, an image score and an anomaly map out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import nn

from madclip.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.recipe import ImageScore, Recipe

GENERIC_OBJECTIVE = "medical image"


class Readout(NamedTuple):
    """How a score and a map are read off a head.

    Attributes:
        rule: How the image score comes about; `by_task` and `by_classes` are resolved.
        has_masks: Whether masks were learned from; otherwise the map is that of the detection head.
    """

    rule: ImageScore
    has_masks: bool

    @classmethod
    def of(cls, recipe: Recipe, *, has_masks: bool, both_classes: bool = True) -> Readout:
        """The one that a recipe asks for, by what was learned from; the recipe's field says what its values mean."""
        if recipe.image_score == "by_task":
            return cls("max" if has_masks else "mean", has_masks)
        if recipe.image_score == "by_classes":
            return cls("max" if both_classes else "both", has_masks)
        return cls(recipe.image_score, has_masks)


class Scorer(nn.Module, ABC):
    """A head: what was learned from both classes, from normal images alone, or from texts alone.

    Attributes:
        keeps_prefix: Whether its tokens begin with the backbone's prefix tokens, which hold the image as a whole.
    """

    keeps_prefix: ClassVar[bool] = True

    @abstractmethod
    def text(self) -> torch.Tensor:
        """Text features [e, 2]: t_n, t_ab, of unit length; [0, 2] where it uses none."""

    @abstractmethod
    def judge(
        self, tokens: Sequence[torch.Tensor], text: torch.Tensor, readout: Readout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image scores [B] and anomaly maps [B, height, width] in 0..1, where the head is.

        Args:
            tokens: For each tap [B, G, d], patch tokens; [B, prefix + G, d] where `keeps_prefix`.
            text: [e, 2], from `text`.
            readout: How both are read off.
        """

    def score(
        self, tokens: torch.Tensor, readout: Readout, text: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Image scores [B] and anomaly maps [B, height, width] in 0..1, float32 on the CPU.

        Args:
            tokens: [B, T, G, d], tokens at the taps as `judge` takes them.
            readout: How both are read off.
            text: [e, 2], where it is known already; None computes it.
        """
        text = self.text() if text is None else text
        scores, maps = self.judge(tokens.to(text.device).unbind(1), text, readout)
        return scores.float().cpu(), maps.float().cpu()


def pool(tokens: torch.Tensor) -> torch.Tensor:
    """What an image as a whole looks like: [..., T, G, d] -> [..., T x d], each tap's mean patch at unit length."""
    mean = tokens.float().mean(-2)
    unit: torch.Tensor = mean / mean.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return unit.flatten(-2)


def words_of(recipe: Recipe, objective: str) -> str:
    """What the images show, as a recipe puts it into prompts.

    Raises:
        RecipeError: The objective is empty.
    """
    if not objective.strip():
        raise RecipeError("the objective is empty: say what the images show, for example 'Brain'")
    return objective if recipe.use_objective else GENERIC_OBJECTIVE
