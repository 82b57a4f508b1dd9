"""Patch tokens as methods that were made for convolutional features take them: standardised, maybe in fewer numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.training.shots import Shot


@dataclass(frozen=True)
class Standard:
    """Each channel of each tap minus its mean, over its standard deviation: a few channels of a tower dwarf the rest.

    Attributes:
        mean: [T, 1, d].
        deviation: [T, 1, d].
        basis: [d, k] with orthonormal columns, onto which the channels are projected; None keeps all of them.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    basis: torch.Tensor | None = None

    @classmethod
    def of(cls, tokens: torch.Tensor, at_most: int | None = None, generator: torch.Generator | None = None) -> Self:
        """Measured on tokens [N, T, G, d]; with `at_most` fewer channels than d, in random directions."""
        channels = tokens.transpose(0, 1).flatten(1, 2)
        basis = None
        if at_most is not None and at_most < tokens.shape[3]:
            basis = torch.linalg.qr(torch.randn(tokens.shape[3], at_most, generator=generator)).Q
        return cls(channels.mean(1, keepdim=True), channels.std(1, keepdim=True).clamp_min(1e-6), basis)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [B, T, G, d] -> [B, T, G, d or k]."""
        standard = (tokens - self.mean) / self.deviation
        return standard if self.basis is None else standard @ self.basis


def abnormal_patches(shots: Sequence[Shot], grid: tuple[int, int]) -> torch.Tensor:
    """Which patches the masks mark: [N, G] bool.

    A patch is marked where at least half of it is, or where no other patch of its image is marked more.
    """
    shares = torch.zeros(len(shots), grid[0] * grid[1])
    for row, shot in zip(shares, shots, strict=True):
        if shot.mask is not None:
            row.copy_(F.adaptive_avg_pool2d(shot.mask[None, None].float(), grid).flatten())
    return (shares >= shares.amax(1, keepdim=True).clamp(max=0.5)) & (shares > 0)
