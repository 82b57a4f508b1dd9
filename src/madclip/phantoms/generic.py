"""Surfaces, patterns and objects of every kind, with every kind of defect: what is odd is odd only beside its like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from madclip.phantoms.fields import Canvas, Drawing, Finish, bump, dots, edge, level, smooth

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

VISIBLE = 0.035
"""Mean change under the mask below which nobody could see a defect."""


def draw(canvas: Canvas, abnormal: Tensor, difficulty: float) -> Drawing:
    """A batch of surfaces, each of a kind of its own.

    Args:
        canvas: To draw on.
        abnormal: [n] bool, which images get a defect.
        difficulty: 0..1.
    """
    names = list(SURFACES)
    images, masks, attributes = [], [], []
    for sick in abnormal.tolist():
        one = Canvas(1, canvas.size, canvas.generator)
        name = names[_integer(one, 0, len(names) - 1)]
        palette = _complexion(one) if name == "skin-like" and one.rand(1) < 0.75 else _palette(one)
        value = SURFACES[name](one)
        image = _colour(value, palette)
        image, mask, finding, brightness = (
            damage(Scene(one, image, palette, difficulty)) if sick else (image, torch.zeros_like(value) > 1, "", "")
        )
        images.append(image * _lighting(one))
        masks.append(mask)
        attributes.append({"finding": finding, "brightness": brightness or None, "view": name})
    finish = Finish(bias=0.08, noise=0.04, blur=0.7, gamma=0.3, contrast=0.3, brightness=0.05, marks=0.1, blocks=0.25)
    return Drawing(torch.cat(images), torch.cat(masks), attributes, finish)


def _integer(canvas: Canvas, low: int, high: int) -> int:
    return low + int(float(canvas.rand(1)) * (high - low + 1))


def _number(canvas: Canvas, low: float, high: float) -> float:
    return low + (high - low) * float(canvas.rand(1))


def _palette(canvas: Canvas) -> Tensor:
    """[3, 3]: colours of value 0, 1 and of what is behind; grey, of one hue, or of two."""
    kind = _integer(canvas, 0, 2)
    dark, light = _number(canvas, 0.05, 0.45), _number(canvas, 0.5, 0.95)
    if canvas.rand(1) < 0.3:
        dark, light = light, dark
    hues = canvas.rand(3, 3) if kind == 2 else canvas.rand(1, 3).expand(3, 3)
    strength = (0.0, 0.45, 0.7)[kind]
    levels = torch.tensor([dark, light, _number(canvas, 0, 1)], device=canvas.device)[:, None]
    return (levels * (1 + strength * (2 * hues - 1))).clamp(0, 1)


def _complexion(canvas: Canvas) -> Tensor:
    """Colours as `_palette` gives them, from pale to dark skin."""
    red = _number(canvas, 0.5, 1)
    light = torch.tensor(
        [red, red * _number(canvas, 0.6, 0.85), red * _number(canvas, 0.45, 0.8)], device=canvas.device
    )
    return torch.stack([light * _number(canvas, 0.1, 0.5), light.mul(1.15).clamp(max=1), light * 0.6])


def _colour(value: Tensor, palette: Tensor) -> Tensor:
    """[1, 3, S, S] of a surface [1, S, S] with values 0..1; below -1 lies what is behind."""
    low, high, behind = (colour.reshape(1, 3, 1, 1) for colour in palette)
    image = low + value.clamp(0, 1)[:, None] * (high - low)
    return torch.where((value < -1)[:, None], behind, image)


def _lighting(canvas: Canvas) -> Tensor:
    """A lamp on one side, a vignette, a highlight."""
    angle = _number(canvas, 0, 2 * math.pi)
    slope = _number(canvas, 0, 0.3) * (math.cos(angle) * canvas.x + math.sin(angle) * canvas.y)
    around = _number(canvas, -0.25, 0.05) * (canvas.x.square() + canvas.y.square())
    shine = max(0.0, _number(canvas, -0.4, 0.3)) * bump(canvas.x - _number(canvas, -1, 1), _number(canvas, 0.2, 1))
    return (1 + slope + around + shine)[:, None]


# Surfaces: [1, S, S] with values about 0..1.


def _pose(canvas: Canvas, warp: float = 0.0) -> tuple[Tensor, Tensor]:
    turn = 3.2 if canvas.rand(1) < 0.5 else 0.1
    return canvas.pose(turn, (0.7, 1.4), 0.2, warp * _number(canvas, 0, 1), 0.2)


def _clouds(canvas: Canvas) -> Tensor:
    cells = _number(canvas, 2, 30)
    return 0.5 + 0.22 * canvas.fractal(cells, 4, _number(canvas, 0.3, 0.9))


def _plain(canvas: Canvas) -> Tensor:
    return 0.5 + _number(canvas, 0.02, 0.3) * canvas.noise(1.5) + _number(canvas, 0, 0.03) * canvas.noise(40)


def _grain(canvas: Canvas) -> Tensor:
    grain = canvas.grain()
    for _ in range(_integer(canvas, 0, 2)):
        grain = 1.7 * smooth(grain)
    return 0.5 + _number(canvas, 0.05, 0.25) * grain + 0.05 * canvas.noise(3)


def _stripes(canvas: Canvas) -> Tensor:
    x, _ = _pose(canvas, 0.06)
    wave = (x * _number(canvas, 8, 90) + _number(canvas, 0, 0.6) * canvas.noise(4)).sin_()
    wave = edge(wave, _number(canvas, 0.2, 2.5)) if canvas.rand(1) < 0.5 else 0.5 + 0.5 * wave
    return 0.1 + 0.8 * wave + _number(canvas, 0, 0.12) * canvas.noise(45)


def _weave(canvas: Canvas) -> Tensor:
    x, y = _pose(canvas, 0.03)
    threads = _number(canvas, 25, 100)
    across, down = (x * threads).sin_(), (y * threads * _number(canvas, 0.8, 1.2)).sin_()
    over = torch.where(across * down > 0, across.abs(), down.abs())
    return 0.15 + 0.7 * over + _number(canvas, 0, 0.1) * canvas.noise(30, 60) + 0.06 * canvas.noise(3)


def _wood(canvas: Canvas) -> Tensor:
    stretch = _number(canvas, 4, 12)
    turned = canvas.rand(1) < 0.5
    cells = _number(canvas, 12, 40)
    fibres = canvas.noise(cells / stretch, cells) + 0.6 * canvas.noise(2 * cells / stretch, 2 * cells)
    rings = (6 * canvas.noise(1, 4) + 0.3 * fibres).sin_()
    value = 0.5 + 0.13 * fibres + _number(canvas, 0, 0.2) * rings
    return value.transpose(1, 2) if turned else value


def _leather(canvas: Canvas) -> Tensor:
    cells = _number(canvas, 14, 50)
    folds = bump(canvas.noise(cells), 0.5).maximum(bump(canvas.noise(cells * 1.6), 0.35))
    return 0.65 - _number(canvas, 0.1, 0.5) * folds + 0.05 * canvas.noise(60) + 0.05 * canvas.noise(4)


def _skin(canvas: Canvas) -> Tensor:
    pores = canvas.noise(_number(canvas, 50, 90))
    hairs = _scratches(canvas, _integer(canvas, 0, 14), 0.012)
    value = 0.65 + 0.06 * canvas.fractal(4, 4, 0.7) + _number(canvas, 0.01, 0.05) * pores
    return value - 0.45 * hairs


def _cells(canvas: Canvas) -> Tensor:
    """Stones, grains, foam: nearest of many points, with or without seams."""
    count = _integer(canvas, 4, 18)
    first, second, shade = _nearest(canvas, count)
    seam = edge(second - first, _number(canvas, 0.02, 0.1))
    value = 0.5 + _number(canvas, 0, 0.35) * (shade - 0.5) * 2 - _number(canvas, 0, 0.35) * first * count
    return value * (1 - _number(canvas, 0, 1) * (1 - seam)) + 0.04 * canvas.noise(50)


def _nearest(canvas: Canvas, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Distance to the nearest and the second nearest point, and a number of the nearest's own, [1, S, S]."""
    n = count + 4
    # Pixels and points share a grid of cells, so nine candidates are enough.
    wave = canvas.noise(3)
    px = (canvas.x + 1 + 0.02 * wave) * (count / 2) + 2
    py = (canvas.y + 1 + 0.02 * wave.flip(1)) * (count / 2) + 2
    column, row = px.floor(), py.floor()
    cell = row.long() * n + column.long()
    jitter = _number(canvas, 0.2, 1)
    points = 0.5 + jitter * (canvas.rand(2, n * n) - 0.5)
    shades = canvas.rand(n * n)
    dx, dy = px - column, py - row
    first = torch.full_like(dx, 9.0)
    second, owner = first.clone(), cell
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            index = cell + (down * n + across)
            distance = (points[0][index] + across - dx).square_() + (points[1][index] + down - dy).square_()
            closer = distance < first
            second = torch.where(closer, first, torch.minimum(second, distance))
            owner = torch.where(closer, index, owner)
            first = torch.minimum(first, distance)
    scale = 2 / count
    return first.sqrt_() * (scale / 2), second.sqrt_() * (scale / 2), shades[owner]


def _tiles(canvas: Canvas) -> Tensor:
    x, y = _pose(canvas)
    columns, rows = _number(canvas, 2, 9), _number(canvas, 2, 9)
    v = y * rows
    u = x * columns + (0.5 * v.floor() if canvas.rand(1) < 0.5 else 0)
    wide = _number(canvas, 0.04, 0.15)
    joint = edge(0.5 - (u - u.floor() - 0.5).abs(), wide).minimum(edge(0.5 - (v - v.floor() - 0.5).abs(), wide))
    shade = ((u.floor() * 12.9898 + v.floor() * 78.233).sin_() * 43758.5).frac_().abs_()
    value = 0.6 + _number(canvas, 0, 0.3) * (shade - 0.5)
    return torch.lerp(0.15 + 0 * value, value, joint) + 0.04 * canvas.noise(40) + 0.04 * canvas.noise(6)


def _polygons(canvas: Canvas) -> Tensor:
    value = torch.full((1, canvas.size, canvas.size), _number(canvas, 0, 1), device=canvas.device)
    for _ in range(_integer(canvas, 2, 7)):
        a, b = _number(canvas, 0, 6.3), _number(canvas, 0.5, 2.6)
        side = math.cos(a) * canvas.x + math.sin(a) * canvas.y + _number(canvas, -0.5, 0.5)
        other = math.cos(a + b) * canvas.x + math.sin(a + b) * canvas.y + _number(canvas, -0.3, 0.6)
        value = torch.lerp(
            value, torch.full_like(value, _number(canvas, 0, 1)), edge(torch.minimum(side, other), 0.015)
        )
    return value + _number(canvas, 0, 0.06) * canvas.noise(30)


def _holes(canvas: Canvas) -> Tensor:
    """A lattice of equal dots, as perforated sheets, chips and fabrics have it."""
    x, y = _pose(canvas)
    count, radius = _number(canvas, 3, 14), _number(canvas, 0.2, 0.42)
    v = y * count
    u = x * count + (0.5 * v.floor() if canvas.rand(1) < 0.4 else 0)
    du, dv = (u - u.floor() - 0.5), (v - v.floor() - 0.5)
    distance = (du * du + dv * dv).sqrt() if canvas.rand(1) < 0.6 else torch.maximum(du.abs(), dv.abs())
    return 0.2 + 0.6 * edge(radius - distance, _number(canvas, 0.05, 0.3)) + 0.05 * canvas.noise(35)


def _scatter(canvas: Canvas) -> Tensor:
    """Many equal things thrown on a plain ground: seeds, pills, bubbles."""
    count, radius = _integer(canvas, 15, 220), _number(canvas, 0.02, 0.09)
    x, y = canvas.uniform(-1, 1, count), canvas.uniform(-1, 1, count)
    size = radius * canvas.uniform(0.75, 1.2, count) * min(1.0, 5 / math.sqrt(count) + 0.3)
    cover = dots(canvas, x, y, size, canvas.uniform(0.6, 1, count))
    return 0.15 + 0.7 * cover + _number(canvas, 0, 0.12) * canvas.noise(30)


def _object(canvas: Canvas) -> Tensor:
    """One thing before a ground: a disc, a plate, a ring, a bottle's neck, with parts of its own."""
    x, y = canvas.pose(3.2, (0.85, 1.2), 0.12, 0.01, 0.15)
    width = _number(canvas, 0.3, 0.85)
    form, radial = _integer(canvas, 0, 2), (x * x + y * y).sqrt()
    box = torch.maximum(x.abs() - width, y.abs() - _number(canvas, 0.3, 0.85)).neg_()
    shape = (0.8 - radial, box, torch.minimum(0.8 - radial, radial - 0.25 * width))[form]
    value = 0.5 + 0.3 * bump(shape, 0.15) + _number(canvas, -0.4, 0.4) * edge(shape - 0.2, 0.04)
    arms = _integer(canvas, 2, 8)
    part = edge((torch.atan2(y, x) * arms).cos_() - _number(canvas, 0.2, 0.8), 0.1) * edge(shape - 0.1, 0.03)
    value = value + _number(canvas, -0.4, 0.4) * part * edge(radial - 0.15, 0.03)
    value = value + _number(canvas, 0, 0.1) * canvas.noise(40) + 0.05 * canvas.noise(5)
    return torch.where(shape > 0, value.clamp(-0.5, 1.5), -2.0)


def _mesh(canvas: Canvas) -> Tensor:
    """Thin bright lines: nets, circuits, veins of leaves."""
    cells = _number(canvas, 5, 16)
    lines = bump(canvas.noise(cells), _number(canvas, 0.08, 0.25)).maximum(bump(canvas.noise(cells / 2), 0.08))
    return 0.3 + 0.5 * lines + 0.06 * canvas.fractal(10, 3)


SURFACES: dict[str, Callable[[Canvas], Tensor]] = {
    "cloudy": _clouds,
    "smooth": _plain,
    "grainy": _grain,
    "striped": _stripes,
    "woven": _weave,
    "wooden": _wood,
    "leathery": _leather,
    "skin-like": _skin,
    "cellular": _cells,
    "tiled": _tiles,
    "polygonal": _polygons,
    "perforated": _holes,
    "scattered": _scatter,
    "object": _object,
    "veined": _mesh,
}
"""What each surface is called, and how it is drawn."""


# Defects: the damaged image, its mask, what it is called and how bright it is.


@dataclass(frozen=True)
class Scene:
    """What a defect is made in.

    Attributes:
        canvas: The canvas of one image.
        image: [1, 3, S, S] without the defect.
        palette: Its colours, see `_palette`.
        difficulty: 0..1.
    """

    canvas: Canvas
    image: Tensor
    palette: Tensor
    difficulty: float


def damage(scene: Scene) -> tuple[Tensor, Tensor, str, str]:
    """A scene with one defect: image [1, 3, S, S], mask [1, S, S], the finding, and how bright it is in a word."""
    image = scene.image
    names = list(DEFECTS)
    name = names[_integer(scene.canvas, 0, len(names) - 1)]
    damaged, cover = DEFECTS[name](scene)
    mask = cover > 0.4
    change = (damaged - image).abs_().amax(1)
    if name == "missing part":  # nothing is missing from what was empty before
        mask &= F.max_pool2d(change[:, None], 5, 1, 2)[:, 0] > 0.02
    if (
        float((change * mask).sum() / cover.gt(0.4).sum().clamp_min(1)) < VISIBLE
    ):  # a blur of something smooth, a copy of something even
        name = "stain"
        damaged, mask = _tinted(scene, cover), cover > 0.4
    difference = float(((damaged - image).mean(1) * mask).sum() / mask.sum().clamp_min(1))
    tone = (
        "bright" if difference > 0.06 else "dark" if difference < -0.06 else "subtle" if scene.difficulty > 0.7 else ""
    )
    return damaged, mask, name, tone


def _spot(canvas: Canvas, largest: float = 0.4, rough: float = 0.3) -> Tensor:
    """[1, S, S], 0..1, one area anywhere; sometimes a few."""
    radius = canvas.uniform(0, 1).pow(1.5) * (largest + 0.1) + 0.05
    sharp = _number(canvas, 0.02, 0.4)
    value = torch.full((1, canvas.size, canvas.size), -9.0, device=canvas.device)
    for _ in range(1 if canvas.rand(1) < 0.75 else _integer(canvas, 2, 4)):
        place = canvas.uniform(-0.85, 0.85), canvas.uniform(-0.85, 0.85)
        value = torch.maximum(value, canvas.blob(*place, radius, rough * _number(canvas, 0, 1.6), 1.0))
    return edge(value, sharp)


def _scratches(canvas: Canvas, count: int, width: float) -> Tensor:
    """[1, S, S], 0..1, thin curves."""
    if not count:
        return torch.zeros(1, canvas.size, canvas.size, device=canvas.device)
    steps = max(8, canvas.size // 2)
    along = torch.arange(steps, device=canvas.device) * (1.3 * canvas.pixel)
    length = _number(canvas, 0.1, 1) * float(along[-1])
    heading = canvas.uniform(0, 6.3, count, 1) + canvas.uniform(-2, 2, count, 1) * along
    heading = heading + 0.3 * (canvas.uniform(5, 25, count, 1) * along + canvas.uniform(0, 6, count, 1)).sin()
    x = canvas.uniform(-0.9, 0.9, count, 1) + 1.3 * canvas.pixel * heading.cos().cumsum(2)
    y = canvas.uniform(-0.9, 0.9, count, 1) + 1.3 * canvas.pixel * heading.sin().cumsum(2)
    there = (along < length).float() * canvas.uniform(0.4, 1, count, 1)
    radius = (width * canvas.uniform(0.5, 1, count, 1)).expand_as(x)
    return dots(canvas, x.flatten(1), y.flatten(1), radius.flatten(1), there.flatten(1))


def _shift(canvas: Canvas, difficulty: float) -> float:
    """Draw how much brighter or darker a defect is than what it lies on."""
    amount = _number(canvas, level(difficulty, 0.2, 0.07), level(difficulty, 0.6, 0.35))
    return amount if canvas.rand(1) < 0.5 else -amount


def _tinted(scene: Scene, cover: Tensor) -> Tensor:
    """A stain: more or less light in each channel."""
    canvas, image = scene.canvas, scene.image
    shift = _shift(canvas, scene.difficulty)
    if float(image.mean()) + shift > 0.95 or float(image.mean()) + shift < 0.05:
        shift = -shift
    colour = shift * (0.5 + canvas.rand(1, 3, 1, 1)) if canvas.rand(1) < 0.6 else shift
    return (image + cover[:, None] * colour).clamp(0, 1)


def _stain(scene: Scene) -> tuple[Tensor, Tensor]:
    cover = _spot(scene.canvas)
    return _tinted(scene, cover), cover


def _patch(scene: Scene) -> tuple[Tensor, Tensor]:
    """Another surface, in the same colours or in others."""
    canvas, image = scene.canvas, scene.image
    cover = _spot(canvas)
    other = list(SURFACES.values())[_integer(canvas, 0, len(SURFACES) - 1)](canvas)
    colours = scene.palette if canvas.rand(1) < 0.6 else _palette(canvas)
    opaque = cover[:, None] * _number(canvas, level(scene.difficulty, 0.8, 0.4), 1)
    return torch.lerp(image, _colour(other, colours), opaque), cover


def _scratch(scene: Scene) -> tuple[Tensor, Tensor]:
    canvas, image = scene.canvas, scene.image
    cover = _scratches(canvas, _integer(canvas, 1, 4), _number(canvas, 0.008, 0.035))
    light = 1.0 if canvas.rand(1) < 0.5 else 0.0
    light = 1 - light if abs(float(image.mean()) - light) < 0.25 else light
    opaque = cover * _number(canvas, level(scene.difficulty, 0.6, 0.25), 1)
    return image + opaque[:, None] * (light - image), cover


def _points(scene: Scene) -> tuple[Tensor, Tensor]:
    """Small spots, alone or in a swarm, of one to ten pixels."""
    canvas, image = scene.canvas, scene.image
    count = 1 + int(50 * _number(canvas, 0, 1) ** 3)
    # The first lies at the middle of the swarm, which is always in the image.
    spread = _number(canvas, 0.05, 0.5) * (torch.arange(count, device=canvas.device) > 0)
    x = _number(canvas, -0.8, 0.8) + spread * canvas.randn(1, count)
    y = _number(canvas, -0.8, 0.8) + spread * canvas.randn(1, count)
    inside = (x.abs() < 0.98) & (y.abs() < 0.98)
    radius = _number(canvas, 0.014, 0.07) * canvas.uniform(0.5, 1.3, count) * inside
    cover = dots(canvas, x, y, radius, 1.0)
    light = canvas.rand(1, 3, 1, 1) if canvas.rand(1) < 0.3 else float(canvas.rand(1) < 0.5)
    opaque = cover * _number(canvas, level(scene.difficulty, 0.6, 0.25), 1)
    return image + opaque[:, None] * (light - image), cover


def _missing(scene: Scene) -> tuple[Tensor, Tensor]:
    """A part is gone: what is behind shows, evenly."""
    canvas, image = scene.canvas, scene.image
    cover = _spot(canvas, 0.35, 0.4)
    behind = scene.palette[2] if canvas.rand(1) < 0.6 else scene.palette[0]
    return torch.lerp(image, behind.reshape(1, 3, 1, 1).expand_as(image), cover[:, None].expand_as(image)), cover


def _moved(scene: Scene) -> tuple[Tensor, Tensor]:
    """A piece of the same image, from elsewhere, perhaps turned: right in itself, wrong here."""
    canvas, image = scene.canvas, scene.image
    cover = _spot(canvas, 0.45)
    turned = image.flip(_integer(canvas, 2, 3)) if canvas.rand(1) < 0.5 else image.transpose(2, 3)
    offset = [_integer(canvas, canvas.size // 8, canvas.size * 7 // 8) for _ in range(2)]
    moved = torch.roll(turned, offset, (2, 3))
    return torch.lerp(image, moved, cover[:, None].expand_as(image)), cover


def _bent(scene: Scene) -> tuple[Tensor, Tensor]:
    """Pulled, twisted or wrinkled in one place."""
    canvas, image = scene.canvas, scene.image
    cover = _spot(canvas, 0.5, 0.1)
    strength = cover * _number(canvas, level(scene.difficulty, 0.08, 0.04), 0.2)
    cells = _number(canvas, 2, 7)
    x, y = canvas.x + strength * canvas.noise(cells), canvas.y + strength * canvas.noise(cells)
    grid = torch.stack([x, y], 3)
    return F.grid_sample(image, grid, padding_mode="reflection", align_corners=False), cover


def _blurred(scene: Scene) -> tuple[Tensor, Tensor]:
    canvas, image = scene.canvas, scene.image
    cover = _spot(canvas, 0.5)
    width = 2 * _integer(canvas, 2, max(3, canvas.size // 24)) + 1
    # Rows, then columns: a mean over a square in one pass costs its width times as much.
    soft = F.avg_pool2d(image, (width, 1), 1, (width // 2, 0), count_include_pad=False)
    soft = F.avg_pool2d(soft, (1, width), 1, (0, width // 2), count_include_pad=False)
    return torch.lerp(image, smooth(soft), cover[:, None].expand_as(image)), cover


def _roughened(scene: Scene) -> tuple[Tensor, Tensor]:
    canvas, image = scene.canvas, scene.image
    cover = _spot(canvas, 0.5)
    grain = canvas.grain() if canvas.rand(1) < 0.5 else canvas.noise(_number(canvas, 20, 60))
    amount = _number(canvas, level(scene.difficulty, 0.12, 0.05), 0.3)
    return image + (cover * grain)[:, None] * amount, cover


def _cracked(scene: Scene) -> tuple[Tensor, Tensor]:
    """Cracks that branch, within an area."""
    canvas, image = scene.canvas, scene.image
    cells = _number(canvas, 4, 12)
    lines = bump(canvas.noise(cells) + 0.2 * canvas.noise(4 * cells), _number(canvas, 0.06, 0.2))
    cover = lines * _spot(canvas, 0.6)
    light = 0.0 if float(image.mean()) > 0.3 else 1.0
    opaque = cover * _number(canvas, level(scene.difficulty, 0.8, 0.4), 1)
    return image + opaque[:, None] * (light - image), cover


DEFECTS: dict[str, Callable[[Scene], tuple[Tensor, Tensor]]] = {
    "stain": _stain,
    "foreign patch": _patch,
    "scratch": _scratch,
    "spots": _points,
    "missing part": _missing,
    "misplaced piece": _moved,
    "distortion": _bent,
    "blur": _blurred,
    "roughness": _roughened,
    "crack": _cracked,
}
"""What each defect is called, and how it is made."""
