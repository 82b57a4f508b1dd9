"""What a backbone is: the facts of a pair of frozen towers, and the calls that everything else may make."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

Activation = Literal["gelu", "quick_gelu", "gelu_pytorch_tanh"]
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
        embed_dim: Size of the shared image-text space (e).
        text_width: Width of the text tower.
        text_length: Positions of the text tower.
        causal_text: Whether a text position sees only those before it; then a sequence may be cut after its last
            used position without changing anything.
        mean: Channel means of the input normalisation.
        std: Channel standard deviations.
        activation: What the blocks' MLPs use.
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
    causal_text: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    activation: Activation
    native_image_size: int
    licence: str
    commercial: bool | None
    source: str

    @property
    def taps(self) -> tuple[int, ...]:
        """The blocks after which tokens are taken, 1-based: a quarter, half, three quarters and all of the depth."""
        return tuple(max(1, round(self.depth * quarter / 4)) for quarter in (1, 2, 3, 4))


class Backbone(nn.Module, ABC):
    """A pair of frozen towers. No parameter ever requires a gradient."""

    spec: BackboneSpec
    image_size: tuple[int, int]
    """Height and width of the pixels that `encode_image` expects."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patch tokens."""
        return self.image_size[0] // self.spec.patch_size, self.image_size[1] // self.spec.patch_size

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the towers are."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """What the towers compute in."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and float32 values of all weights and over the activation; hexadecimal.

        The same weights give the same fingerprint whichever file format they came in.
        """

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
        """

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
            embeddings: [N, L, text width] without positions, L at most `spec.text_length`. A tower that attends in
                both directions (`spec.causal_text` false) needs all its positions, padding included.
            end: [N], the position of the end token of each sequence, where a causal tower reads its embedding;
                a tower that pools elsewhere (SigLIP: the last position) does not use it.
            attention: `full` drops the causal mask, as the released code does.

        Returns:
            [N, e], not scaled to unit length.
        """
