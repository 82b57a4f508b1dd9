"""Brain MR: axial slices from vertex to skull base in four contrasts, whole heads or stripped of the skull."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from madclip.phantoms.fields import Canvas, Drawing, Finish, bump, edge, either, ellipse, level, numbers, paint

if TYPE_CHECKING:
    from torch import Tensor

CONTRASTS = ("flair", "t1", "t2", "contrast-enhanced t1")
GREY, WHITE, FLUID, FAT, BONE, MUSCLE = range(6)
LEVELS = torch.tensor(
    [
        [0.44, 0.37, 0.07, 0.95, 0.05, 0.28],
        [0.42, 0.58, 0.12, 1.00, 0.06, 0.35],
        [0.52, 0.38, 0.95, 0.75, 0.06, 0.20],
        [0.40, 0.52, 0.10, 0.95, 0.06, 0.38],
    ]
)
"""Grey level of each tissue in each contrast."""
VERTEX, BODIES, HORNS, BASE = range(4)
"""Heights of the slice: above the ventricles, through their bodies, through the horns, through the skull base."""

KINDS = ("tumour", "infiltrating tumour", "ring-enhancing lesion", "white matter lesions", "infarct", "cyst")
BLOB, INFILTRATE, RING, SPOTS, INFARCT, CYST = range(6)


@dataclass(frozen=True)
class Head:
    """Coordinates [n, S, S] of the head, and what all its parts need to know.

    Attributes:
        x: From left to right, midline at 0.
        y: From forehead to neck.
        depth: Below the skin, in half-widths of the head.
        brain: 0..1, inside the meninges.
        tissue: Grey levels [n, 6, 1, 1] (GREY, WHITE, ...).
        slice: [n, 1, 1], VERTEX ... BASE.
    """

    x: Tensor
    y: Tensor
    depth: Tensor
    brain: Tensor
    tissue: Tensor
    slice: Tensor


def draw(canvas: Canvas, abnormal: Tensor, difficulty: float) -> Drawing:
    """A batch of axial slices.

    Args:
        canvas: To draw on.
        abnormal: [n] bool, which images get a lesion.
        difficulty: 0..1.
    """
    sick = abnormal[:, None, None]
    contrast = canvas.choose(0.6, 0.13, 0.17, 0.1)
    tissue = LEVELS.to(canvas.device)[contrast.flatten()][..., None, None]
    tissue = tissue * (1 + 0.12 * (canvas.rand(canvas.n, 6, 1, 1) * 2 - 1))
    x, y = canvas.pose(rotate=0.2, zoom=(0.74, 1.12), shift=0.07, warp=0.025)
    kind = canvas.choose(0.25, 0.3, 0.17, 0.13, 0.08, 0.07)
    cx, cy = canvas.place(ellipse(x, y, 0, 0.1, 0.5, 0.6) > 0)
    size = canvas.uniform(0, 1) ** 1.5 * 0.26 + level(difficulty, 0.13, 0.05)
    x, y = _mass_effect(canvas, x, y, (cx, cy), size * sick)

    head = _head(canvas, x, y, tissue)
    image, solid = _brain(canvas, head)
    ill = numbers(sick)
    lesion, cover = _lesion(canvas, head, kind, (cx, cy), size, solid, ill)
    bright = _tint(canvas, image, (lesion, cover), kind, contrast, difficulty, ill)
    image = paint(_skull(canvas, head), head.brain, image)
    stripped = canvas.chance(0.35)
    bare = numbers(stripped)
    image[bare] *= head.brain[bare]
    # Whole heads are windowed to their fat, so the brain is dim; stripped ones to the brain.
    image.mul_(torch.where(stripped, canvas.uniform(0.8, 1.6), canvas.uniform(0.4, 1.0)))
    tilt = canvas.uniform(0, 0.5)
    image.mul_((canvas.uniform(-0.6, 0.6) * x).addcmul_(y, canvas.uniform(-0.6, 0.6)).mul_(tilt).add_(1))
    mask = torch.zeros_like(image, dtype=torch.bool)
    mask[ill] = torch.where(kind[ill] == SPOTS, cover > 0.4, lesion > 0) & (head.brain[ill] > 0.5)
    names = [CONTRASTS[i] for i in contrast.flatten().tolist()]
    attributes = [
        {
            "finding": KINDS[k],
            "brightness": "bright" if light else "dark",
            "view": f"axial {name}",
            "count": "multiple" if k == SPOTS else None,
        }
        for k, light, name in zip(kind.flatten().tolist(), bright.flatten().tolist(), names, strict=True)
    ]
    finish = Finish(bias=0.15, noise=level(difficulty, 0.03, 0.07), blur=0.9, gamma=0.25, brightness=0.03, marks=0.2)
    return Drawing(image[:, None], mask, attributes, finish)


def _mass_effect(
    canvas: Canvas, x: Tensor, y: Tensor, centre: tuple[Tensor, Tensor], size: Tensor
) -> tuple[Tensor, Tensor]:
    """Coordinates in which the tissue around a lesion is pushed away from it."""
    dx, dy = canvas.x - centre[0], canvas.y - centre[1]
    push = canvas.uniform(-0.3, 0.7).clamp_min(0) * bump((dx.square() + dy.square()).sqrt_(), 2.5 * size + 1e-3)
    return x - push * dx, y - push * dy


def _head(canvas: Canvas, x: Tensor, y: Tensor, tissue: Tensor) -> Head:
    where = canvas.choose(0.25, 0.22, 0.25, 0.28)
    width = canvas.uniform(0.68, 0.8) * (1 + canvas.uniform(-0.02, 0.18) * y)
    depth = ellipse(x, y, 0, 0, width, canvas.uniform(0.86, 0.96)).add_(canvas.noise(9), alpha=0.012)
    inner = depth - canvas.uniform(0.09, 0.17)
    # At the skull base the face takes the front; the temporal lobes reach further than the midline does.
    low, i = canvas.uniform(0.2, 0.5), numbers(where == BASE)
    front = y[i] + low[i] + 0.06 * canvas.noise(5, only=i) - 0.5 * (x[i].abs() - 0.3).abs_().clamp_(max=0.3)
    inner[i] = torch.minimum(inner[i], front)
    return Head(x, y, depth, edge(inner, 0.025), tissue, where)


def _brain(canvas: Canvas, head: Head) -> tuple[Tensor, Tensor]:
    """The brain, and where it is tissue rather than fluid (0..1)."""
    x, y, tissue = head.x, head.y, head.tissue
    grey, white, fluid = tissue[:, GREY], tissue[:, WHITE], tissue[:, FLUID]
    wave, ripple = canvas.noise(6), canvas.noise(30)
    side = (x + 0.03 * canvas.noise(2.5)).abs_()
    # Sulci are level lines of a field: fluid on the line, a grey ribbon on both of its sides.
    fold = canvas.noise(canvas.uniform(15, 28)).add_(canvas.noise(12), alpha=0.5)
    depth = head.depth - 0.14
    vertex = head.slice == VERTEX
    cortex = edge(torch.where(vertex, 0.5, canvas.uniform(0.1, 0.32)) - depth, 0.12)
    opened = canvas.uniform(0.06, 0.4)
    sulci = bump(fold, opened).mul_(cortex).mul_(canvas.uniform(0.35, 1.4).clamp(max=1))
    ribbon = torch.maximum(bump(fold, opened + 0.6).mul_(cortex), bump(depth, 0.09))
    i = numbers(head.slice == HORNS)
    ganglia = edge(ellipse(side[i], y[i], 0.3, 0.0, 0.1, 0.22), 0.25)
    ganglia.add_(edge(ellipse(side[i], y[i], 0.13, 0.14, 0.1, 0.13), 0.25))
    ribbon[i] = torch.maximum(ribbon[i], ganglia.mul_(0.8))
    i = numbers(head.slice == BASE)
    folia = bump((y[i] * 30 + 6 * x[i].square() + 0.7 * wave[i]).sin_(), 0.9) * edge(y[i] - 0.3 - 0.1 * side[i], 0.1)
    ribbon[i] = torch.maximum(0.6 * ribbon[i], folia * canvas.uniform(0.2, 0.8)[i])
    image = ribbon.clamp_(0, 1).mul_(grey - white).add_(white)
    image.mul_((canvas.uniform(0, 0.06) * ripple).addcmul_(wave.flip(1), canvas.uniform(0, 0.08)).add_(1))

    cavity = _ventricles(canvas, head, side, wave)
    # Bright caps and bands around the ventricles are normal at many ages.
    caps = edge(cavity + 0.05, 0.1).mul_(canvas.uniform(-0.5, 1).clamp_min(0))
    image.addcmul_(image, caps.mul_((0.4 * wave).add_(0.7).clamp_(min=0)), value=0.45)
    midline = bump(x.add(wave, alpha=0.012), torch.where(vertex, 0.024, canvas.uniform(0.01, 0.026)))
    midline.mul_(edge((y.abs() - 0.3).add_(1.5 * vertex), 0.3)).mul_(canvas.uniform(0.4, 1.5).clamp(max=1))
    i, thick = numbers(head.slice >= HORNS), canvas.uniform(0.008, 0.03)
    high = y[i] + 0.1
    sylvian = bump(side[i] - 0.5 + 0.25 * high.square() + 0.03 * wave[i].flip(2), thick[i])
    sulci[i] = torch.maximum(sulci[i], sylvian.mul_(edge(0.25 - high.abs(), 0.1)))
    hollow = edge(cavity, 0.03)
    wet = sulci.maximum(midline).maximum(hollow)
    image = paint(image, wet, fluid)
    plexus = edge(ripple.flip(2).sub_(1.2), 0.7).mul_(hollow).mul_(canvas.uniform(-0.5, 1).clamp_min(0))
    vessels = edge(ripple.flip(1).sub_(2.9), 0.4)
    return image.addcmul_(plexus, grey + 0.25).addcmul_(vessels, canvas.uniform(-0.35, 0.4)), 1 - wet


def _ventricles(canvas: Canvas, head: Head, side: Tensor, wave: Tensor) -> Tensor:
    """Positive inside the ventricles and cisterns, about -distance outside."""
    shifted = head.y + canvas.uniform(-0.06, 0.06)
    wide = canvas.uniform(0.015, 0.09) * (1 + 0.3 * canvas.uniform(-1, 1) * head.x.sign())
    cavity = torch.full_like(side, -1.0)

    apart, i = canvas.uniform(0, 0.4), numbers(head.slice == BODIES)
    near, y = side[i], shifted[i]
    cavity[i] = wide[i] * (1 - (y / 0.34).square()) - (near - 0.07 - apart[i] * (y + 0.05).square()).abs()

    slit, i = canvas.uniform(0.01, 0.04), numbers(head.slice == HORNS)
    near, y = side[i], shifted[i]
    far = y.abs() - 0.27
    horns = wide[i] * (1 - (far / 0.17).square()) - (near - 0.05 - (0.25 + 0.3 * (y > 0)) * y.abs()).abs()
    cavity[i] = horns.maximum(0.1 * ellipse(near, y, 0, 0.05, slit[i], 0.12))

    across, down, slit = canvas.uniform(0.13, 0.2), canvas.uniform(0.12, 0.18), canvas.uniform(0.03, 0.09)
    i = numbers(head.slice == BASE)
    near, y, ripple = side[i], shifted[i], 0.02 * wave[i]
    rim = ellipse(near, y, 0, 0.1, across[i], down[i])
    star = 0.014 + ripple - (0.16 * rim).abs() - 0.05 * bump(near - 0.1, 0.06)
    star = star.maximum(0.1 * ellipse(near, y, 0.2 * (y + 0.1).abs(), -0.12, 0.1, 0.07) + ripple)
    cavity[i] = star.maximum(0.1 * ellipse(near, y, 0, 0.38, slit[i], 0.06))
    return cavity


def _skull(canvas: Canvas, head: Head) -> Tensor:
    """Everything outside the brain: scalp, skull with marrow, orbits, sinuses and muscle, air."""
    tissue = head.tissue
    fat, bone, muscle = tissue[:, FAT], tissue[:, BONE], tissue[:, MUSCLE]
    scalp = canvas.uniform(0.02, 0.08)
    rough, coarse = canvas.noise(16), canvas.noise(7)
    marrow = canvas.uniform(-0.4, 0.6).clamp_min(0) * bump(head.depth - scalp - 0.04, 0.018)
    image = marrow.add_(bone)
    # Fat is brightest near the coils, and the face shows muscle and fat in strands.
    skin = fat * canvas.uniform(0.5, 1.05) * (1 + canvas.uniform(0, 0.3) * coarse)
    opaque, i = canvas.uniform(0.4, 1), numbers(head.slice == BASE)
    seen, uneven = (head.depth[i] > 0.01).float(), rough[i]
    inside = seen * edge(head.depth[i] - scalp[i], 0.02)
    strands = fat[i] * bump(uneven.flip(1) + 0.6 * coarse[i] - 0.6, 0.6)
    strands = strands.add_(muscle[i] * (1 + 0.5 * uneven)).clamp_(min=0.02)
    image[i] = torch.lerp(image[i], strands, inside * opaque[i])
    image = torch.lerp(image, skin, edge(scalp - head.depth, 0.015))
    face, side, y = image[i], head.x[i].abs(), head.y[i]
    face = paint(face, edge(ellipse(side, y, 0.34, -0.57, 0.2, 0.27) + 0.1 * uneven, 0.15) * seen, fat[i] * 0.85)
    face = paint(face, edge(ellipse(side, y, 0.35, -0.66, 0.14, 0.13), 0.08) * seen, tissue[i, FLUID] + 0.08)
    sinus = edge(ellipse(side, y, 0, -0.55, 0.14, 0.3) + 0.25 * uneven, 0.15) * seen
    image[i] = paint(face, sinus, bone[i])
    return image.mul_(edge(head.depth, 0.015)).add_(canvas.uniform(0, 0.02))


def _lesion(
    canvas: Canvas, head: Head, kind: Tensor, centre: tuple[Tensor, Tensor], size: Tensor, solid: Tensor, ill: Tensor
) -> tuple[Tensor, Tensor]:
    """Profile (0 on the outline, 1 inside) and opacity 0..1 in the images with a lesion."""
    profile = canvas.blob(*centre, size, rough=0.28, only=ill)
    soft = torch.tensor([0.25, 0.7, 0.3, 0.25, 0.35, 0.2], device=canvas.device)[kind]
    cover = edge(profile, soft[ill])
    # What infiltrates or starves follows the tissue and leaves the sulci open.
    open_sulci = (kind == INFILTRATE) | (kind == INFARCT) | ((kind == BLOB) & canvas.chance(0.3))
    cover = either(open_sulci[ill], cover * (0.15 + 0.85 * solid[ill]), cover)
    scattered = canvas.noise(canvas.uniform(14, 26), only=ill) - canvas.uniform(0.9, 1.6)[ill]
    near = edge(canvas.blob(*centre, size + 0.25, rough=0, only=ill), 0.3) * edge(head.depth[ill] - 0.24, 0.05)
    spots = edge(scattered, 0.5) * near
    return profile, either(kind[ill] == SPOTS, spots, cover) * head.brain[ill]


def _tint(
    canvas: Canvas,
    image: Tensor,
    lesion: tuple[Tensor, Tensor],
    kind: Tensor,
    contrast: Tensor,
    difficulty: float,
    ill: Tensor,
) -> Tensor:
    """Draw lesions into their images; whether each would be bright [n, 1, 1]."""
    profile, cover = lesion
    amount = canvas.uniform(level(difficulty, 0.2, 0.06), level(difficulty, 0.55, 0.4))
    usual = (contrast == 0) | (contrast == 2)
    bright = (usual ^ canvas.chance(0.12)) | (kind == RING)
    bright = bright & ~((kind == CYST) & (contrast != 2))
    signed = torch.where(bright, amount, -0.75 * amount)[ill]
    mottle = canvas.noise(10, only=ill)
    coarse, fine = canvas.uniform(0, 0.35), canvas.uniform(0, 0.25)
    texture = 1 + coarse[ill] * mottle + fine[ill] * canvas.noise(28, only=ill)
    rim = bump(profile - 0.22, 0.16) * (0.7 + 0.3 * mottle.flip(1)).clamp_(0, 1)
    core = edge(profile - 0.4, 0.2)
    ring = (1.1 * rim - 0.9 * core + 0.25) * amount[ill] * 1.5
    cyst = (torch.where(contrast == 2, 1.5, -1.2) * amount)[ill] * edge(profile - 0.15, 0.15)
    cyst = cyst + 0.4 * amount[ill] * rim
    dying, within = canvas.chance(0.3)[ill], canvas.uniform(0.3, 0.6)[ill]
    necrotic = dying * edge(profile - within + 0.25 * mottle.flip(2), 0.2)
    change = signed * texture * (1 - canvas.uniform(0.4, 1.6)[ill] * necrotic)
    change = either(kind[ill] == RING, ring, either(kind[ill] == CYST, cyst, change))
    image[ill] += cover * change
    image.clamp_(min=0.02)
    return bright
