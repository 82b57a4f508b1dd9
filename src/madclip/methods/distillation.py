"""A student that learns to say what the frozen tower says of normal images: what RD4AD and MKD share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH = 64
"""Channels inside a student."""
SIGMA = 4.0
"""Standard deviation in pixels of the smoothing of maps."""


class Residual(torch.nn.Module):
    """Two 3 x 3 convolutions with batch normalisation, added to their input: [B, WIDTH, R, C] -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*_convolution(WIDTH, WIDTH), torch.nn.ReLU(), *_convolution(WIDTH, WIDTH))

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """The sum, rectified."""
        added: torch.Tensor = planes + self.layers(planes)
        return F.relu(added)


def _convolution(inputs: int, outputs: int, stride: int = 1) -> tuple[torch.nn.Module, torch.nn.Module]:
    return torch.nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), torch.nn.BatchNorm2d(outputs)


def downsampling(inputs: int, outputs: int) -> torch.nn.Module:
    """A 3 x 3 convolution of stride 2 with batch normalisation, rectified."""
    return torch.nn.Sequential(*_convolution(inputs, outputs, 2), torch.nn.ReLU())


def seeded(build: Callable[[], torch.nn.Module], seed: int) -> torch.nn.Module:
    """A module whose initial weights a seed determines; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def to_planes(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Tokens [B, T, G, d] -> planes [B, T, d, rows, columns]."""
    planes: torch.Tensor = tokens.transpose(2, 3).unflatten(3, grid)
    return planes


def patch_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """One minus the cosine at every patch: planes [B, T, d, R, C] twice -> [B, T, G] in 0..2."""
    return (1 - F.cosine_similarity(student, teacher, dim=2)).flatten(2)


def image_distance(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """One minus the cosine of all values of a tap at once: planes [B, T, d, R, C] twice -> [B, T] in 0..2."""
    return 1 - F.cosine_similarity(student.flatten(2), teacher.flatten(2), dim=2)
