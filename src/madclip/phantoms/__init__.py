"""Procedural medical images with exact masks and captions: seeded, fast, in place of data that cannot be shipped.

Nothing here is a patient. The images teach a small backbone what organs, scanners and lesions look like, and let every
command run on a machine without data.
"""

from __future__ import annotations

import hashlib
import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from madclip.errors import DataError
from madclip.memory import keep_small_blocks
from madclip.phantoms.captions import captions
from madclip.phantoms.fields import Canvas, develop

MODALITIES = ("brain", "chest", "oct", "liver", "histology", "ultrasound", "fundus", "generic")
"""Each is a module of this package with `draw(canvas, abnormal, difficulty) -> Drawing`."""

BATCH = 8
"""Images drawn together. Fixed, so that an image depends on the seed and its number, not on how many are asked for."""

SMALLEST = 6
"""Pixels of the smallest mask of an abnormal image at 240 x 240."""


@dataclass(frozen=True)
class Phantoms:
    """A batch of drawn images.

    Attributes:
        pixels: [n, 3, size, size] uint8.
        masks: [n, size, size] bool, True on the lesion; empty for a normal image, never for an abnormal one.
        labels: [n] int64, 0 normal, 1 abnormal.
        captions: One for each image.
        attributes: What was drawn, as `captions.captions` reads it.
    """

    pixels: Tensor
    masks: Tensor
    labels: Tensor
    captions: list[str]
    attributes: list[dict[str, Any]]


def generate(
    modality: str,
    n: int,
    seed: int,
    *,
    size: int = 240,
    difficulty: float = 0.5,
    abnormal: float | None = None,
    device: str = "cpu",
) -> Phantoms:
    """Draw n images of a modality; the same arguments give the same bytes on the same machine.

    Image i is the same whatever n is.

    Args:
        modality: One of MODALITIES.
        n: Images.
        seed: Determines everything random.
        size: Pixels of a side, at least 32.
        difficulty: 0 large and obvious lesions, clean images; 1 small and subtle lesions, every nuisance.
        abnormal: Expected share of abnormal images; one half where None.
        device: Where to draw.

    Raises:
        DataError: An argument is unknown or out of range.
    """
    share = 0.5 if abnormal is None else abnormal
    if modality not in MODALITIES:
        raise DataError(f"unknown modality {modality!r}: choose one of {', '.join(MODALITIES)}")
    if n < 1 or size < 32:
        raise DataError(f"phantoms need at least 1 image of at least 32 pixels, not {n} of {size}")
    if not (0 <= difficulty <= 1 and 0 <= share <= 1):
        raise DataError(f"difficulty and abnormal lie between 0 and 1, not {difficulty} and {share}")
    keep_small_blocks()
    parts = [
        _draw_batch(modality, seed, number, size, difficulty, share, torch.device(device))
        for number in range((n + BATCH - 1) // BATCH)
    ]
    attributes = [row for part in parts for row in part[3]][:n]
    words = torch.Generator().manual_seed(_subseed(seed, modality, "captions"))
    return Phantoms(
        pixels=torch.cat([part[0] for part in parts])[:n],
        masks=torch.cat([part[1] for part in parts])[:n],
        labels=torch.cat([part[2] for part in parts])[:n],
        captions=[sentences[0] for sentences in captions(attributes, words, 1)],
        attributes=attributes,
    )


def _draw_batch(
    modality: str, seed: int, number: int, size: int, difficulty: float, share: float, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, list[dict[str, Any]]]:
    """Pixels, masks, labels and attributes of one batch."""
    draw = importlib.import_module(f"madclip.phantoms.{modality}").draw
    smallest = max(1, round(SMALLEST * (size / 240) ** 2))
    generator = torch.Generator(device).manual_seed(_subseed(seed, modality, number))
    canvas = Canvas(BATCH, size, generator)
    labels = canvas.rand(BATCH) < share
    drawing = draw(canvas, labels, difficulty)
    pixels = _pixels(canvas, drawing)
    masks, attributes = drawing.mask, drawing.attributes
    # A lesion may fall outside the body: such images are drawn again, never passed on with an empty mask.
    while (lost := labels & (masks.sum((1, 2)) < smallest)).any():
        again = draw(canvas, labels, difficulty)
        fresh = _pixels(canvas, again)
        pixels, masks = torch.where(lost[:, None, None, None], fresh, pixels), masks.clone()
        masks[lost] = again.mask[lost]
        attributes = [again.attributes[i] if lost[i] else attributes[i] for i in range(BATCH)]
    masks = masks & labels[:, None, None]
    rows = [
        {"modality": modality, "label": int(label), **where, **{k: v for k, v in row.items() if v is not None}}
        if label
        else {"modality": modality, "label": 0, **{k: row[k] for k in ("view", "note") if row.get(k)}}
        for label, where, row in zip(labels.tolist(), locate(masks), attributes, strict=True)
    ]
    return pixels, masks, labels.long(), rows


def _pixels(canvas: Canvas, drawing: Any) -> Tensor:
    image = develop(canvas, drawing.image, drawing.finish)
    return image.mul_(255).round_().to(torch.uint8).expand(-1, 3, -1, -1)


def locate(masks: Tensor) -> list[dict[str, str]]:
    """Side, height and size of each mask in words; left is the left of the image.

    Args:
        masks: [n, H, W] bool.
    """
    weights = masks.float()
    area = weights.mean((1, 2))
    columns, rows = weights.sum(1), weights.sum(2)
    axis = torch.linspace(0, 1, masks.shape[2], device=masks.device)
    total = columns.sum(1).clamp_min(1)
    cx, cy = (columns * axis).sum(1) / total, (rows * axis).sum(1) / total
    left = columns[:, : masks.shape[2] // 2].sum(1) / total
    spread = ((columns * axis.square()).sum(1) / total - cx.square()).clamp_min(0).sqrt()
    return [
        {
            "side": "both" if s > 0.17 and 0.2 < share < 0.8 else ("left", "middle", "right")[(x > 0.44) + (x > 0.56)],
            "height": ("upper", "middle", "lower")[(y > 0.42) + (y > 0.58)],
            "size": ("small", "medium", "large")[(a > 0.006) + (a > 0.03)],
        }
        for a, x, y, s, share in zip(*(v.tolist() for v in (area, cx, cy, spread, left)), strict=True)
    ]


def _subseed(*parts: object) -> int:
    """63 bits that differ for every modality, seed and batch (hash() would differ between processes)."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1
