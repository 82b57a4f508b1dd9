"""CLIP: a class token before the patches, a causal text tower that is read at its end token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from madclip.backbones.modules import TextTower, TwoTowers, VisionTower, layer_norm
from madclip.backbones.towers import TowerBackbone

if TYPE_CHECKING:
    from madclip.backbones.configuration import ModelConfig


class ClipModel(TwoTowers):
    """CLIP's weights."""

    def __init__(self, config: ModelConfig) -> None:
        vision, text = config.vision, config.text
        super().__init__(config, VisionTower(vision, prefix=1, bias=False), TextTower(text))
        self.vision_model.embeddings.class_embedding = nn.Parameter(torch.empty(vision.hidden_size))
        self.vision_model.pre_layrnorm = layer_norm(vision)  # transformers' spelling
        self.visual_projection = nn.Linear(vision.hidden_size, config.embed_dim, bias=False)
        self.text_projection = nn.Linear(text.hidden_size, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(()))


class ClipBackbone(TowerBackbone):
    """CLIP's two towers."""

    causal = True

    def __init__(self, model: TwoTowers, *args: Any, **options: Any) -> None:
        prefix = model.get_parameter("vision_model.embeddings.class_embedding").detach()[None]
        super().__init__(model, *args, prefix=prefix, **options)
        self.text_projection = model.get_submodule("text_projection").requires_grad_(requires_grad=False)
        self.visual_projection = model.get_submodule("visual_projection").requires_grad_(requires_grad=False)

    def embed_image(self, stream: torch.Tensor) -> torch.Tensor:
        """The class token of the last block, normed and projected: [B, 1 + G, d] -> [B, e]."""
        embedded: torch.Tensor = self.visual_projection(self.vision_norm_post(stream[:, 0]))
        return embedded

    def _pool_text(self, hidden: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        last = hidden[torch.arange(hidden.shape[0], device=hidden.device), end]
        pooled: torch.Tensor = self.text_projection(self.text_norm(last))
        return pooled
