"""Texts alone: an image and its patches against the fixed ensemble of prompts; nothing is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from madclip.head import scoring
from madclip.head.prompts import fixed_text_features
from madclip.head.scorer import Readout, Scorer, words_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from madclip.backbones.spec import Backbone
    from madclip.recipe import Recipe

TEMPERATURE = 0.07
"""That of WinCLIP: CLIP's own, a hundredth, leaves hardly anything between 0 and 1."""


class ZeroShot(Scorer):
    """Which of two texts an image is nearer to, as a whole and patch by patch.

    Args:
        recipe: Its objective, image score and map.
        backbone: Frozen towers; not a part of the module.
        objective: What the images show, in the words of the prompts.
    """

    text_features: torch.Tensor

    def __init__(self, recipe: Recipe, backbone: Backbone, objective: str) -> None:
        super().__init__()
        words = words_of(recipe, objective)
        self.recipe, self.grid, self.size = recipe, backbone.grid, backbone.image_size
        self._backbone = (backbone,)  # in a tuple: not registered as a child
        self.register_buffer("text_features", fixed_text_features(backbone, words).float())

    def text(self) -> torch.Tensor:
        """Text features [e, 2]: t_n, t_ab, of unit length."""
        return self.text_features

    def judge(
        self, tokens: Sequence[torch.Tensor], text: torch.Tensor, readout: Readout
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Scorer.judge`; the image as a whole stands where the mean of patches does elsewhere."""
        whole, maps = self.shares(tokens[-1], text)
        return scoring.image_score(readout.rule, whole, maps), maps

    def shares(self, stream: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How abnormal the texts call images [B] and their pixels [B, height, width], in 0..1.

        Args:
            stream: [B, prefix + G, d], the last tap.
            text: [e, 2].
        """
        whole, patches = embeddings(self._backbone[0], stream)
        found = scoring.text_scores(patches, text, TEMPERATURE)[None]
        logits = scoring.map_logits(found, self.grid, self.size, align_corners=self.recipe.align_corners)
        return scoring.abnormal_share(scoring.text_scores(whole, text, TEMPERATURE)), scoring.anomaly_map(logits)


def embeddings(backbone: Backbone, stream: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of images [B, e] and of each patch alone [B, G, e], from the last tap [B, prefix + G, d]."""
    stream = stream.to(backbone.dtype)
    patches = stream[:, backbone.spec.prefix_tokens :]
    each = backbone.embed_image(patches.flatten(0, 1)[:, None])
    return backbone.embed_image(stream), each.unflatten(0, patches.shape[:2])
