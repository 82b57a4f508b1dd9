"""Dual-branch adapters on the taps of a frozen vision tower (method: equations 1 to 3)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from madclip.recipe import AdapterActivation, AdapterNorm

NORMAL, ABNORMAL = 0, 1
DETECTION, SEGMENTATION = 0, 1


class Adapters(nn.Module):
    """All adapters of a detector, stacked so that one tap costs two matrix products.

    Attributes:
        shared: [taps, R, h, d], the shared layer of each branch (R = 2: normal, abnormal; 1 where both share one).
        heads: [taps, R, H, e, h], the heads of each branch (H = 2: detection, segmentation; 1 where both share one).
    """

    def __init__(
        self,
        taps: int,
        width: int,
        embed_dim: int,
        *,
        hidden: int | None = None,
        dual_branch: bool = True,
        separate_heads: bool = True,
        activation: AdapterActivation = "relu",
        norm: AdapterNorm = "none",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        branches, heads = 1 + dual_branch, 1 + separate_heads
        self.activation, self.norm = activation, norm
        hidden = hidden or width
        self.shared = nn.Parameter(torch.empty(taps, branches, hidden, width))
        self.heads = nn.Parameter(torch.empty(taps, branches, heads, embed_dim, hidden))
        for weight in (self.shared, self.heads):
            bound = 1 / math.sqrt(weight.shape[-1])  # what nn.Linear does
            nn.init.uniform_(weight, -bound, bound, generator=generator)

    def forward(self, tokens: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Features of one tap after the other, so that those of a tap can go before the next is computed.

        Args:
            tokens: For each tap [B, G, d], patch tokens of the residual stream there; products are computed in their
                type.

        Yields:
            [R, H, B, G, e], not scaled to unit length.
        """
        # Taken apart at once: a weight picked by its index would have a gradient as large as all of them.
        yield from map(self._tap, tokens, self.shared.unbind(), self.heads.unbind())

    @property
    def parts(self) -> tuple[Adapters, ...]:
        """The adapters of each tower: these serve all of them."""
        return (self,)

    def _tap(self, tokens: torch.Tensor, shared: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        return self.activate(self.products(tokens, shared, heads))

    def products(self, tokens: torch.Tensor, shared: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """What the heads give at a tap before the activation, [R, H, B, G, e], from tokens [B, G, d]."""
        batch, patches, width = tokens.shape
        branches, count, embed_dim = heads.shape[:3]
        hidden = self.activate(F.linear(tokens.reshape(-1, width), shared.flatten(0, 1).to(tokens.dtype)))
        hidden = hidden.view(-1, branches, shared.shape[1])
        if self.norm == "layer_norm":
            hidden = F.layer_norm(hidden, hidden.shape[-1:], eps=1e-5)
        features = torch.bmm(hidden.transpose(0, 1), heads.flatten(1, 2).mT.to(tokens.dtype))
        return features.view(branches, batch, patches, count, embed_dim).permute(0, 3, 1, 2, 4)

    def activate(self, x: torch.Tensor) -> torch.Tensor:
        """In place: the products before it do not need what they gave."""
        return F.relu_(x) if self.activation == "relu" else F.leaky_relu_(x, 0.01)
