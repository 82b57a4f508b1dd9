"""Liver CT: the organ alone on black, equalised as benchmarks have it, or the whole abdomen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from madclip.phantoms.fields import (
    Canvas,
    Drawing,
    Finish,
    bump,
    edge,
    either,
    ellipse,
    level,
    numbers,
    paint,
    smooth,
)

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("hypodense lesion", "hyperdense lesion", "metastasis", "cyst")
DARK, BRIGHT, TARGET, CYST = range(4)


def draw(canvas: Canvas, abnormal: Tensor, difficulty: float) -> Drawing:
    """A batch of axial slices.

    Args:
        canvas: To draw on.
        abnormal: [n] bool, which images get lesions.
        difficulty: 0..1.
    """
    sick = abnormal[:, None, None]
    crop = canvas.chance(0.55)
    x, y = canvas.pose(rotate=0.12, zoom=(0.9, 1.2), shift=0.07, warp=0.03)
    zoom = torch.where(crop, canvas.uniform(0.9, 1.6), 1.0)
    pan = torch.where(crop, canvas.uniform(0, 1), 0.0) * (1 - 1 / zoom)
    x, y = x / zoom - 0.45 * pan, y / zoom - 0.1 * pan
    wave, rough = canvas.noise(6), canvas.noise(14)
    organ = _organ(canvas, x, y, wave)
    liver = edge(organ, 0.03)
    tissue, dense = _parenchyma(canvas, organ, wave, rough)

    kind = canvas.choose(0.5, 0.15, 0.2, 0.15)
    many = canvas.chance(0.3)
    ill = numbers(sick)
    cover, profile = _lesions(canvas, organ, many, difficulty, ill)
    cover.mul_(liver[ill])
    _tint(canvas, tissue, (cover, profile), kind, rough, difficulty, ill)

    whole = numbers(~crop)
    around = _abdomen(canvas, (x, y, wave), dense, whole)
    image, inside = tissue, (liver > 0.5)
    image[whole] = torch.lerp(around, tissue[whole], liver[whole])
    grain = canvas.grain()
    grain = grain.lerp_(smooth(smooth(grain)).mul_(2.5), canvas.uniform(0, 1).sqrt())
    image.addcmul_(grain, canvas.uniform(0.005, level(difficulty, 0.03, 0.06)))
    stretched = canvas.chance(0.65) & crop
    image = either(stretched, _equalised(canvas, image, inside), image)
    image.mul_(either(crop, inside.float(), edge(ellipse(x, y, 0, 0, 0.96, 0.76), 0.02)))
    mask = torch.zeros_like(inside)
    mask[ill] = (cover > 0.4) & inside[ill]
    light = kind == BRIGHT
    attributes = [
        {
            "finding": KINDS[k],
            "brightness": "bright" if bright else "dark",
            "count": "multiple" if several else "single",
            "view": None if alone else "axial abdominal",
        }
        for k, bright, several, alone in zip(*(v.flatten().tolist() for v in (kind, light, many, crop)), strict=True)
    ]
    # Noise is already in: after it, black must stay black outside a cropped organ.
    finish = Finish(bias=0.05, noise=0.005, blur=0.8, gamma=0.3, contrast=0.25, brightness=0.02, marks=0.15)
    return Drawing(image[:, None], mask, attributes, finish)


def _organ(canvas: Canvas, x: Tensor, y: Tensor, wave: Tensor) -> Tensor:
    """Positive inside the liver: a right lobe, a left lobe of any length, notches; lower slices only the right lobe."""
    right = ellipse(x, y, -0.42, canvas.uniform(-0.1, 0.1), canvas.uniform(0.3, 0.45), canvas.uniform(0.4, 0.56)) * 0.4
    reach = canvas.uniform(-0.25, 0.25)
    left = ellipse(x, y + 0.25 * (x + 0.2), reach, -0.22, canvas.uniform(0.25, 0.5), canvas.uniform(0.15, 0.3)) * 0.22
    lobes = torch.where(canvas.chance(0.8), torch.maximum(right, left), right)
    notch = (
        ellipse(x, y, canvas.uniform(-0.3, 0.05), canvas.uniform(0.25, 0.4), canvas.uniform(0.03, 0.16), 0.25) * 0.15
    )
    body = ellipse(x, y, 0, 0, 0.86, 0.66) * 0.7
    return torch.minimum(torch.minimum(lobes, -notch), body) + 0.02 * wave


def _parenchyma(canvas: Canvas, organ: Tensor, wave: Tensor, rough: Tensor) -> tuple[Tensor, Tensor]:
    """The liver with its vessels and fissure, and its mean level [n, 1, 1]."""
    dense = canvas.uniform(0.42, 0.68)
    thick = canvas.uniform(0.05, 0.2)
    tree = bump(canvas.noise(4.5).add_(rough, alpha=0.25), thick)
    tree.add_(bump(canvas.noise(8).add_(rough.flip(1), alpha=0.3), thick), alpha=0.8)
    tree.mul_(edge(wave.flip(1).add_(0.2), 1.2))
    rounds = edge(canvas.noise(canvas.uniform(14, 24)).sub_(1.9), 0.4)
    vessels = tree.add_(rounds).clamp_(max=1).mul_(edge(organ - 0.05, 0.05))
    # Contrast phases: vessels dark before contrast, bright after, and sometimes like the liver.
    amount = canvas.uniform(-0.12, 0.2)
    fissure = bump(wave.flip(2).add_(rough.flip(2), alpha=0.4), 0.06).mul_(edge(0.12 - organ, 0.05))
    tissue = vessels.mul_(amount).add_(dense).addcmul_(fissure, canvas.uniform(-0.2, 0.2).clamp_min(0), value=-1)
    tissue.addcmul_(rough.flip(1), canvas.uniform(0, 0.02)).addcmul_(wave, canvas.uniform(0, 0.02))
    return tissue, dense


def _lesions(canvas: Canvas, organ: Tensor, many: Tensor, difficulty: float, ill: Tensor) -> tuple[Tensor, Tensor]:
    """Opacity 0..1, and the profile inside (0 on the outline), in the images with lesions."""
    cx, cy = canvas.place(organ > 0.03)
    size = canvas.uniform(0, 1).square() * 0.22 + level(difficulty, 0.09, 0.045)
    one = canvas.blob(cx, cy, size, rough=0.2, only=ill)
    several = 0.4 * (canvas.noise(canvas.uniform(9, 20), only=ill) - canvas.uniform(1.1, 1.7)[ill])
    profile = either(many[ill], torch.maximum(several, one), one)
    return edge(profile, canvas.uniform(0.12, 0.6)[ill]), profile


def _tint(
    canvas: Canvas,
    tissue: Tensor,
    lesion: tuple[Tensor, Tensor],
    kind: Tensor,
    rough: Tensor,
    difficulty: float,
    ill: Tensor,
) -> None:
    """Draw lesions into their images."""
    cover, profile = lesion
    amount = canvas.uniform(level(difficulty, 0.12, 0.05), level(difficulty, 0.35, 0.22))
    sign = torch.tensor([-1.0, 1.0, -0.9, -1.3], device=canvas.device)[kind]
    uneven = torch.where(kind == CYST, 0.0, canvas.uniform(0, 0.4))[ill]
    core = edge(profile - 0.35, 0.25)
    rim = bump(profile - 0.08, 0.14)
    target = -0.4 - 0.8 * core + canvas.uniform(0, 1.4)[ill] * rim
    change = either(kind[ill] == TARGET, target, sign[ill] * (1 + uneven * rough[ill]))
    tissue[ill] += cover * amount[ill] * change


def _abdomen(canvas: Canvas, fields: tuple[Tensor, Tensor, Tensor], dense: Tensor, whole: Tensor) -> Tensor:
    """Everything around the liver in the images that show it, bright and dark organs as in health."""

    def some(low: float, high: float) -> Tensor:
        return canvas.uniform(low, high)[whole]

    x, y, wave = (field[whole] for field in fields)
    dense, uneven = dense[whole], wave.flip(1).mul_(0.06)
    fat, muscle = some(0.1, 0.3), dense * some(0.7, 0.95)
    bone = some(0.85, 1.05)
    body = ellipse(x, y, 0, 0, 0.96, 0.76)
    belly = ellipse(x, y, 0, some(-0.02, 0.03), 0.88, 0.68).add_(wave, alpha=0.02)
    image = edge(belly, 0.02).mul_(muscle - fat).add_(fat)
    image = paint(image, edge(belly - 0.08, 0.03), fat)
    # Ribs are cut into bright dashes along the wall.
    dashes = edge((torch.atan2(y, x) * some(8, 14) + some(0, 6)).sin_() - 0.4, 0.4)
    image = paint(image, dashes.mul_(bump(belly - 0.05, 0.035)).mul_(edge(y + 0.45, 0.2)), bone)

    def organ(shape: Tensor, value: Tensor) -> None:
        nonlocal image
        image = paint(image, edge(shape.add_(uneven), 0.08), value)

    bowel = canvas.noise(10, only=whole)
    loops = edge(bowel - 0.2, 0.3).mul_(edge(ellipse(x, y, 0.2, -0.2, 0.6, 0.4), 0.2))
    image = torch.lerp(image, muscle + 0.12 * bowel, loops)
    organ(ellipse(x, y, 0.5, -0.15, some(0.15, 0.3), some(0.15, 0.3)), some(0.0, 0.8))
    organ(ellipse(x, y, 0.68, 0.15, some(0.1, 0.17), some(0.2, 0.32)), dense + some(-0.1, 0.15))
    organ(ellipse(x.abs(), y, 0.4, 0.35, 0.13, some(0.1, 0.18)), dense + some(-0.05, 0.3))
    organ(ellipse(x, y, -0.15, 0.02, 0.1, some(0.05, 0.14)), some(0.2, 0.35))
    organ(ellipse(x, y, 0.06, 0.22, 0.07, 0.07), dense + some(0, 0.35))
    organ(ellipse(x, y, -0.1, 0.2, 0.08, 0.06), dense + some(-0.05, 0.2))
    organ(ellipse(x.abs(), y, 0.22, 0.52, 0.2, 0.12), muscle)
    spine = torch.maximum(ellipse(x, y, 0, 0.4, 0.14, 0.12) * 0.13, ellipse(x, y, 0, 0.58, 0.03, 0.14) * 0.04)
    spine = torch.maximum(spine, ellipse(x, y, 0, 0.52, 0.2, 0.035) * 0.04)
    image = torch.lerp(image, bone - 0.35 * edge(spine - 0.03, 0.05) + 0.05 * bowel, edge(spine, 0.02))
    canal = edge(ellipse(x, y, 0, 0.54, 0.05, 0.04), 0.3)
    return paint(image, canal, muscle).mul_(edge(body, 0.02))


def _equalised(canvas: Canvas, image: Tensor, inside: Tensor) -> Tensor:
    """Contrast stretched to the organ's own grey levels, as histogram equalisation leaves it."""
    weight = inside.float()
    area = weight.sum((1, 2), keepdim=True).clamp_min(1)
    mean = (image * weight).sum((1, 2), keepdim=True) / area
    deviation = (((image - mean).square() * weight).sum((1, 2), keepdim=True) / area).sqrt().clamp_min(0.01)
    z = (image - mean) / deviation
    return canvas.uniform(0.45, 0.7) + canvas.uniform(0.08, 0.2) * z.clamp(-2.5, 2.5)
