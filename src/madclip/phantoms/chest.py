"""Chest X-ray films, frontal: children and adults, with devices, markers and borders on healthy and ill alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from madclip.phantoms.fields import Canvas, Drawing, Finish, bump, edge, either, ellipse, level, numbers

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("consolidation", "pneumonia", "interstitial haze", "nodule", "effusion", "pneumothorax")
CONSOLIDATION, PATCHES, HAZE, NODULE, EFFUSION, PNEUMOTHORAX, NOTHING = range(7)


@dataclass(frozen=True)
class Thorax:
    """Where things are, all [n, S, S] or [n, 1, 1].

    Attributes:
        x: From left to right of the image, midline at 0.
        y: From neck to belly.
        side: |x|.
        lung: 0..1, aerated fields beside heart, mediastinum and diaphragm.
        wall: Distance to the inner chest wall, positive inside.
        base: Distance to the diaphragm, positive above it.
        heart: Positive inside the heart.
        child: Bool.
    """

    x: Tensor
    y: Tensor
    side: Tensor
    lung: Tensor
    wall: Tensor
    base: Tensor
    heart: Tensor
    child: Tensor


def draw(canvas: Canvas, abnormal: Tensor, difficulty: float) -> Drawing:
    """A batch of frontal films.

    Args:
        canvas: To draw on.
        abnormal: [n] bool, which images get a finding.
        difficulty: 0..1.
    """
    sick = abnormal[:, None, None]
    body = _thorax(canvas)
    kind = canvas.choose(0.24, 0.25, 0.22, 0.12, 0.1, 0.07)
    rough, fine = canvas.noise(11), canvas.noise(30)
    cover = _finding(canvas, body, torch.where(sick, kind, NOTHING), (rough, fine), difficulty)
    strength = canvas.uniform(level(difficulty, 0.5, 0.2), level(difficulty, 1.0, 0.75)) * cover
    gas = (kind == PNEUMOTHORAX) & sick

    air = canvas.uniform(0.28, 0.5)
    marks = _vessels(canvas, body, rough, fine)
    soft = _soft_tissue(canvas, body, rough)
    # A finding takes the air out of the lung: vessels vanish in it, ribs stay. A pneumothorax takes the vessels only.
    texture = (canvas.uniform(0, 0.25) * rough.flip(1)).add_(canvas.uniform(0, 0.2) * fine.flip(2)).add_(1)
    filled = texture.mul_(strength).mul_(torch.where(gas, -0.35, 1.0))
    lung = filled.neg_().add_(1).mul_(air).sub_(marks.mul_(1 - either(gas, cover, 0.7 * strength)))
    net, hazy = canvas.uniform(0, 0.2), numbers((kind == HAZE) & sick)
    lung[hazy] -= strength[hazy] * bump(fine[hazy] + 0.5 * rough[hazy], 0.4) * net[hazy]
    image = soft.sub_(lung.mul_(body.lung))
    line, gassy = canvas.uniform(0.08, 0.25), numbers(gas)
    image[gassy] += bump(cover[gassy] - 0.5, 0.35) * body.lung[gassy] * line[gassy]
    image = image.add_(_bones(canvas, body)).mul_(_outline(canvas, body))
    image = image.mul_(canvas.uniform(0.75, 1.1)).add_(_devices(canvas, body))
    image = _borders(canvas, image)
    mask = (cover > 0.4) & (body.lung > 0.4) & sick
    attributes = [
        {
            "finding": KINDS[k],
            "brightness": "dark" if k == PNEUMOTHORAX else "bright",
            "view": "frontal paediatric" if child else "frontal",
        }
        for k, child in zip(kind.flatten().tolist(), body.child.flatten().tolist(), strict=True)
    ]
    finish = Finish(0.1, level(difficulty, 0.02, 0.05), 0.75, gamma=0.4, contrast=0.3, brightness=0.06, marks=0.6)
    return Drawing(image[:, None], mask, attributes, finish)


def _thorax(canvas: Canvas) -> Thorax:
    child = canvas.chance(0.45)
    x, y = canvas.pose(rotate=0.09, zoom=(0.92, 1.4), shift=0.08, warp=0.012, stretch=0.1)
    side = x.abs()
    wave = canvas.noise(5)
    width = canvas.uniform(0.62, 0.8) - 0.08 * child
    top = canvas.uniform(-0.9, -0.72)
    low = canvas.uniform(0.35, 0.8)
    # A flat-sided barrel: an ellipse of the fourth power below, narrowing to the apex above.
    down = (y - 0.4) / (0.4 - top)
    wall = (1 - down.abs_().clamp_(max=1).pow_(3)).sqrt_().mul_(width).sub_(side).add_(wave, alpha=0.006)
    lifted = (x < 0).float().mul_(0.06 * canvas.uniform(0, 1.5))
    dome = canvas.uniform(0.08, 0.25) * (1 - ((side - 0.38) / 0.4).square())
    base = dome.add_(lifted).add_(y).neg_().add_(low).add_(wave.flip(2), alpha=0.01)
    # The heart leans to the right of the image and sits on the diaphragm, wider the lower.
    swing = canvas.uniform(0.02, 0.1) + canvas.uniform(0.05, 0.25) * (y - low + 0.5)
    heart = ellipse(x, y, swing, low - 0.12, canvas.uniform(0.2, 0.33) + 0.05 * child, canvas.uniform(0.45, 0.65))
    heart.add_(wave.flip(1), alpha=0.05)
    spine = canvas.uniform(0.06, 0.12) + 0.05 * child + 0.05 * bump(y + 0.25, 0.25)
    spine.add_(canvas.noise(7), alpha=0.015)
    hole = torch.minimum(side - spine, -0.3 * heart)
    lung = edge(wall, 0.05).mul_(edge(hole, canvas.uniform(0.03, 0.1))).mul_(edge(base, 0.03))
    return Thorax(x, y, side, lung, wall, base, heart, child)


def _soft_tissue(canvas: Canvas, body: Thorax, rough: Tensor) -> Tensor:
    """Thickness of everything but lungs and bones."""
    below = edge(-body.base, 0.03).mul_(edge(body.wall + 0.04, 0.1))
    dense, heavy = canvas.uniform(0.55, 0.75), canvas.uniform(0, 0.1)
    soft = edge(body.heart, 0.3).mul_(edge(body.base, 0.1)).mul_(heavy).add_(dense).add_(below, alpha=0.12)
    soft.addcmul_(edge(-body.wall, 0.3), canvas.uniform(0, 0.12)).addcmul_(rough, canvas.uniform(0, 0.03))
    # The stomach's bubble is dark, under the heart, with a level below it.
    bubble = ellipse(body.x, body.y, canvas.uniform(0.25, 0.45), canvas.uniform(0.7, 0.9), 0.15, 0.1)
    gas = canvas.uniform(-0.2, 0.35).clamp_min(0)
    soft.sub_(edge(bubble.add_(rough, alpha=0.15), 0.1).mul_(below).mul_(gas))
    trachea = bump(body.x + 0.02 * canvas.uniform(-1, 1), 0.05).mul_(edge(-0.25 - body.y, 0.2))
    soft.addcmul_(trachea, canvas.uniform(0, 0.18), value=-1)
    return soft.addcmul_(bump(body.side, 0.16), canvas.uniform(0, 0.12))


def _vessels(canvas: Canvas, body: Thorax, rough: Tensor, fine: Tensor) -> Tensor:
    """Branches that leave the hila and thin out, and the grain of the lung."""
    across, down = body.side - 0.14, body.y - canvas.uniform(-0.1, 0.1)
    far = (across * across).addcmul_(down, down).sqrt_()
    angle = torch.atan2(down, across)
    wide = far.clamp(max=1).mul_(-0.3).add_(0.5)
    rays = bump((angle * 5).add_(rough, alpha=1.6).add_(fine, alpha=0.5).sin_(), wide)
    thin = angle.mul_(9).add_(rough, alpha=-2.2).add_(fine.flip(1), alpha=0.6).sin_()
    rays.add_(bump(thin, 0.45), alpha=0.7)
    near = (far / canvas.uniform(0.45, 0.95)).neg_().add_(1).clamp_(min=0)
    hilum = bump(far, canvas.uniform(0.1, 0.22)).mul_((0.5 * fine).add_(1))
    web = bump(canvas.noise(34), 0.35).mul_(0.35).add_(fine.flip(2), alpha=0.12)
    strength, share = canvas.uniform(0.08, 0.22), canvas.uniform(0.2, 1)
    return near.mul_(rays).add_(hilum, alpha=0.9).addcmul_(web, share).mul_(strength)


def _bones(canvas: Canvas, body: Thorax) -> Tensor:
    """Ribs with edges, clavicles, spine, shoulder blades."""
    y, side = body.y, body.side
    thorax = edge(body.wall + 0.03, 0.04).mul_(edge(y + 0.85, 0.1))
    bow = canvas.uniform(0.3, 1.1)
    back = (side - 0.2).square_().mul_(bow).add_(y).addcmul_(side, canvas.uniform(0.0, 0.3), value=-1)
    back.mul_(canvas.uniform(3.6, 5.2)).add_(canvas.uniform(0, 1))
    back = _rib(back, canvas.uniform(0.2, 0.34)).mul_(edge(side - 0.08, 0.05))
    front = (0.75 - side).clamp_(min=0).pow_(1.4).mul_(-canvas.uniform(0.4, 0.9)).add_(y)
    front.mul_(canvas.uniform(3.0, 4.4)).add_(canvas.uniform(0, 1))
    front = _rib(front, canvas.uniform(0.15, 0.3)).mul_(edge(side - 0.25, 0.15))
    ribs = back.mul_(canvas.uniform(0.04, 0.14)).addcmul_(front, canvas.uniform(0.0, 0.08)).mul_(thorax)
    ribs.mul_(bump(body.wall, 0.16).mul_(canvas.uniform(0, 1.8)).add_(1))
    ribs.mul_(edge(body.base + 0.05, 0.2).mul_(0.85).add_(0.15))
    wall = bump(body.wall + 0.01, 0.025).mul_(canvas.uniform(0, 0.12)).mul_(edge(body.base + 0.2, 0.2))
    column = bump((y * canvas.uniform(10, 16)).sin_(), 0.8).add_(0.5)
    column.mul_(edge(0.075 - side, 0.03)).add_(bump(side - 0.08, 0.02))
    slope, high = canvas.uniform(0.05, 0.4), canvas.uniform(-0.72, -0.5)
    line = (side - 0.1).mul_(slope).add_(y).sub_(high).add_((side * 8).sin_(), alpha=-0.05)
    collar = bump(line, 0.035).add_(bump(line.abs_().sub_(0.028), 0.012), alpha=0.7)
    collar.mul_(edge(side - 0.07, 0.03)).mul_(edge(0.75 - side, 0.1))
    blade = bump(ellipse(side, y, 0.78, -0.35, canvas.uniform(0.15, 0.25), 0.4), 0.05)
    blade.mul_(edge(side - 0.5, 0.1))
    bones = ribs.add_(wall).addcmul_(column, canvas.uniform(0.02, 0.1)).addcmul_(collar, canvas.uniform(0.06, 0.2))
    return bones.addcmul_(blade, canvas.uniform(0, 0.1))


def _rib(phase: Tensor, width: Tensor) -> Tensor:
    """Bands at whole numbers of the phase: flat inside, brighter along both edges."""
    off = (phase - phase.round()).abs_()
    flat = edge(width - off, 0.1).mul_(0.7)
    return flat.add_(bump(off.sub_(width - 0.03), 0.06), alpha=0.6)


def _outline(canvas: Canvas, body: Thorax) -> Tensor:
    """1 on the body, fading to the black of the film beside the chest; arms where they are in the field."""
    flank = ellipse(body.side, body.y, 0, 0.35, canvas.uniform(0.78, 1.1), canvas.uniform(1.1, 1.8))
    neck = edge(0.3 - body.side + 0.5 * (body.y + 0.95).clamp_min(0), 0.1)
    arm = bump(body.side - 1.0 - canvas.uniform(-0.3, 0.3) * (body.y + 0.2), canvas.uniform(0.1, 0.25)) * 0.6
    shape = torch.maximum(edge(flank, 0.12), arm * canvas.chance(0.6)).maximum(neck)
    return torch.maximum(shape, canvas.uniform(0.02, 0.25))


def _finding(canvas: Canvas, body: Thorax, kind: Tensor, noises: tuple[Tensor, Tensor], difficulty: float) -> Tensor:
    """0..1, how much of the finding lies at every pixel."""
    rough, fine = noises
    x, y, lung = body.x, body.y, body.lung
    right = canvas.chance(0.5)
    one = ((x > 0) == right).float().mul_(lung)
    cx, cy = canvas.place(one)
    cover = torch.zeros_like(lung)

    size, i = canvas.uniform(0, 1) * 0.25 + level(difficulty, 0.2, 0.1), numbers(kind == CONSOLIDATION)
    patch = canvas.blob(cx, cy, size, rough=0.35, only=i).add_(fine[i], alpha=0.15)
    cover[i] = edge(patch, canvas.uniform(0.3, 1.0)[i])

    least, soft, i = canvas.uniform(0.2, 1.0), canvas.uniform(0.6, 1.6), numbers(kind == PATCHES)
    cover[i] = edge(rough[i].add(fine[i], alpha=0.3).sub_(least[i]), soft[i])
    cover[i] *= either(canvas.chance(0.5)[i], one[i], lung[i]) * edge(y[i] - canvas.uniform(-0.9, 0.1)[i], 0.5)

    both, top, i = canvas.chance(0.6), canvas.uniform(-1.6, 0.2), numbers(kind == HAZE)
    cover[i] = either(both[i], lung[i], one[i]) * (0.85 + 0.15 * rough[i]) * edge(y[i] - top[i], 0.8)

    small, i = canvas.uniform(0.03, level(difficulty, 0.13, 0.08)), numbers(kind == NODULE)
    cover[i] = edge(canvas.blob(cx, cy, small, rough=0.1, elongation=0.2, only=i), 0.4)

    height, i = canvas.uniform(0.03, level(difficulty, 0.5, 0.25)), numbers(kind == EFFUSION)
    fluid = body.base[i] - height[i] - 0.35 * (0.35 - body.wall[i]).clamp_min(0)
    cover[i] = edge(-fluid, 0.08) * one[i]

    gap, i = canvas.uniform(0.04, level(difficulty, 0.22, 0.12)), numbers(kind == PNEUMOTHORAX)
    free = gap[i] * (0.7 - y[i]).clamp(0.3, 1.6)
    cover[i] = edge(free + 0.01 * rough[i] - body.wall[i], 0.04) * one[i]
    return cover.mul_(edge(lung - 0.3, 0.4))


def _devices(canvas: Canvas, body: Thorax) -> Tensor:
    """Tubes, wires, electrodes and pacemakers, in a third of all films."""
    x, y = canvas.x + 0.08 * canvas.noise(3), canvas.y + 0.08 * canvas.noise(3)
    thin = 1.6 * canvas.pixel
    middle, end = canvas.uniform(-0.05, 0.05), canvas.uniform(-0.5, 0.6)
    slope, at = canvas.uniform(-2.5, 2.5), canvas.uniform(-0.7, 0.7)
    bow = canvas.uniform(-0.9, 0.9)
    ex, ey = canvas.uniform(-0.8, 0.8), canvas.uniform(-0.8, 0.8)
    bx, by = canvas.uniform(0.3, 0.6), canvas.uniform(-0.7, -0.4)
    amount = canvas.uniform(0.15, 0.6)
    result = torch.zeros_like(x)
    i = numbers(canvas.chance(0.15))
    result[i] += bump(body.x[i] - middle[i], 2 * thin) * edge(end[i] - y[i], 0.03)
    i = numbers(canvas.chance(0.22))
    result[i] += bump((y[i] - slope[i] * x[i] - at[i]) / (1 + slope[i].abs()), thin)
    i = numbers(canvas.chance(0.15))
    result[i] += bump(x[i] - bow[i] - 0.3 * y[i].square(), thin)
    i = numbers(canvas.chance(0.12))
    result[i] += edge(ellipse(x[i], y[i], ex[i], ey[i], 0.05, 0.05), 0.15) * 0.6
    result[i] += edge(ellipse(x[i], y[i], -ex[i], ey[i] + 0.2, 0.04, 0.04), 0.2)
    i = numbers(canvas.chance(0.06))
    result[i] += edge(ellipse(x[i], y[i], bx[i], by[i], 0.13, 0.1), 0.06)
    return result.mul_(amount)


def _borders(canvas: Canvas, image: Tensor) -> Tensor:
    """Black collimator edges, or bright cloth and plates, at the sides of some films."""
    tilt, left, inset = canvas.uniform(-0.1, 0.1), canvas.uniform(-0.3, 0.1), canvas.uniform(0.8, 1.0)
    i, bright = numbers(canvas.chance(0.3)), canvas.chance(0.4)
    light, grain, dim = canvas.uniform(0.5, 1), canvas.grain(), canvas.uniform(0, 0.1)
    edge_at = torch.maximum(canvas.x + tilt[i] * canvas.y, left[i] - canvas.x).sub_(inset[i])
    cloth = torch.where(bright[i], light[i] + 0.2 * grain[i], dim[i])
    image[i] = torch.lerp(image[i], cloth, edge(edge_at, 0.02))
    return image
