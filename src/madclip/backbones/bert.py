"""CLIPs whose texts go through a BERT, as BiomedCLIP's do: a plain ViT beside it, padding masked.

Sources: J. Devlin et al., BERT, NAACL 2019 (blocks that norm after they add); S. Zhang et al., BiomedCLIP, NEJM
AI 2025.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from madclip.backbones.clip import ClipBackbone
from madclip.backbones.modules import (
    MLP,
    Attention,
    TextEmbeddings,
    TextTower,
    TwoTowers,
    VisionTower,
    embedding,
    layer_norm,
)

if TYPE_CHECKING:
    from madclip.backbones.configuration import ModelConfig, TextConfig

TOKEN_TYPES = 2


class BertBlock(nn.Module):
    """A transformer block that norms after it adds."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.layer_norm1 = layer_norm(config)
        self.mlp = MLP(config)
        self.layer_norm2 = layer_norm(config)

    def forward(self, hidden: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
        """[N, L, d] -> [N, L, d]; seen: [N, 1, 1, L], the positions that may be attended to, or None for all."""
        hidden = self.layer_norm1(hidden + self.self_attn(hidden, is_causal=False, mask=seen))
        changed: torch.Tensor = self.layer_norm2(hidden + self.mlp(hidden))
        return changed


class BertTower(TextTower):
    """BERT's weights without its pooler."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__(config)
        self.embeddings = TextEmbeddings(config)
        self.embeddings.token_type_embedding = embedding(TOKEN_TYPES, config.hidden_size)
        self.embeddings.layer_norm = layer_norm(config)
        self.encoder.layers = nn.ModuleList([BertBlock(config) for _ in range(config.num_hidden_layers)])
        self.final_layer_norm = nn.Identity()


class BertModel(TwoTowers):
    """The weights of a plain ViT with a class token, of a BERT, and of what takes both to one space."""

    def __init__(self, config: ModelConfig) -> None:
        vision, width = config.vision, config.text.hidden_size
        super().__init__(config, VisionTower(vision, prefix=1, bias=True), BertTower(config.text))
        self.vision_model.embeddings.class_embedding = nn.Parameter(torch.empty(vision.hidden_size))
        self.visual_projection = nn.Linear(vision.hidden_size, config.embed_dim, bias=False)
        inner = (width + config.embed_dim) // 2  # as open_clip has it
        self.text_projection = nn.Sequential(
            nn.Linear(width, inner, bias=False), nn.GELU(), nn.Linear(inner, config.embed_dim, bias=False)
        )
        self.logit_scale = nn.Parameter(torch.empty(()))


class BertBackbone(ClipBackbone):
    """A CLIP whose texts attend in both directions up to their end, and are read at their first token."""

    token_type: torch.Tensor

    def __init__(self, model: BertModel, *args: Any, **options: Any) -> None:
        super().__init__(model, *args, **options)
        embeddings = model.text_model.embeddings
        self.text_norm_first = embeddings.get_submodule("layer_norm").requires_grad_(requires_grad=False)
        first = embeddings.get_parameter("token_type_embedding.weight").detach()[0]
        self.register_buffer("token_type", first.clone(), persistent=False)

    def _run_text(self, embeddings: torch.Tensor, end: torch.Tensor, *, native: bool) -> torch.Tensor:
        length = embeddings.shape[1]
        hidden: torch.Tensor = self.text_norm_first(embeddings + self.text_positions[:length] + self.token_type)
        seen = torch.arange(length, device=end.device) <= end[:, None] if native else None
        for block in self.text_blocks:
            hidden = block(hidden, None if seen is None else seen[:, None, None])
        return hidden

    def _pool_text(self, hidden: torch.Tensor, end: torch.Tensor) -> torch.Tensor:  # noqa: ARG002 -- the first counts
        pooled: torch.Tensor = self.text_projection(hidden[:, 0])
        return pooled
