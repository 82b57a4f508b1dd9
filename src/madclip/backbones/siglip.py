"""SigLIP, SigLIP 2 at a fixed resolution, MedSigLIP: no class token, a text tower that attends in both directions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from madclip.backbones.towers import TowerBackbone

if TYPE_CHECKING:
    from torch import nn


def empty_model(config: dict[str, Any]) -> Any:
    """A `SiglipModel` without storage; config as in a Hugging Face config.json."""
    from transformers.models.siglip.configuration_siglip import SiglipConfig
    from transformers.models.siglip.modeling_siglip import SiglipModel

    with torch.device("meta"):
        return SiglipModel(SiglipConfig.from_dict(config, attn_implementation="sdpa"))


class SiglipBackbone(TowerBackbone):
    """SigLIP's two towers."""

    def __init__(self, model: Any, *args: Any, **options: Any) -> None:
        width = model.vision_model.embeddings.embed_dim
        super().__init__(model, *args, prefix=torch.zeros(0, width), **options)
        self.text_head: nn.Module = model.text_model.head.requires_grad_(requires_grad=False)
        self.vision_head: nn.Module = model.vision_model.head.requires_grad_(requires_grad=False)

    def embed_image(self, stream: torch.Tensor) -> torch.Tensor:
        """Patches pooled by the tower's attention head: [B, G, d] -> [B, e]."""
        embedded: torch.Tensor = self.vision_head(self.vision_norm_post(stream))
        return embedded

    def _pool_text(self, hidden: torch.Tensor, end: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 -- padding is read
        pooled: torch.Tensor = self.text_head(self.text_norm(hidden[:, -1]))
        return pooled
