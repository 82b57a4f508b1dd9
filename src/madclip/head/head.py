"""What is learned, put together: adapters and prompts of a recipe, from cached tokens to scores, maps and loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch

from madclip.head import fused, losses, scoring
from madclip.head.adapters import DETECTION, SEGMENTATION
from madclip.head.fused_taps import learned_scores
from madclip.head.prompts import Prompts, fixed_text_features
from madclip.head.scorer import Readout, Scorer, words_of
from madclip.head.tower_adapters import new_adapters

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.backbones.spec import Backbone
    from madclip.recipe import ImageScore, Recipe


class Scores(NamedTuple):
    """S of both heads at every tap and patch, each [T, B, G, 2]."""

    detection: torch.Tensor
    segmentation: torch.Tensor


class Terms(NamedTuple):
    """Loss terms, each [T]; the loss is the sum of all."""

    siglip: torch.Tensor
    dice: torch.Tensor
    focal: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """The loss."""
        return torch.stack(tuple(self)).sum()


class Head(Scorer):
    """Adapters and prompts for a backbone; parameters are float32 on the backbone's device.

    Args:
        recipe: Every choice of the detector that is to be learned.
        backbone: Frozen towers; not a part of the module, so that they are never saved or trained.
        objective: What the images show, in the words of the prompts.
        seed: Determines the initial weights.
    """

    keeps_prefix: ClassVar[bool] = False
    text_features: torch.Tensor | None

    def __init__(self, recipe: Recipe, backbone: Backbone, objective: str, *, seed: int = 0) -> None:
        super().__init__()
        objective = words_of(recipe, objective)
        generator = torch.Generator().manual_seed(seed)
        self.recipe, self.grid, self.size = recipe, backbone.grid, backbone.image_size
        self._backbone = (backbone,)  # in a tuple: not registered as a child
        self.adapters = new_adapters(recipe, backbone, seed, generator)
        if recipe.learned_prompts:
            self.prompts: Prompts | None = Prompts(
                backbone,
                objective,
                contexts=recipe.contexts,
                shared=recipe.shared_contexts,
                positions=recipe.positions,
                attention=recipe.text_attention,
                generator=generator,
            )
            self.register_buffer("text_features", None)
        else:
            self.prompts = None
            self.register_buffer("text_features", fixed_text_features(backbone, objective))
        self.to(backbone.device)

    def text(self) -> torch.Tensor:
        """Text features [e, 2]: t_n, t_ab, of unit length; differentiable where prompts are learned."""
        if self.prompts is None:
            assert self.text_features is not None  # noqa: S101
            return self.text_features
        return self.prompts(self._backbone[0])  # type: ignore[no-any-return]

    def forward(self, tokens: Sequence[torch.Tensor], text: torch.Tensor) -> Scores:
        """S of both heads.

        Args:
            tokens: For each tap [B, G, d], patch tokens (prefix tokens dropped), float32.
            text: [e, 2], from `text`.
        """
        towards = scoring.directions(text, contrast=self.recipe.contrast)
        if torch.is_grad_enabled() and tokens[0].device.type == "cpu" and not tokens[0].requires_grad:
            scores = learned_scores(self.adapters, tokens, towards)
        else:
            # Heads last but one, as they lie in memory.
            features = (each.movedim(1, 3) for each in self.adapters(tokens))
            scores = torch.stack([scoring.patch_scores(each, towards) for each in features]).movedim(-2, 0)
        return Scores(scores[DETECTION], scores[SEGMENTATION if self.recipe.separate_heads else DETECTION])

    def map_logits(self, scores: torch.Tensor) -> torch.Tensor:
        """Log-odds of "abnormal" at every pixel: S [T, B, G, 2] -> [T, B, height, width]."""
        return scoring.map_logits(scores, self.grid, self.size, align_corners=self.recipe.align_corners)

    def read(self, scores: Scores, rule: ImageScore, has_masks: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Image scores [B] and anomaly maps [B, height, width], in 0..1.

        Args:
            scores: S of both heads.
            rule: How the image score comes about; see `Readout`.
            has_masks: Whether masks were learned from; otherwise the map is that of the detection head.
        """
        maps = scoring.anomaly_map(self.map_logits(scores.segmentation if has_masks else scores.detection))
        return scoring.image_score(rule, scoring.mean_score(scores.detection), maps), maps

    def judge(
        self, tokens: Sequence[torch.Tensor], text: torch.Tensor, readout: Readout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Scorer.judge`."""
        return self.read(self(tokens, text), *readout)

    def loss(
        self, scores: Scores, labels: torch.Tensor, masks: torch.Tensor | None, masked: torch.Tensor | None = None
    ) -> Terms:
        """Loss terms of a batch.

        Args:
            scores: S of both heads.
            labels: [B], 0 normal, 1 abnormal.
            masks: [M, height, width] bool, of the images that take part in Dice and Focal; false for normal ones. None
                where none does.
            masked: [M], which images of the batch these are; None where all are.
        """
        recipe = self.recipe
        if recipe.loss == "siglip":
            image = losses.siglip_loss(scores.detection, labels, temperature=recipe.temperature, bias=recipe.bias)
        else:
            image = losses.softmax_loss(scores.detection, labels)
        if masks is None:
            return Terms(image, torch.zeros_like(image), torch.zeros_like(image))
        chosen = scores.segmentation if masked is None else scores.segmentation[:, masked]
        logits = scoring.patch_logits(chosen, self.grid)
        maps = fused.map_losses(logits, masks, align_corners=recipe.align_corners, smoothing=recipe.smoothing)
        return Terms(image, *maps)
