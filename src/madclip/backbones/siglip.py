"""SigLIP, SigLIP 2 at a fixed resolution, MedSigLIP: no class token, a text tower that attends in both directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from madclip.backbones.modules import AttentionPooling, TextTower, TwoTowers, VisionTower
from madclip.backbones.towers import TowerBackbone

if TYPE_CHECKING:
    from madclip.backbones.configuration import ModelConfig


class SiglipModel(TwoTowers):
    """SigLIP's weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, VisionTower(config.vision, prefix=0, bias=True), TextTower(config.text))
        self.vision_model.head = AttentionPooling(config.vision)
        self.text_model.head = nn.Linear(config.text.hidden_size, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1))


class SiglipBackbone(TowerBackbone):
    """SigLIP's two towers."""

    def __init__(self, model: SiglipModel, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, prefix=torch.zeros(0, model.config.vision.hidden_size), **options)
        self.text_head = model.text_model.get_submodule("head").requires_grad_(requires_grad=False)
        self.vision_head = model.vision_model.get_submodule("head").requires_grad_(requires_grad=False)

    def embed_image(self, stream: torch.Tensor) -> torch.Tensor:
        """Patches pooled by the tower's attention head: [B, G, d] -> [B, e]."""
        embedded: torch.Tensor = self.vision_head(self.vision_norm_post(stream))
        return embedded

    def _pool_text(self, hidden: torch.Tensor, end: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 -- padding is read
        pooled: torch.Tensor = self.text_head(self.text_norm(hidden[:, -1]))
        return pooled
