"""Several vision towers as one backbone: their patch tokens side by side on the grid of the first, whose texts count.

Each tower's tokens are normalised to mean 0 and variance 1 over their channels before they are concatenated, so that no
tower speaks louder than another. A class token stays that of the first tower.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F

from madclip.backbones.spec import Backbone, BackboneSpec, TextAttention, Tower
from madclip.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class FusedBackbone(Backbone):
    """A CLIP-like backbone with image-only partners. Its pixels are in 0..1: each tower normalises them by itself.

    Args:
        first: The backbone whose texts, grid and image size count.
        partners: Further vision towers, with as many taps.

    Raises:
        RecipeError: A partner has another number of taps.
    """

    def __init__(self, first: Backbone, partners: Sequence[Tower]) -> None:
        super().__init__()
        for partner in partners:
            if len(partner.spec.taps) != len(first.spec.taps):
                raise RecipeError(
                    f"{partner.spec.id} has {len(partner.spec.taps)} taps and {first.spec.id} {len(first.spec.taps)}: "
                    "they cannot be fused"
                )
        self._towers = torch.nn.ModuleList([first, *partners])
        self.spec = fused_spec([tower.spec for tower in self.towers])
        self.image_size = first.image_size
        self.eval()

    @property
    def first(self) -> Backbone:
        """The backbone whose texts count."""
        return cast("Backbone", self._towers[0])

    @property
    def towers(self) -> tuple[Tower, ...]:
        """All towers, the one with the texts first."""
        return tuple(cast("Tower", tower) for tower in self._towers)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patch tokens: those of the first tower."""
        return self.first.grid

    @property
    def device(self) -> torch.device:
        """Where the towers are."""
        return self.first.device

    @property
    def dtype(self) -> torch.dtype:
        """What the towers compute in."""
        return self.first.dtype

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the towers' fingerprints in their order; hexadecimal."""
        parts = ["fused by concatenation of normalised tokens", *(tower.fingerprint for tower in self.towers)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def prepare(self, pixels: torch.Tensor, *, normalise: bool = True) -> torch.Tensor:  # noqa: ARG002
        """Pixels [B, 3, H, W] in 0..1 on the towers' device; each tower normalises them by itself, in any case."""
        return pixels.to(self.device)

    def combine(self, tokens: Sequence[Sequence[torch.Tensor]]) -> list[torch.Tensor]:
        """Patch tokens [B, G', d'] of each tower and tap -> for each tap [B, G, sum of d'], normalised by tower."""
        placed = [
            [normalised(on_grid(stream, tower.grid, self.grid)) for stream in streams]
            for tower, streams in zip(self.towers, tokens, strict=True)
        ]
        return [torch.cat(streams, -1) for streams in zip(*placed, strict=True)]

    def encode_image(
        self,
        pixels: torch.Tensor,
        *,
        windows: torch.Tensor | None = None,
        after_tap: Callable[[int, torch.Tensor], torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """Fused tokens at the taps, after the first tower's prefix tokens; see `Tower.encode_image`.

        Partners have no prefix tokens and are not asked about windows: there, their channels are 0.

        Args:
            pixels: [B, 3, H, W] in 0..1, not normalised.
            windows: [W, K], patches by number.
            after_tap: Not possible here.

        Raises:
            RecipeError: The pixels are not of `image_size`, or something is to be changed inside the towers.
        """
        if after_tap is not None:
            raise RecipeError(f"{self.spec.id} is several towers, and none can be adapted inside: take one backbone")
        if pixels.shape[2:] != self.image_size:
            raise RecipeError(f"pixels are {tuple(pixels.shape[2:])}, the backbone was loaded for {self.image_size}")
        own = self.first.encode_image(self.first.prepare(pixels), windows=windows)
        if windows is not None:
            extra = self.spec.width - self.first.spec.width
            return [F.pad(normalised(stream), (0, extra)) for stream in own]
        count = self.spec.prefix_tokens
        partners = [tower.patch_tokens(pixels) for tower in self.towers[1:]]
        patches = self.combine([[stream[:, count:] for stream in own], *partners])
        extra = self.spec.width - self.first.spec.width
        return [
            torch.cat([F.pad(normalised(stream[:, :count]), (0, extra)), fused], 1)
            for stream, fused in zip(own, patches, strict=True)
        ]

    def embed_image(self, stream: torch.Tensor) -> torch.Tensor:
        """Image embeddings [B, e] of the first tower, whose last norm does not see that its tokens were normalised."""
        return self.first.embed_image(stream[..., : self.first.spec.width])

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """Text embeddings [N, e] of the first tower."""
        return self.first.encode_text(texts)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text without start, end and padding."""
        return self.first.tokenize(texts)

    @property
    def words(self) -> dict[int, str]:
        """The token ids of the first tower that are whole words."""
        return self.first.words

    @property
    def start_ids(self) -> list[int]:
        """Ids put before a text."""
        return self.first.start_ids

    @property
    def end_ids(self) -> list[int]:
        """Ids put after a text."""
        return self.first.end_ids

    @property
    def pad_id(self) -> int:
        """Id that fills the rest of a text's positions."""
        return self.first.pad_id

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Token embeddings without positions: ids [N, L] -> [N, L, text width]."""
        return self.first.embed_tokens(ids)

    def encode_embeddings(
        self, embeddings: torch.Tensor, end: torch.Tensor, *, attention: TextAttention = "native"
    ) -> torch.Tensor:
        """Text tower of the first from token embeddings on; see `Backbone.encode_embeddings`."""
        return self.first.encode_embeddings(embeddings, end, attention=attention)


def normalised(tokens: torch.Tensor) -> torch.Tensor:
    """Tokens [..., d] at mean 0 and variance 1 over their channels."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def on_grid(tokens: torch.Tensor, have: tuple[int, int], want: tuple[int, int]) -> torch.Tensor:
    """Patch tokens [B, G', d] interpolated bilinearly from one grid to another, [B, G, d]."""
    if have == want:
        return tokens
    laid_out = tokens.transpose(1, 2).unflatten(2, have)
    return F.interpolate(laid_out, want, mode="bilinear", antialias=True).flatten(2).transpose(1, 2)


def fused_spec(specs: Sequence[BackboneSpec]) -> BackboneSpec:
    """Facts of several towers as one backbone: texts, patches and depth are the first's, the widths add up."""
    first, known = specs[0], [spec.commercial for spec in specs]
    return BackboneSpec(
        id="+".join(spec.id for spec in specs),
        depth=first.depth,
        width=sum(spec.width for spec in specs),
        patch_size=first.patch_size,
        prefix_tokens=first.prefix_tokens,
        embed_dim=first.embed_dim,
        text_width=first.text_width,
        text_length=first.text_length,
        reads_padding=first.reads_padding,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        activation=first.activation,
        native_image_size=first.native_image_size,
        licence=" + ".join(dict.fromkeys(spec.licence for spec in specs)),
        commercial=False if False in known else None if None in known else True,
        source="+".join(spec.source for spec in specs),
    )
