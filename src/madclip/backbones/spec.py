"""What a backbone is: the facts of its frozen towers, and the calls that everything else may make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

Activation = Literal["gelu", "quick_gelu", "gelu_pytorch_tanh", "silu"]
TextAttention = Literal["native", "full"]
"""How text positions see one another: `native` as the tower was pre-trained, `full` every position sees every other."""


@dataclass(frozen=True)
class BackboneSpec:
    """Facts of a backbone: data, never branches in the model.

    Attributes:
        id: Catalogue name, hub name or file name.
        depth: Blocks of the vision tower.
        width: Width of its residual stream (d).
        patch_size: Side of a patch, pixels.
        prefix_tokens: Tokens before the patch tokens (1 class token for CLIP, 0 for SigLIP).
        embed_dim: Size of the shared image-text space (e); 0 for a tower without texts.
        text_width: Width of the text tower; 0 without one.
        text_length: Positions of the text tower; 0 without one.
        reads_padding: Whether the text tower reads what fills a text up (SigLIP). Where it does not, a sequence may be
            cut after its end token without changing anything: a position sees only those before it, or padding is
            masked.
        mean: Channel means of the input normalisation.
        std: Channel standard deviations.
        activation: Activation of the blocks' MLPs; None where there are none.
        native_image_size: Side in pixels at which the position table was trained.
        licence: Licence of the weights.
        commercial: Whether they may be used commercially; None where that is not known.
        source: Where the weights came from.
    """

    id: str
    depth: int
    width: int
    patch_size: int
    prefix_tokens: int
    embed_dim: int
    text_width: int
    text_length: int
    reads_padding: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    activation: Activation | None
    native_image_size: int
    licence: str
    commercial: bool | None
    source: str

    @property
    def taps(self) -> tuple[int, ...]:
        """The blocks after which tokens are taken, 1-based: a quarter, half, three quarters and all of the depth."""
        return tuple(max(1, round(self.depth * quarter / 4)) for quarter in (1, 2, 3, 4))


@cache
def bilinear(have: int, want: int) -> npt.NDArray[np.float32]:
    """Weights [want, have] of bilinear resizing with antialiasing; as a product because not every engine has the other.

    The same as `F.interpolate(..., mode="bilinear", antialias=True)` along one side.
    """
    scale = have / want
    away = (np.arange(have) + 0.5)[None] - (np.arange(want) + 0.5)[:, None] * scale
    weights = np.clip(1 - np.abs(away) / max(scale, 1), 0, None)
    found: npt.NDArray[np.float32] = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return found


class Tower(nn.Module, ABC):
    """A frozen vision tower, read at its taps. No parameter ever requires a gradient."""

    spec: BackboneSpec
    image_size: tuple[int, int]
    """Height and width of the pixels that `encode_image` expects."""
    _fingerprint: str

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patch tokens."""
        return self.image_size[0] // self.spec.patch_size, self.image_size[1] // self.spec.patch_size

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the tower is."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What the tower computes in."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and float32 values of all weights and over the activation; hexadecimal.

        The same weights give the same fingerprint whichever file format they came in.
        """
        return self._fingerprint

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 -- nn.Module's signature
        """Stay in evaluation mode: towers are frozen."""
        return super().train(mode=False)

    @abstractmethod
    def encode_image(
        self,
        pixels: torch.Tensor,
        *,
        windows: torch.Tensor | None = None,
        after_tap: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Residual streams at the taps.

        Args:
            pixels: [B, 3, H, W], normalised by the backbone's mean and std (or as the recipe says), at `image_size`.
            windows: [W, K], patches by number; the tower sees each window of an image alone, in its place.
            after_tap: Given the index of a tap and the stream there, returns the stream that the next block reads and
                the caller gets; gradients flow through the blocks to what it adds.

        Returns:
            For each tap [B, prefix + G, d], G = rows x columns of patches, in `dtype`; [B x W, prefix + K, d] with
            windows, image by image.

        Raises:
            RecipeError: The pixels are not of `image_size`, or the tower knows no windows or no `after_tap`.
        """

    def prepare(self, pixels: torch.Tensor, *, normalise: bool = True) -> torch.Tensor:
        """Pixels [B, 3, H, W] in 0..1 as the tower reads them: at `image_size`, normalised, where it is, in `dtype`."""
        pixels = pixels.to(self.device)
        if normalise:
            mean, std = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (self.spec.mean, self.spec.std))
            pixels = (pixels - mean) / std
        pixels = pixels.to(self.dtype)
        if pixels.shape[2:] != self.image_size:
            rows, columns = (
                torch.from_numpy(bilinear(have, want)).to(pixels)
                for have, want in zip(pixels.shape[2:], self.image_size, strict=True)
            )
            pixels = rows @ pixels @ columns.T
        return pixels

    def patch_tokens(self, pixels: torch.Tensor, *, normalise: bool = True) -> list[torch.Tensor]:
        """Patch tokens at the taps: pixels [B, 3, H, W] in 0..1 -> for each tap [B, G, d], without prefix tokens."""
        streams = self.encode_image(self.prepare(pixels, normalise=normalise))
        return [stream[:, self.spec.prefix_tokens :] for stream in streams]


class Backbone(Tower):
    """A frozen vision tower, or several side by side, with a text tower that shares a space with the first."""

    @property
    def towers(self) -> tuple[Tower, ...]:
        """The vision towers whose patch tokens `combine` puts together, the one with the texts first."""
        return (self,)

    def combine(self, tokens: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """Patch tokens of all towers as the head reads them.

        Args:
            tokens: What `patch_tokens` gives of each of `towers`, from the towers or from a cache.

        Returns:
            For each tap [B, G, d], on the first tower's grid.
        """
        return list(tokens[0])

    @abstractmethod
    def embed_image(self, stream: torch.Tensor) -> torch.Tensor:
        """Image embeddings from the last block's stream: [B, prefix + G, d] -> [B, e], not scaled to unit length."""

    @abstractmethod
    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Text embeddings [N, e], not scaled to unit length."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text without start, end and padding, and without a length limit."""

    @property
    @abstractmethod
    def words(self) -> dict[int, str]:
        """The token ids that are whole words, in ASCII letters, and the words."""

    @property
    @abstractmethod
    def start_ids(self) -> list[int]:
        """Ids put before a text: [SOS] for CLIP, none for SigLIP."""

    @property
    @abstractmethod
    def end_ids(self) -> list[int]:
        """Ids put after a text: [EOS]."""

    @property
    @abstractmethod
    def pad_id(self) -> int:
        """Id that fills the rest of a text's positions."""

    @abstractmethod
    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings without positions: ids [N, L] -> [N, L, text width]."""

    @abstractmethod
    def encode_embeddings(
        self, embeddings: torch.Tensor, end: torch.Tensor, *, attention: TextAttention = "native"
    ) -> torch.Tensor:
        """Text tower from token embeddings on; gradients flow to `embeddings` and to nothing else.

        Args:
            embeddings: [N, L, text width] without positions, L at most `spec.text_length`. A tower that reads
                padding (`spec.reads_padding`) needs all its positions.
            end: [N], the position of the end token of each sequence, where a causal tower reads its embedding and
                one that masks padding ends; SigLIP's, which pools at the last position, does not use it.
            attention: `full` drops the mask, as the released code does.

        Returns:
            [N, e], not scaled to unit length.
        """
