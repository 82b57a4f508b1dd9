"""CLIP: a class token before the patches, a causal text tower that is read at its end token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from madclip.backbones.towers import TowerBackbone

if TYPE_CHECKING:
    from torch import nn

POSITIONS = "vision_model.embeddings.position_embedding.weight"


def empty_model(config: dict[str, Any]) -> Any:
    """A `CLIPModel` without storage; config as in a Hugging Face config.json."""
    from transformers.models.clip.configuration_clip import CLIPConfig
    from transformers.models.clip.modeling_clip import CLIPModel

    with torch.device("meta"):
        return CLIPModel(CLIPConfig.from_dict(config, attn_implementation="sdpa"))


class ClipBackbone(TowerBackbone):
    """CLIP's two towers."""

    def __init__(self, model: Any, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, prefix=model.vision_model.embeddings.class_embedding.detach()[None], **options)
        self.text_projection: nn.Module = model.text_projection.requires_grad_(requires_grad=False)
        self.visual_projection: nn.Module = model.visual_projection.requires_grad_(requires_grad=False)

    def embed_image(self, stream: torch.Tensor) -> torch.Tensor:
        """The class token of the last block, normed and projected: [B, 1 + G, d] -> [B, e]."""
        embedded: torch.Tensor = self.visual_projection(self.vision_norm_post(stream[:, 0]))
        return embedded

    def _pool_text(self, hidden: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        last = hidden[torch.arange(hidden.shape[0], device=hidden.device), end]
        pooled: torch.Tensor = self.text_projection(self.text_norm(last))
        return pooled
