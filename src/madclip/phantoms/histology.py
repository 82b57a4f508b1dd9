"""H&E stained tissue: lymph nodes, glands and stroma of any magnification; tumour in a region or all over the patch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from madclip.phantoms.fields import Canvas, Drawing, Finish, bump, edge, level, numbers

if TYPE_CHECKING:
    from torch import Tensor

NODE, GLANDS, STROMA = range(3)
VIEWS = ("lymph node", "glandular", "connective")

HAEMATOXYLIN, EOSIN = (0.62, 0.72, 0.30), (0.12, 0.80, 0.38)
"""Absorbance in red, green and blue at full concentration (about those of Ruifrok and Johnston, 2001)."""


@dataclass(frozen=True)
class Cells:
    """Nuclei of one patch, k of them.

    Attributes:
        x: Centres, [1, k], in pixels.
        y: Centres, [1, k], in pixels.
        radius: Mean radius in pixels, [1, k]; 0 where there is none.
        ratio: Root of the ratio of the axes, [1, k].
        angle: [1, k].
        dark: Haematoxylin, [1, k].
        pale: 0..1, how much of it lies at the membrane instead of inside, [1, k].
    """

    x: Tensor
    y: Tensor
    radius: Tensor
    ratio: Tensor
    angle: Tensor
    dark: Tensor
    pale: Tensor


def draw(canvas: Canvas, abnormal: Tensor, difficulty: float) -> Drawing:
    """A batch of patches.

    Args:
        canvas: To draw on.
        abnormal: [n] bool, which images hold tumour.
        difficulty: 0..1.
    """
    sick = abnormal[:, None, None]
    kind = canvas.choose(0.55, 0.25, 0.2)
    wave, middle, fine = canvas.noise(canvas.uniform(2, 6)), canvas.noise(canvas.uniform(9, 16)), canvas.noise(50)
    flow = canvas.noise(2)
    tumour = _region(canvas, middle, sick)
    gland = torch.where(kind == GLANDS, wave + 0.15 * middle + canvas.uniform(-0.4, 0.4), -2.0)
    # Lumens are empty; tumour closes them.
    lumen = edge(gland - canvas.uniform(0.5, 0.9), 0.2) * (1 - edge(tumour, 0.1) * canvas.chance(0.7))
    holes = _holes(canvas, kind, flow, middle) * (1 - edge(tumour, 0.1))
    empty = torch.maximum(lumen, holes)
    scale = canvas.uniform(0.012, 0.058) * canvas.size
    clots = canvas.noise(0.7 * canvas.size / scale.clamp_min(0.015 * canvas.size))
    nuclei, pale, inner = _nuclei(canvas, (kind, gland, tumour, empty, flow, clots), scale, difficulty)

    chromatin = (canvas.uniform(0.05, 0.3) * fine).add_(1)
    rim = bump(inner - 0.12, 0.22)
    clumps = edge(clots - 0.7, 0.6).mul_(edge(inner - 0.1, 0.1))
    hollow = clumps.mul_(canvas.uniform(0, 0.8)).add_(rim.sub_(1), alpha=0.65).mul_(pale)
    blue = hollow.add_(1).mul_(nuclei).mul_(chromatin)
    bodies = edge(tumour, 0.15)
    fibres = bump(canvas.noise(canvas.uniform(3, 8), canvas.uniform(12, 30)) + 0.5 * flow, 0.8)
    pink = (0.06 * middle).add_(canvas.uniform(0.25, 0.6)).add_(fine, alpha=0.04)
    pink.addcmul_(fibres.mul_(1 - bodies), torch.where(kind == NODE, 0.1, canvas.uniform(0.05, 0.5)))
    blood = edge(canvas.noise(canvas.uniform(20, 40)).sub_(0.6), 0.4)
    blood.mul_(edge(flow.flip(1).sub_(canvas.uniform(1.0, 2.2)), 0.3))
    pink.addcmul_(blood, canvas.uniform(0.2, 0.7))
    # Cytoplasm of tumour may be redder, greyer or clearer than its surroundings, by much or by nothing.
    strong = level(difficulty, 0.2, 0.12)
    pink.addcmul_(bodies, canvas.uniform(-strong, strong))
    thin = canvas.uniform(0, 0.18) + torch.where(kind == NODE, 0.06, 0.0)
    haze = bodies.mul_(canvas.uniform(-0.02, 0.12)).add_(thin)
    full = 1 - empty
    blue.addcmul_(haze, (0.2 * middle).add_(1)).mul_(full)
    pink.mul_(full).mul_(nuclei.clamp(max=1).mul_(-0.5).add_(1))

    image = _stain(canvas, blue, pink)
    mask = (tumour > 0) & sick
    attributes = [
        {"finding": "carcinoma" if k else "metastasis", "view": VIEWS[k], "brightness": None}
        for k in kind.flatten().tolist()
    ]
    finish = Finish(bias=0.06, noise=0.02, blur=1.0, gamma=0.2, contrast=0.2, brightness=0.03, marks=0.03, blocks=0.4)
    return Drawing(image, mask, attributes, finish)


def _region(canvas: Canvas, middle: Tensor, sick: Tensor) -> Tensor:
    """Positive in tumour: the whole patch, what lies on one side of a front, nests, or one focus."""
    shape = canvas.choose(0.42, 0.22, 0.16, 0.2)
    angle = canvas.uniform(0, 2 * math.pi)
    offset = canvas.uniform(-0.5, 0.5)
    tumour = torch.where(sick, 1.0, -1.0).expand_as(middle).contiguous()
    i = numbers(sick & (shape == 1))
    tumour[i] = (angle.cos() * canvas.x)[i] + (angle.sin() * canvas.y + offset)[i] + 0.15 * middle[i]
    i = numbers(sick & (shape == 2))
    nests = canvas.noise(canvas.uniform(3, 7), only=i)
    tumour[i] = nests - canvas.uniform(-0.5, 0.7)[i]
    i = numbers(sick & (shape == 3))
    cx, cy = canvas.uniform(-0.8, 0.8), canvas.uniform(-0.8, 0.8)
    tumour[i] = canvas.blob(cx, cy, canvas.uniform(0.25, 0.7), rough=0.3, only=i)
    return tumour


def _holes(canvas: Canvas, kind: Tensor, flow: Tensor, middle: Tensor) -> Tensor:
    """Fat cells, clefts and sinuses, and the edge of the section."""
    cells = bump(canvas.noise(canvas.uniform(5, 9)), canvas.uniform(0.12, 0.25))
    fat = (1 - cells) * edge(
        flow - torch.where(kind == STROMA, canvas.uniform(-0.5, 1.8), canvas.uniform(0.9, 2.5)), 0.2
    )
    cleft = edge(0.12 - (flow.flip(2) + 0.25 * middle + canvas.uniform(-2, 2)).abs(), 0.1) * canvas.chance(0.4)
    side = torch.where(canvas.chance(0.5), 1.0, -1.0)
    outside = edge(canvas.x * side + 0.1 * flow + 0.03 * middle - canvas.uniform(0.2, 1.0), 0.03) * canvas.chance(0.12)
    return torch.maximum(torch.maximum(fat, cleft), outside)


def _nuclei(
    canvas: Canvas, tissue: tuple[Tensor, ...], scale: Tensor, difficulty: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Haematoxylin of nuclei, how pale they are inside, and depth below their membrane; each [n, S, S]."""
    planes = []
    for i in range(canvas.n):
        one = Canvas(1, canvas.size, canvas.generator)
        fields = [field[i : i + 1] for field in tissue]
        planes.append(stamp(one, _cells(one, fields[:5], float(scale[i]), difficulty), fields[5]))
    dark, pale, inner = (torch.cat(parts) for parts in zip(*planes, strict=True))
    return dark, pale, inner


def _cells(canvas: Canvas, tissue: list[Tensor], radius: float, difficulty: float) -> Cells:
    """Where nuclei lie in one patch and how they look; `radius` is that of a lymphocyte in pixels."""
    kind, gland, tumour, empty, flow = tissue
    own = lattice(canvas, radius * float(canvas.uniform(1.75, 2.8) if int(kind) == NODE else canvas.uniform(2.4, 3.6)))
    growth = float(canvas.uniform(level(difficulty, 1.6, 1.25), level(difficulty, 2.4, 2.0)))
    alien = lattice(canvas, radius * growth * float(canvas.uniform(1.9, 2.8)))
    x, y = torch.cat([own[0], alien[0]], 1), torch.cat([own[1], alien[1]], 1)
    k, mine = x.shape[1], own[0].shape[1]
    foreign = torch.arange(k, device=canvas.device)[None] >= mine
    at = y.long().clamp(0, canvas.size - 1) * canvas.size + x.long().clamp(0, canvas.size - 1)
    within, hollow, shell, turn = (f.flatten(1).gather(1, at) for f in (tumour, empty, gland, flow))

    density = float(canvas.uniform(0.75, 1.0))
    if int(kind) == GLANDS:
        # Epithelium lines the lumen; few nuclei lie between glands.
        lined = (shell > 0.15) & (shell < 0.75)
        share = torch.where(lined, density, float(canvas.uniform(0.1, 0.35)))
    elif int(kind) == STROMA:
        share = torch.full_like(x, float(canvas.uniform(0.12, 0.5)))
    else:
        # Germinal centres and sinuses of a healthy node are paler and looser.
        share = density - 0.3 * edge(turn - float(canvas.uniform(0.5, 2.0)), 0.3)
    share = torch.where(foreign, float(canvas.uniform(0.7, 1.0)), share)
    # Lymphocytes also lie scattered within tumour.
    stray = torch.where(foreign, 0.0, float(canvas.uniform(0, 0.15)))
    share = torch.where((within > 0) == foreign, share, stray)
    here = (canvas.rand(1, k) < share) & (hollow < 0.4)

    centre = torch.where(foreign, False, turn > 0.9) & (int(kind) == NODE)
    size = torch.where(foreign, growth * (0.65 + 0.75 * canvas.rand(1, k)), 0.85 + 0.3 * canvas.rand(1, k))
    size = torch.where(centre, size * float(canvas.uniform(1.0, 1.3)), size)
    long = {NODE: 0.08, GLANDS: 0.2, STROMA: 0.6}[int(kind)]
    ratio = torch.where(foreign, float(canvas.uniform(0.05, 0.3)), long) * canvas.rand(1, k)
    follow = turn * 2 + float(canvas.uniform(0, math.pi)) + 0.3 * canvas.randn(1, k)
    angle = torch.where(foreign | (int(kind) == NODE), math.pi * canvas.rand(1, k), follow)
    dark = torch.where(foreign, float(canvas.uniform(0.7, 1.25)), float(canvas.uniform(1.0, 1.5)))
    dark = dark * (1 + 0.15 * canvas.randn(1, k)).clamp(0.5, 1.5)
    pale = torch.where(foreign, float(canvas.uniform(0.2, 1.0)), float(canvas.uniform(0.0, 0.35)))
    pale = torch.where(centre, pale + 0.3, pale)
    return Cells(x, y, size * radius * here, ratio.exp(), angle, dark, pale.clamp(max=1))


def lattice(canvas: Canvas, spacing: float) -> tuple[Tensor, Tensor]:
    """[1, k], points about `spacing` pixels apart, also a little outside the image."""
    count = math.ceil(canvas.size / (0.9 * spacing)) + 3
    rows, columns = torch.meshgrid(*[torch.arange(count, device=canvas.device)] * 2, indexing="ij")
    shifted = columns + 0.5 * (rows % 2)
    jitter = 0.55 * (canvas.rand(2, count, count) - 0.5) * 1.4
    offset = canvas.rand(2) - 1.5
    x, y = (shifted + jitter[0] + offset[0]) * spacing, (rows + jitter[1] + offset[1]) * spacing * 0.9
    return x.reshape(1, -1), y.reshape(1, -1)


def stamp(canvas: Canvas, cells: Cells, ragged: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nuclei of one patch: each pixel belongs to the nucleus in which it lies deepest."""
    size = canvas.size
    kept = cells.radius[0] > 0.3
    if not bool(kept.any()):
        blank = torch.zeros(1, size, size, device=canvas.device)
        return blank, blank, blank
    x, y, radius, ratio, angle, dark, pale = (value[0][kept] for value in vars(cells).values())
    reach = math.ceil(float((radius * torch.maximum(ratio, 1 / ratio)).max()) + 0.5)
    offsets = torch.arange(-reach, reach + 1, device=canvas.device)
    margin = 2 * reach + 1
    wide = size + 2 * margin
    column = (x.round() + margin).clamp(reach, wide - 1 - reach)
    row = (y.round() + margin).clamp(reach, wide - 1 - reach)
    dx, dy = (offsets + (x.round() - x)[:, None])[:, None, :], (offsets + (y.round() - y)[:, None])[:, :, None]
    cos, sin = (angle.cos() / radius)[:, None, None], (angle.sin() / radius)[:, None, None]
    across = (cos * dx + sin * dy) / ratio[:, None, None]
    down = (cos * dy - sin * dx) * ratio[:, None, None]
    depth = across.square_().add_(down.square_()).sqrt_().neg_().add_(1.2).clamp_(min=0)
    # Depth and number of the nucleus in one integer: the largest wins, whatever the order.
    number = torch.arange(len(x), device=canvas.device)[:, None, None]
    key = (depth * 4095).int() * 8192 + number.int()
    index = (row * wide + column).long()[:, None] + (offsets[:, None] * wide + offsets).flatten()
    plane = torch.zeros(wide * wide, dtype=torch.int32, device=canvas.device)
    plane.scatter_reduce_(0, index.flatten(), key.flatten(), "amax")
    inner = slice(margin, margin + size)
    best = plane.view(wide, wide)[inner, inner]
    owner = (best & 8191).long()
    value = (best >> 13).float().div_(4095).sub_(0.2)
    value.add_(ragged[0], alpha=float(canvas.uniform(0.02, 0.12)))
    soft = (1.2 / radius).clamp(0.08, 0.6)
    cover = edge(value, soft[owner]) * dark[owner] * (best > 0)
    return cover[None], pale[owner][None], value[None]


def _stain(canvas: Canvas, blue: Tensor, pink: Tensor) -> Tensor:
    """Light through the stains, [n, 3, S, S]; laboratories differ in hue and strength, lamps in colour."""
    image = blue.new_empty(canvas.n, 3, canvas.size, canvas.size)
    strength, share = canvas.uniform(0.75, 1.45), canvas.uniform(0.7, 1.4)
    for channel in range(3):
        haematoxylin = HAEMATOXYLIN[channel] * canvas.uniform(0.75, 1.25) * strength
        eosin = EOSIN[channel] * canvas.uniform(0.7, 1.25) * strength * share
        lamp = canvas.uniform(0.88, 1.0)
        plane = torch.mul(blue, -haematoxylin, out=image[:, channel])
        plane.addcmul_(pink, eosin, value=-1).exp_().mul_(lamp)
    return image
