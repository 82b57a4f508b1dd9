"""SigLIP, SigLIP 2 at a fixed resolution, MedSigLIP: no class token, a text tower that attends in both directions."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from madclip.backbones.configuration import ModelConfig, text_config, vision_config
from madclip.backbones.modules import AttentionPooling, TextTower, TwoTowers, VisionTower
from madclip.backbones.towers import TowerBackbone


class SiglipModel(TwoTowers):
    """SigLIP's weights."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, VisionTower(config.vision, prefix=0, bias=True), TextTower(config.text))
        self.vision_model.head = AttentionPooling(config.vision)
        self.text_model.head = nn.Linear(config.text.hidden_size, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1))


def empty_model(config: dict[str, Any]) -> SiglipModel:
    """A SigLIP without storage; config as in a Hugging Face config.json.

    Raises:
        ValueError: The configuration makes no model.
    """
    text = text_config("siglip", config)
    embed_dim = config["text_config"].get("projection_size")
    with torch.device("meta"):
        return SiglipModel(
            ModelConfig(vision_config("siglip", config), text, text.hidden_size if embed_dim is None else embed_dim)
        )


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
