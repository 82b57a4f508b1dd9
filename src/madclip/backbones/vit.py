"""Image-only vision transformers: plain ones, DINOv2 with and without registers, and DINOv3.

Sources: A. Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; M. Oquab et al., DINOv2, TMLR 2024 (layer
scale, SwiGLU); T. Darcet et al., Vision Transformers Need Registers, ICLR 2024; O. Simeoni et al., DINOv3, 2025 (rotary
positions of the patches, none of the tokens before them).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from madclip.backbones.configuration import TowerConfig
from madclip.backbones.modules import ACTIVATIONS, layer_norm
from madclip.backbones.spec import BackboneSpec, Tower
from madclip.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

REGISTER_LIMIT = 1024


@dataclass(frozen=True)
class VitConfig(TowerConfig):
    """An image-only vision transformer.

    Attributes:
        image_size: Side at which it was trained, pixels.
        patch_size: Side of a patch, pixels.
        class_token: Whether a class token stands before the patches.
        registers: Register tokens behind the class token.
        placed: How many of the tokens before the patches have a position of their own, from the first on.
        gated: Whether its MLPs are gated (SwiGLU).
        layer_scale: Whether what a block adds is scaled channel by channel.
        pre_norm: Whether tokens are normed before the first block.
        rope_theta: Base of the rotary positions; None where positions are a table.
        antialias: Whether the table of positions is smoothed for a smaller grid.
        biases: Which of `q`, `k`, `v`, `o` (attention), `mlp` and `patch` have a bias.
    """

    image_size: int
    patch_size: int
    class_token: bool = True
    registers: int = 0
    placed: int = 1
    gated: bool = False
    layer_scale: bool = True
    pre_norm: bool = False
    rope_theta: float | None = None
    antialias: bool = True
    biases: tuple[str, ...] = ("q", "k", "v", "o", "mlp", "patch")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size < self.patch_size:
            raise ValueError(f"an image_size of {self.image_size} is less than a patch of {self.patch_size}")
        if not isinstance(self.registers, int) or not 0 <= self.registers <= REGISTER_LIMIT:
            raise ValueError(f"register tokens should be 0 to {REGISTER_LIMIT}, not {self.registers!r}")
        if self.rope_theta is not None and (self.hidden_size // self.num_attention_heads) % 4:
            raise ValueError("rotary positions need heads of a multiple of four channels")

    @property
    def prefix_tokens(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return int(self.class_token) + self.registers


class Attention(nn.Module):
    """Multi-head self-attention, with rotary positions of the patches where there are any."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        width, self.heads = config.hidden_size, config.num_attention_heads
        for letter in "qkvo":
            self.add_module(f"{letter}_proj", nn.Linear(width, width, bias=letter in config.biases))

    def forward(self, hidden: torch.Tensor, rotation: torch.Tensor | None) -> torch.Tensor:
        """[B, N, d] -> [B, N, d]; rotation: cosines and sines [2, G, head width] of the last G positions."""
        query, key, value = (
            self.get_submodule(f"{letter}_proj")(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for letter in "qkv"
        )
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        attended: torch.Tensor = self.get_submodule("o_proj")(mixed)
        return attended


class MLP(nn.Module):
    """Two linear layers around an activation, or a gated pair of them before the last."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.hidden_act]
        bias = "mlp" in config.biases
        if config.gated:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., d] -> [..., d]."""
        up = self.up_proj(hidden)
        inner = self.activation(self.gate_proj(hidden)) * up if hasattr(self, "gate_proj") else self.activation(up)
        changed: torch.Tensor = self.down_proj(inner)
        return changed


class Scale(nn.Module):
    """A learned factor for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.empty(width))  # transformers' name

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., d] -> [..., d]."""
        return hidden * self.lambda1


class Block(nn.Module):
    """A pre-norm transformer block, with layer scale where there is one."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = layer_norm(config)
        self.attention = Attention(config)
        self.layer_scale1 = Scale(width) if config.layer_scale else nn.Identity()
        self.norm2 = layer_norm(config)
        self.mlp = MLP(config)
        self.layer_scale2 = Scale(width) if config.layer_scale else nn.Identity()

    def forward(self, hidden: torch.Tensor, rotation: torch.Tensor | None) -> torch.Tensor:
        """Residual stream [B, N, d] -> [B, N, d]."""
        hidden = hidden + self.layer_scale1(self.attention(self.norm1(hidden), rotation))
        changed: torch.Tensor = hidden + self.layer_scale2(self.mlp(self.norm2(hidden)))
        return changed


class VisionTransformer(nn.Module):
    """The weights up to the last block."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        if config.class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.empty(1, config.registers, width))
        if config.rope_theta is None:
            count = config.placed + (config.image_size // patch) ** 2
            self.position_embeddings = nn.Parameter(torch.empty(1, count, width))
        self.patch_embeddings = nn.Conv2d(3, width, patch, stride=patch, bias="patch" in config.biases)
        self.norm_pre = layer_norm(config) if config.pre_norm else nn.Identity()
        self.layer = nn.ModuleList([Block(config) for _ in range(config.num_hidden_layers)])


class VitTower(Tower):
    """A frozen image-only vision transformer.

    Args:
        model: With its weights.
        spec: Its facts.
        image_size: Height and width of the pixels.
        prefix: [prefix, d], the class token and the registers with their positions, float32.
        positions: [G, d], positions that are added to the patches, or None.
        rotation: Cosines and sines [2, G, head width] of the patches, or None.
        fingerprint: See `Tower.fingerprint`.
    """

    prefix: torch.Tensor
    positions: torch.Tensor | None
    rotation: torch.Tensor | None

    def __init__(
        self,
        model: VisionTransformer,
        spec: BackboneSpec,
        *,
        image_size: tuple[int, int],
        prefix: torch.Tensor,
        positions: torch.Tensor | None,
        rotation: torch.Tensor | None,
        fingerprint: str,
    ) -> None:
        super().__init__()
        self.spec, self.image_size, self._fingerprint = spec, image_size, fingerprint
        self.patch_embeddings, self.norm_pre, self.blocks = model.patch_embeddings, model.norm_pre, model.layer
        weight = model.patch_embeddings.weight
        for name, tensor in (("prefix", prefix), ("positions", positions), ("rotation", rotation)):
            self.register_buffer(name, None if tensor is None else tensor.to(weight), persistent=False)
        self.requires_grad_(requires_grad=False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the tower is."""
        return self.prefix.device

    @property
    def dtype(self) -> torch.dtype:
        """What the tower computes in."""
        return self.prefix.dtype

    def encode_image(
        self,
        pixels: torch.Tensor,
        *,
        windows: torch.Tensor | None = None,
        after_tap: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Residual streams at the taps: pixels [B, 3, H, W] -> for each tap [B, prefix + G, d].

        Raises:
            RecipeError: The pixels are not of `image_size`, or windows or `after_tap` are asked for.
        """
        if windows is not None or after_tap is not None:
            raise RecipeError(f"{self.spec.id} has no texts: windows and adapters inside are for CLIPs")
        if pixels.shape[2:] != self.image_size:
            raise RecipeError(f"pixels are {tuple(pixels.shape[2:])}, the tower was loaded for {self.image_size}")
        patches = self.patch_embeddings(pixels.to(self.dtype)).flatten(2).transpose(1, 2)
        if self.positions is not None:
            patches = patches + self.positions
        hidden = self.norm_pre(torch.cat([self.prefix.expand(patches.shape[0], -1, -1), patches], 1))
        streams: list[torch.Tensor] = []
        for number, block in enumerate(self.blocks, start=1):
            hidden = block(hidden, self.rotation)
            streams += [hidden] * self.spec.taps.count(number)
        return streams


def rotation_of(config: VitConfig, grid: tuple[int, int]) -> torch.Tensor:
    """Cosines and sines [2, G, head width] of the patches' places; height and width are scaled to -1..1 each."""
    theta, width = config.rope_theta or 1.0, config.hidden_size // config.num_attention_heads
    frequency = 1 / theta ** torch.arange(0, 1, 4 / width, dtype=torch.float32)
    rows, columns = (2 * (torch.arange(0.5, count) / count) - 1 for count in grid)
    places = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1).flatten(0, 1)
    angles = (2 * math.pi * places[:, :, None] * frequency).flatten(1).tile(2)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Turn the last G positions of [B, heads, N, head width], each pair of channels by its place's angle."""
    cos, sin = rotation
    before, patches = x.split([x.shape[2] - cos.shape[0], cos.shape[0]], 2)
    first, second = patches.chunk(2, -1)
    return torch.cat([before, patches * cos + torch.cat([-second, first], -1) * sin], 2)
