"""The modules of CLIP and SigLIP, under the names of transformers' CLIPModel and SiglipModel.

Only what holds weights and what `towers.TowerBackbone` runs. Query, key and value of a block are one product here
and three tensors in every file: `file_tensors` takes the product apart.

Sources: A. Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021 (pre-norm blocks); A. Radford et al., Learning
Transferable Visual Models From Natural Language Supervision, ICML 2021 (CLIP); X. Zhai et al., Scaling Vision
Transformers, CVPR 2022 (attention pooling) and Sigmoid Loss for Language Image Pre-Training, ICCV 2023 (SigLIP).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from madclip.backbones.configuration import ModelConfig, TextConfig, TowerConfig, VisionConfig
    from madclip.backbones.spec import Activation


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """The sigmoid approximation of GELU that OpenAI trained CLIP with."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[Activation, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "silu": F.silu,
}


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor, *, is_causal: bool, mask: torch.Tensor | None = None) -> torch.Tensor:
        """[B, N, d] -> [B, N, d]; mask: which positions may be attended to, [B, 1, 1, N]."""
        packed = self.qkv_proj(hidden).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in packed)
        mixed = F.scaled_dot_product_attention(query, key, value, mask, is_causal=is_causal)
        attended: torch.Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return attended


class MLP(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., d] -> [..., d]."""
        changed: torch.Tensor = self.fc2(self.activation(self.fc1(hidden)))
        return changed


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layer_norm1 = layer_norm(config)
        self.self_attn = Attention(config)
        self.layer_norm2 = layer_norm(config)
        self.mlp = MLP(config)

    def forward(self, hidden: torch.Tensor, *, is_causal: bool = False) -> torch.Tensor:
        """Residual stream [B, N, d] -> [B, N, d]; causal: a position sees only those up to itself."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), is_causal=is_causal)
        changed: torch.Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return changed


class Encoder(nn.Module):
    """The blocks of a tower."""

    def __init__(self, config: TowerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])


class AttentionPooling(nn.Module):
    """SigLIP's vision head: a learned query (the probe) attends to all patches."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.attention = nn.MultiheadAttention(config.hidden_size, config.num_attention_heads, batch_first=True)
        self.layernorm = layer_norm(config)
        self.mlp = MLP(config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[B, N, d] -> [B, d]."""
        probe = self.probe.expand(hidden.shape[0], -1, -1)
        pooled = self.attention(probe, hidden, hidden, need_weights=False)[0][:, 0]
        changed: torch.Tensor = pooled + self.mlp(self.layernorm(pooled))
        return changed


class VisionEmbeddings(nn.Module):
    """Patches and their positions; `prefix` positions more for what stands before them."""

    def __init__(self, config: VisionConfig, *, prefix: int, bias: bool) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=bias)
        self.position_embedding = embedding(prefix + (config.image_size // patch) ** 2, width)


class VisionTower(nn.Module):
    """What the vision towers of both families have."""

    def __init__(self, config: VisionConfig, *, prefix: int, bias: bool) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config, prefix=prefix, bias=bias)
        self.encoder = Encoder(config)
        self.post_layernorm = layer_norm(config)


class TextEmbeddings(nn.Module):
    """Tokens and their positions."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.token_embedding = embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = embedding(config.max_position_embeddings, config.hidden_size)


class TextTower(nn.Module):
    """What the text towers of both families have."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm: nn.Module = layer_norm(config)


class TwoTowers(nn.Module):
    """What the models of both families have."""

    def __init__(self, config: ModelConfig, vision_model: VisionTower, text_model: TextTower) -> None:
        super().__init__()
        self.config = config
        self.vision_model = vision_model
        self.text_model = text_model


def embedding(count: int, width: int) -> nn.Embedding:
    """An embedding that nothing fills: on the meta device, drawing normal values makes torch import its compiler."""
    empty: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(count, width))
    return empty


def layer_norm(config: TowerConfig) -> nn.LayerNorm:
    """A norm of a tower's width."""
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


def file_tensors(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a file that make up one of ours, as views of it."""
    if ".qkv_proj." not in name:
        return {name: tensor}
    names = [name.replace("qkv_proj", f"{letter}_proj") for letter in "qkv"]
    return dict(zip(names, tensor.chunk(3), strict=True))


def weight_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Name and shape of every tensor that a file of the model holds."""
    own = model.state_dict().items()
    return {part: view.shape for name, tensor in own for part, view in file_tensors(name, tensor).items()}


def load_weights(model: nn.Module, state: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> None:
    """Give a model without storage its own copy of weights, so that none stays a view of a file that may change.

    Args:
        model: On the meta device.
        state: Tensors of the names and shapes of `weight_shapes`.
        device: Where the copies go.
        dtype: What they are rounded to.
    """
    weights = {n: torch.empty(t.shape, device=device, dtype=dtype) for n, t in model.state_dict().items()}
    for name, tensor in weights.items():
        for part, view in file_tensors(name, tensor).items():
            view.copy_(state[part])
    model.load_state_dict(weights, assign=True)
