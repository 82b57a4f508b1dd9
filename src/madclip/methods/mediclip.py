"""MediCLIP (Zhang et al., MICCAI 2024): normal images only, and anomalies that are made of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F

from madclip.head.prompts import Prompts
from madclip.head.scoring import map_logits, patch_logits, text_scores
from madclip.methods.april_gan import project
from madclip.methods.base import Baseline
from madclip.methods.learning import Adam, Learning, optimise
from madclip.methods.text import linear_weights, map_loss
from madclip.prediction import BATCH
from madclip.training.encode import encode_patches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.training.shots import Shot

COPIES = 8
"""Anomalies made of each normal image."""
EPOCHS = 12
BODY = 0.1
"""Grey level above which a pixel counts as body: anomalies are made about such pixels."""


class MediCLIP(Baseline):
    """Learned prompts and linear adapters that find what was done to a normal image, and so what was never normal.

    The paper makes new anomalies at every step of 200 epochs; here a fixed number of each image, so that the tower sees
    each once.
    """

    name: ClassVar[str] = "mediclip"
    title: ClassVar[str] = "MediCLIP (Zhang et al., MICCAI 2024)"
    learns_from: ClassVar[Literal["nothing", "normal", "both"]] = "normal"
    image_score: ClassVar[str] = "largest value of the map"

    def _learn(self, shots: Sequence[Shot], run: Learning) -> None:
        generator = run.generator()
        made = [make_anomaly(shot.pixels, generator) for shot in shots for _ in range(COPIES)]
        images = torch.stack([*(shot.pixels for shot in shots), *(image for image, _ in made)])
        nowhere = torch.zeros_like(made[0][1])
        masks = torch.stack([*(nowhere for _ in shots), *(mask for _, mask in made)])
        with torch.inference_mode():
            parts = [
                torch.stack(encode_patches(self.backbone, self.recipe.view, p), 1).cpu() for p in images.split(BATCH)
            ]
        tokens = torch.stack(list(torch.cat(parts)))  # out of inference mode
        spec = self.backbone.spec
        self.weights = linear_weights(len(spec.taps), spec.embed_dim, spec.width, generator=generator)
        prompts = Prompts(self.backbone, self.objective, generator=generator).to(self.backbone.device)
        everywhere = torch.ones(len(masks), dtype=torch.bool)

        def loss_of(rows: torch.Tensor) -> torch.Tensor:
            scores = self._scores(tokens[rows].float(), prompts(self.backbone).cpu())
            return map_loss(patch_logits(scores, self.backbone.grid), masks[rows], everywhere[rows])

        optimise([self.weights, *prompts.parameters()], len(masks), loss_of, Adam(EPOCHS), run)
        self.weights.requires_grad_(False)
        with torch.no_grad():
            self.text = prompts(self.backbone).cpu()

    def _scores(self, tokens: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Scores of the patches against both texts, mean of the taps: [B, T, G, d], [e, 2] -> [1, B, G, 2]."""
        return text_scores(project(tokens, self.weights), text).mean(0, keepdim=True)

    @torch.inference_mode()
    def score(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Baseline.score`."""
        scores = self._scores(self.image_tokens(pixels), self.text)
        maps = map_logits(scores, self.backbone.grid, self.backbone.image_size)[0].sigmoid()
        return maps.amax((1, 2)), maps


def make_anomaly(image: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One of the paper's three anomalies in a region of random shape; nothing changes outside of it.

    Args:
        image: [3, S, S] in 0..1.
        generator: Draws everything random.

    Returns:
        The new image, and where it is anomalous [S, S] bool.
    """
    mask, centre, radius = random_region(image, generator)
    kind = int(torch.randint(3, (), generator=generator))
    if kind == 0:
        changed = cut_paste(image, generator)
    elif kind == 1:
        changed = change_intensity(image, generator)
    else:
        changed = push_away(image, centre, radius, generator)
    return torch.where(mask, changed.clamp(0, 1), image), mask


def random_region(image: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, tuple[int, int], float]:
    """A wobbly disc about a pixel of the body: mask [S, S] bool, centre (row, column), mean radius in pixels."""
    size = image.shape[-1]
    body = (image.mean(0) > BODY).nonzero()
    if not len(body):
        body = torch.ones(image.shape[1:]).nonzero()
    row, column = body[int(torch.randint(len(body), (), generator=generator))].tolist()
    radius = size * (0.04 + 0.14 * float(torch.rand((), generator=generator)))
    down, across = torch.meshgrid(torch.arange(size) - row, torch.arange(size) - column, indexing="ij")
    angle, phases = torch.atan2(down.float(), across.float()), 2 * math.pi * torch.rand(3, generator=generator)
    wobble = sum(torch.cos((k + 2) * angle + phases[k]) / (k + 2) for k in range(3))
    mask = (down**2 + across**2).sqrt() <= radius * (1 + 0.4 * wobble)
    return mask, (row, column), radius


def cut_paste(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """CutPaste: another place of the image."""
    size = image.shape[-1]
    shift = (size * (0.15 + 0.7 * torch.rand(2, generator=generator))).long().tolist()
    return image.roll(shift, (1, 2))


def change_intensity(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """GaussIntensityChange: smooth noise, brighter or darker."""
    size = image.shape[-1]
    coarse = torch.randn(1, 1, 8, 8, generator=generator)
    noise = F.interpolate(coarse, (size, size), mode="bicubic")[0]
    sign = 1 if torch.rand((), generator=generator) < 0.5 else -1
    return image + sign * (0.2 + 0.3 * torch.rand((), generator=generator)) * (1 + 0.3 * noise)


def push_away(image: torch.Tensor, centre: tuple[int, int], radius: float, generator: torch.Generator) -> torch.Tensor:
    """Source: what is in the middle of the region grows and pushes the rest outwards."""
    size = image.shape[-1]
    power = 1.5 + 1.5 * float(torch.rand((), generator=generator))
    rows, columns = torch.meshgrid(torch.arange(size) - centre[0], torch.arange(size) - centre[1], indexing="ij")
    distance = (rows**2 + columns**2).sqrt().clamp_min(1e-6)
    scale = (distance / (1.5 * radius)).clamp(max=1) ** (power - 1)
    where = torch.stack([columns * scale + centre[1], rows * scale + centre[0]], -1)
    grid = (2 * where + 1) / size - 1
    return F.grid_sample(image[None], grid[None], align_corners=False, padding_mode="reflection")[0]
