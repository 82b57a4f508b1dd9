"""Breast ultrasound: layers under a probe, speckle, shadows; cysts, benign and malignant masses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from madclip.phantoms.fields import Canvas, Drawing, Finish, bump, dots, edge, either, level, numbers, smooth

if TYPE_CHECKING:
    from torch import Tensor

BENIGN, MALIGNANT, CYST = range(3)


def draw(canvas: Canvas, abnormal: Tensor, difficulty: float) -> Drawing:
    """A batch of B-mode images.

    Args:
        canvas: To draw on.
        abnormal: [n] bool, which images get a mass.
        difficulty: 0..1.
    """
    sick = abnormal[:, None, None]
    depth, fan, inside = _probe(canvas)
    wave = canvas.noise(canvas.uniform(5, 9), canvas.uniform(5, 12))
    rough = canvas.noise(22, 26)
    tissue = _layers(canvas, depth, wave, rough)
    tissue = _lobules(canvas, tissue, difficulty)

    kind = canvas.choose(0.42, 0.4, 0.18)
    ill = numbers(sick)
    region = edge(depth - 0.12, 0.02).mul_(edge(0.68 - depth, 0.02)).mul_(inside)
    value, at, radius = _mass(canvas, region, kind, rough, ill)
    soft = torch.where(kind == MALIGNANT, canvas.uniform(0.15, 0.7), canvas.uniform(0.05, 0.25))
    cover = edge(value, soft[ill])
    _content(canvas, tissue, (cover, value), kind, difficulty, ill)
    tissue.mul_(_behind(canvas, (depth, fan), at, radius, kind, ill)).mul_(_beam(canvas, depth, fan))
    image = _speckle(canvas, tissue, depth, rough)
    # Calcifications sparkle in tumours, and here and there in healthy tissue.
    spots = dots(canvas, *_grains(canvas, at, radius, (kind == MALIGNANT) & sick), 1.0)
    image = torch.maximum(image, spots.mul_(0.9)).mul_(inside)
    grey = torch.where(canvas.chance(0.5), 0.0, canvas.uniform(0, 0.06))
    image.addcmul_(1 - inside, grey)
    mask = torch.zeros_like(image, dtype=torch.bool)
    mask[ill] = (cover > 0.5) & (inside[ill] > 0.5)
    attributes = [
        {"finding": ("mass", "malignant mass", "cyst")[k], "brightness": "dark"} for k in kind.flatten().tolist()
    ]
    finish = Finish(bias=0.1, noise=0.01, blur=0.5, gamma=0.35, contrast=0.25, brightness=0.03, marks=0.35, blocks=0.2)
    return Drawing(image[:, None], mask, attributes, finish)


def _probe(canvas: Canvas) -> tuple[Tensor, Tensor, Tensor]:
    """Depth 0..1 below the skin, position along the probe, and 1 where there is an image.

    A linear probe fills the picture, a convex one a fan; exports keep margins around either.
    """
    kind = canvas.choose(0.75, 0.15, 0.1)
    top = torch.where(canvas.chance(0.4), canvas.uniform(0.0, 0.12), 0.0) - 1
    x, y = canvas.x, canvas.y
    far = canvas.uniform(1.2, 2.5)
    reach = (x.square() + (y - top + far).square()).sqrt() - far
    flat = (y - top).expand_as(reach)
    depth = either(kind == 1, reach, flat).div_(2.0 - canvas.uniform(0, 0.15))
    spread = torch.where(kind == 1, x / (y - top + far) * far, x - canvas.uniform(-0.15, 0.15) * (kind == 2) * y)
    left = torch.where(canvas.chance(0.3), canvas.uniform(0.75, 1), 1.1)
    sides = torch.where(kind == 1, spread.abs() - canvas.uniform(0.6, 0.9), (spread.abs() - left))
    bottom = torch.where(canvas.chance(0.3), canvas.uniform(0.85, 1.0), 2.0)
    inside = edge(-sides, 0.01).mul_(edge(depth, 0.01)).mul_(edge(bottom - depth, 0.01))
    return depth, spread, inside


def _layers(canvas: Canvas, depth: Tensor, wave: Tensor, rough: Tensor) -> Tensor:
    """Mean echo of skin, fat, gland, muscle and what lies below."""
    fat_from = canvas.uniform(0.03, 0.09) + 0.006 * canvas.curve(4)
    gland_from = fat_from + (canvas.uniform(0.03, 0.32) + 0.04 * canvas.curve(4))
    gland_to = (gland_from + canvas.uniform(0.12, 0.5) + 0.05 * canvas.curve(3)).maximum(gland_from + 0.02)
    muscle_from = gland_to + canvas.uniform(0.0, 0.15) + 0.02 * canvas.curve(3)
    wall = muscle_from + canvas.uniform(0.08, 0.25) + 0.015 * canvas.curve(3)
    bent = depth + canvas.uniform(0, 0.025) * wave + canvas.uniform(0.0, 0.008) * rough
    fat, bright = canvas.uniform(0.2, 0.45), canvas.uniform(0.4, 0.75)
    # Gland and fat interlock: one field decides which of both a place is.
    mixed = edge(wave.add(rough, alpha=0.35).add_(canvas.uniform(-0.8, 1.4)), canvas.uniform(0.4, 1.6))
    gland = mixed.mul_(bright - fat).add_(fat).add_(rough, alpha=0.05)
    septa = canvas.noise(canvas.uniform(3, 6), canvas.uniform(6, 14)).add_(rough, alpha=0.15)
    septa = bump(septa, canvas.uniform(0.15, 0.45))
    lobes = septa.mul_(canvas.uniform(0.05, 0.25)).add_(fat).add_(wave, alpha=0.02)
    stripes = bump(canvas.noise(2.5, canvas.uniform(16, 34)), 0.35)
    base = canvas.uniform(0.15, 0.35)
    muscle = stripes.mul_(canvas.uniform(0.05, 0.3)).add_(base)
    image = torch.lerp(canvas.uniform(0.5, 0.9).expand_as(lobes), lobes, edge(bent - fat_from, 0.02))
    image.lerp_(gland, edge(bent - gland_from, 0.03))
    image.lerp_(lobes, edge(bent - gland_to, 0.03))
    image.lerp_(muscle, edge(depth - muscle_from, 0.02))
    fascia = bump(depth - muscle_from, 0.015).mul_(edge(wave + 0.5, 2))
    image.addcmul_(fascia, canvas.uniform(-0.1, 0.4).clamp_min(0))
    # Ribs: bright caps with shadows; between them the pleura.
    below = torch.where(canvas.chance(0.6), canvas.uniform(0.03, 0.3), 0.3)
    image.lerp_((0.05 * wave).add_(below), edge(depth - wall, 0.03))
    caps = edge(canvas.curve(5) - 0.2, 0.5)
    light = canvas.uniform(-0.1, 0.5).clamp_min(0) * caps
    return image.addcmul_(bump(depth - (wall - 0.03 * caps), 0.025), light)


def _lobules(canvas: Canvas, tissue: Tensor, difficulty: float) -> Tensor:
    """Dark ovals of fat, and ducts, in sick and healthy breasts: what a mass must be told from."""
    cx, cy = canvas.uniform(-0.9, 0.9), canvas.uniform(-0.7, 0.5)
    oval = ((canvas.x - cx) / canvas.uniform(0.15, 0.5)).square() + (
        (canvas.y - cy) / canvas.uniform(0.06, 0.16)
    ).square()
    cover = edge(oval.sqrt_().neg_().add_(1), canvas.uniform(0.2, 0.7)).mul_(canvas.chance(0.5))
    tissue.addcmul_(tissue, cover.mul_(canvas.uniform(0.1, level(difficulty, 0.35, 0.5))), value=-1)
    ducts = bump(canvas.noise(3, 7), canvas.uniform(0.03, 0.1)).mul_(edge(canvas.noise(2).sub_(0.3), 0.5))
    return tissue.addcmul_(tissue, ducts.mul_(canvas.uniform(-0.6, 0.5).clamp_min(0)), value=-1)


def _mass(
    canvas: Canvas, region: Tensor, kind: Tensor, rough: Tensor, ill: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Positive inside the mass of the images that have one; its centre and half axes, of all images."""
    cx, cy = canvas.place(region)
    size = canvas.uniform(0, 1).square() * 0.36 + canvas.uniform(0.08, 0.2)
    # Benign masses lie along the tissue, malignant ones may stand upright.
    ratio = torch.where(kind == MALIGNANT, canvas.uniform(0.75, 1.5), canvas.uniform(1.1, 2.2)).sqrt()
    rx, ry, angle = size * ratio, size / ratio, canvas.uniform(-0.35, 0.35)
    dx, dy = canvas.x - cx, canvas.y - cy
    cos, sin = angle.cos(), angle.sin()
    across = (cos / rx * dx)[ill] + (sin / rx * dy)[ill]
    down = (cos / ry * dy)[ill] - (sin / ry * dx)[ill]
    distance = (across * across).addcmul_(down, down).sqrt_()
    wave = canvas.noise((1.1 / size).clamp(2, 24), only=ill)
    lobed = torch.where(kind == MALIGNANT, canvas.uniform(0.12, 0.3), canvas.uniform(0.0, 0.1))
    jagged = torch.where(kind == MALIGNANT, canvas.uniform(0.02, 0.14), 0.01)
    turn = torch.atan2(down, across)
    spikes = turn.mul_(torch.round(canvas.uniform(3, 9))[ill]).add_(wave, alpha=4).sin_()
    spiky = torch.where((kind == MALIGNANT) & canvas.chance(0.5), canvas.uniform(0.03, 0.16), 0.0)
    uneven = (lobed[ill] * wave).addcmul_(rough[ill], jagged[ill]).addcmul_(spikes, spiky[ill])
    value = uneven.mul_((2.5 - distance).clamp_(0, 1)).sub_(distance).add_(1)
    return value, (cx, cy), (rx, ry)


def _content(
    canvas: Canvas, tissue: Tensor, mass: tuple[Tensor, Tensor], kind: Tensor, difficulty: float, ill: Tensor
) -> None:
    """Draw masses into their images: darker by far or by little, with a capsule, a halo or debris."""
    cover, value = mass
    deep = canvas.uniform(level(difficulty, 0.55, 0.3), level(difficulty, 0.9, 0.8))
    deep = torch.where(kind == CYST, 0.95, deep)
    around = ((value < -0.05) & (value > -0.7)).float()
    before = tissue[ill]
    mean = (before * around).sum((1, 2), keepdim=True) / around.sum((1, 2), keepdim=True).clamp_min(1)
    debris = torch.where(kind == CYST, 0.05, canvas.uniform(0.05, 0.5))[ill]
    inner = canvas.noise(14, only=ill).mul_(debris).add_(1).mul_(mean * (1 - deep[ill]))
    # Some benign masses are as bright as fat.
    fatty = ((kind == BENIGN) & canvas.chance(0.08))[ill]
    inner = torch.where(fatty, mean * 1.3, inner)
    septum = bump(canvas.noise(3, only=ill), 0.08).mul_(canvas.uniform(-0.5, 0.3).clamp_min(0)[ill])
    shown = (cover > 0).float().amax((1, 2), keepdim=True)
    rim = bump(value + 0.05, torch.where(kind == MALIGNANT, 0.4, 0.12)[ill]).mul_(1 - cover).mul_(shown)
    before.addcmul_(rim, canvas.uniform(-0.1, 0.3).clamp_min(0)[ill])
    tissue[ill] = before.lerp_((inner + septum).clamp_min_(0.004), cover)


def _behind(
    canvas: Canvas,
    place: tuple[Tensor, Tensor],
    at: tuple[Tensor, Tensor],
    radius: tuple[Tensor, Tensor],
    kind: Tensor,
    ill: Tensor,
) -> Tensor:
    """Gain: bright behind fluid, dark behind tumours, and shadows that mean nothing in any image."""
    depth, fan = place
    beam = bump(canvas.x - at[0], 1.15 * radius[0])
    start = edge(canvas.y - at[1] - 0.6 * radius[1], 0.7 * radius[1])
    fade = (1 - 0.5 * (canvas.y - at[1]) / canvas.uniform(0.4, 1.5)).clamp(0, 1)
    effect = torch.where(kind == MALIGNANT, canvas.uniform(-0.85, 0.1), canvas.uniform(-0.15, 0.6))
    effect = torch.where(kind == CYST, canvas.uniform(0.2, 1.2), effect)
    # Ligaments, the nipple and lost contact cast shadows in healthy breasts; fat makes bright columns.
    column = canvas.uniform(-0.9, 0.9)
    other = bump(fan - column, canvas.uniform(0.08, 0.4))
    other = edge(depth - canvas.uniform(0, 0.6), canvas.uniform(0.05, 0.3)).mul_(other)
    gain = other.mul_(canvas.uniform(-0.75, 0.5) * canvas.chance(0.45)).add_(1).clamp_(min=0.05)
    gain[ill] *= 1 + beam[ill] * (start * fade * effect)[ill]
    return gain


def _beam(canvas: Canvas, depth: Tensor, fan: Tensor) -> Tensor:
    """Loss with depth, bands of the gain sliders, weak ends of the probe, a focal zone."""
    near = 1 + canvas.uniform(-0.1, 0.35)
    loss = (depth * -canvas.uniform(0, 0.8)).add_(near).clamp_(min=0.05)
    bands = 1 + canvas.uniform(0, 0.12) * canvas.curve(4).transpose(1, 2)
    ends = 1 - canvas.uniform(0, 0.5) * (fan.abs() - 0.6).clamp_min(0)
    strength = canvas.uniform(0, 0.35)
    focus = bump(depth - canvas.uniform(0.2, 0.7), 0.3).mul_(strength).add_(1)
    return loss.mul_(bands).mul_(ends).mul_(focus)


def _speckle(canvas: Canvas, echo: Tensor, depth: Tensor, rough: Tensor) -> Tensor:
    """Speckle as logarithmic compression shows it, wider than high and coarser with depth."""
    fine = _wider(canvas.grain())
    coarse = _wider(smooth(fine))
    near = canvas.uniform(-0.3, 0.6)
    share = (canvas.uniform(0, 1) * depth).add_(near).clamp_(0, 1)
    field = fine.mul_(1.7).lerp_(coarse.mul_(3.0), share)
    # The logarithm of a Rayleigh amplitude: a normal number that leans into the dark.
    field = field.addcmul(field, field, value=-0.08).add_(0.08)
    bright = echo.clamp_min(0.003)
    # In places without echo there is no speckle.
    strength = canvas.uniform(0.04, 0.14) * (bright * (1 / 0.3)).clamp_(max=1).sqrt_()
    return bright.addcmul(field, strength).addcmul_(rough, bright, value=0.03)


def _wider(grain: Tensor) -> Tensor:
    """Mean of three neighbours along the row."""
    result = grain.clone()
    result[..., 1:-1].add_(grain[..., :-2], alpha=0.7).add_(grain[..., 2:], alpha=0.7)
    return result.mul_(1 / 2.4)


def _grains(
    canvas: Canvas, at: tuple[Tensor, Tensor], radius: tuple[Tensor, Tensor], tumour: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Centres and radii of calcifications, [n, 14]."""
    x, y = (
        centre[:, 0] + half[:, 0] * 0.45 * canvas.randn(canvas.n, 10) for centre, half in zip(at, radius, strict=True)
    )
    shown = canvas.uniform(0, 1, 10) < torch.where((tumour & canvas.chance(0.3))[:, 0], 0.8, 0.0)
    size = canvas.uniform(0.003, 0.008, 10) * shown
    stray = canvas.uniform(0.003, 0.009, 4) * (canvas.uniform(0, 1, 4) < 0.15)
    spread = canvas.uniform(-1, 1, 4), canvas.uniform(-1, 1, 4)
    return torch.cat([x, spread[0]], 1), torch.cat([y, spread[1]], 1), torch.cat([size, stray], 1)
