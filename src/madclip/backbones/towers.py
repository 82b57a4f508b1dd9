"""A pair of frozen transformer towers, read at any block and from any embedding on."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from madclip.backbones.spec import Backbone, BackboneSpec, TextAttention
from madclip.backbones.tokenizer import CLIP_VOCABULARY
from madclip.errors import CheckpointError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from madclip.backbones.modules import TwoTowers
    from madclip.backbones.tokenizer import Tokenizer


def resize_positions(
    table: torch.Tensor, prefix: int, grid: tuple[int, int], *, antialias: bool = True
) -> torch.Tensor:
    """A vision tower's position table for another grid: bicubic, half-pixel corners.

    Args:
        table: [prefix + g * g, d], for a square grid.
        prefix: Leading positions that belong to no patch and are kept.
        grid: Rows and columns asked for.
        antialias: Whether a smaller grid is smoothed first, as the released code does.

    Returns:
        [prefix + rows * columns, d] in float32.
    """
    table = table.float()
    side = round((len(table) - prefix) ** 0.5)
    if grid == (side, side):
        return table
    patches = table[prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    resized = F.interpolate(patches, size=grid, mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([table[:prefix], resized.flatten(2)[0].T])


class TowerBackbone(Backbone):
    """The towers of a CLIP-like model; a subclass says how a text is pooled.

    Args:
        model: With its weights; its blocks are used, the rest is let go.
        spec: Its facts.
        image_size: Height and width of the pixels, at least one patch each.
        positions: [prefix + G, d], the position table for that size, float32.
        prefix: [prefix, d], what stands before the patches (CLIP's class embedding), without positions.
        fingerprint: See `Backbone.fingerprint`.
        tokenizer: Makes the tokenizer when a text comes first.
    """

    positions: torch.Tensor
    prefix: torch.Tensor
    text_positions: torch.Tensor
    causal = False
    """Whether a text position sees only those before it."""

    def __init__(
        self,
        model: TwoTowers,
        spec: BackboneSpec,
        *,
        image_size: tuple[int, int],
        positions: torch.Tensor,
        prefix: torch.Tensor,
        fingerprint: str,
        tokenizer: Callable[[], Tokenizer],
    ) -> None:
        super().__init__()
        vision, text = model.vision_model, model.text_model
        self.spec = spec
        self.image_size = image_size
        self._fingerprint = fingerprint
        self._make_tokenizer = tokenizer
        self.patch_embedding = vision.embeddings.patch_embedding
        self.vision_norm: nn.Module = getattr(vision, "pre_layrnorm", nn.Identity())
        self.vision_blocks = vision.encoder.layers
        self.vision_norm_post = vision.post_layernorm
        self.token_embedding = text.embeddings.token_embedding
        self.text_blocks = text.encoder.layers
        self.text_norm = text.final_layer_norm
        weight = vision.embeddings.patch_embedding.weight
        count = spec.prefix_tokens
        self.register_buffer("prefix", (prefix.float() + positions[:count]).to(weight), persistent=False)
        self.register_buffer("positions", positions[count:].to(weight), persistent=False)
        self.register_buffer(
            "text_positions", text.embeddings.position_embedding.weight.detach().clone(), persistent=False
        )
        self.requires_grad_(requires_grad=False)
        self.eval()

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.text_positions.device

    @property
    def dtype(self) -> torch.dtype:
        """What the towers compute in."""
        return self.text_positions.dtype

    def encode_image(
        self,
        pixels: torch.Tensor,
        *,
        windows: torch.Tensor | None = None,
        after_tap: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Residual streams at the taps: pixels [B, 3, H, W] -> for each tap [B, prefix + G, d]; see `Backbone`.

        Raises:
            RecipeError: The pixels are not of `image_size`.
        """
        if pixels.shape[1:] != (3, *self.image_size):
            asked = f"[B, 3, {self.image_size[0]}, {self.image_size[1]}]"
            raise RecipeError(f"pixels have shape {list(pixels.shape)}, the backbone was loaded for {asked}")
        patches = self.patch_embedding(pixels.to(self.dtype)).flatten(2).transpose(1, 2) + self.positions
        if windows is not None:
            patches = patches[:, windows.to(patches.device)].flatten(0, 1)
        prefix = self.prefix.expand(patches.shape[0], -1, -1)
        hidden = self.vision_norm(torch.cat([prefix, patches], dim=1))
        streams: list[torch.Tensor] = []
        for number, block in enumerate(self.vision_blocks, start=1):
            hidden = block(hidden)
            for _ in range(self.spec.taps.count(number)):  # a shallow tower may have a tap twice
                hidden = hidden if after_tap is None else after_tap(len(streams), hidden)
                streams.append(hidden)
        return streams

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Text embeddings [N, e], not scaled to unit length.

        Raises:
            RecipeError: A text is longer than the tower.
        """
        if not texts:
            return torch.zeros(0, self.spec.embed_dim, device=self.device, dtype=self.dtype)
        rows = [[*self.start_ids, *ids, *self.end_ids] for ids in self.tokenize(texts)]
        longest = max(len(row) for row in rows)
        if longest > self.spec.text_length:
            text = texts[[len(row) for row in rows].index(longest)]
            limit = self.spec.text_length
            raise RecipeError(f"the text {text[:60]!r} has {longest} tokens, the tower takes {limit}: shorten it")
        length = self.spec.text_length if self.spec.reads_padding else longest
        ids = torch.full((len(rows), length), self.pad_id)
        for row, values in zip(ids, rows, strict=True):
            row[: len(values)] = torch.tensor(values)
        end = torch.tensor([len(row) - 1 for row in rows], dtype=torch.long)
        return self.encode_embeddings(self.embed_tokens(ids.to(self.device)), end.to(self.device))

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        tokenizer, known = self._make_tokenizer(), self.token_embedding.num_embeddings
        if tokenizer.source == CLIP_VOCABULARY and tokenizer.size < known:
            raise CheckpointError(
                f"the text tower of {self.spec.source} knows {known} ids, CLIP's own tokenizer has {tokenizer.size}: "
                "put the tokenizer.json of these weights beside them"
            )
        if tokenizer.size > known:
            raise CheckpointError(
                f"{tokenizer.source} has {tokenizer.size} ids, but the text tower of {self.spec.source} knows {known}: "
                "put the tokenizer of these weights beside them"
            )
        return tokenizer

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text without start, end and padding, and without a length limit."""
        return self._tokenizer.encode(texts)

    @cached_property
    def words(self) -> dict[int, str]:
        """The token ids that are whole words, and the words."""
        return self._tokenizer.words()

    @property
    def start_ids(self) -> list[int]:
        """Ids put before a text."""
        return list(self._tokenizer.start_ids)

    @property
    def end_ids(self) -> list[int]:
        """Ids put after a text."""
        return list(self._tokenizer.end_ids)

    @property
    def pad_id(self) -> int:
        """Id that fills the rest of a text's positions."""
        return self._tokenizer.pad_id

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings without positions: ids [N, L] -> [N, L, text width]."""
        embeddings: torch.Tensor = self.token_embedding(ids)
        return embeddings

    def encode_embeddings(
        self, embeddings: torch.Tensor, end: torch.Tensor, *, attention: TextAttention = "native"
    ) -> torch.Tensor:
        """Text tower from token embeddings [N, L, text width] on -> [N, e]; see `Backbone.encode_embeddings`.

        Raises:
            RecipeError: More positions than the tower has, or fewer than one that reads padding needs.
        """
        length, limit = embeddings.shape[1], self.spec.text_length
        if length > limit or (length < limit and self.spec.reads_padding):
            raise RecipeError(
                f"{length} token positions: the text tower takes {'' if self.spec.reads_padding else 'at most '}{limit}"
            )
        return self._pool_text(self._run_text(embeddings.to(self.dtype), end, native=attention == "native"), end)

    def _run_text(self, embeddings: torch.Tensor, end: torch.Tensor, *, native: bool) -> torch.Tensor:  # noqa: ARG002
        """Residual stream [N, L, text width] behind the last block."""
        hidden = embeddings + self.text_positions[: embeddings.shape[1]]
        for block in self.text_blocks:
            hidden = block(hidden, is_causal=self.causal and native)
        return hidden

    @abstractmethod
    def _pool_text(self, hidden: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        """Residual stream [N, L, text width] -> [N, e]."""
