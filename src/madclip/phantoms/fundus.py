"""Fundus photographs: disc, macula and a tree of vessels under any camera; the lesions of diabetic retinopathy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from madclip.phantoms.fields import Canvas, Drawing, Finish, bump, dots, edge, either, ellipse, level, numbers

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("retinopathy", "exudates", "haemorrhages", "microaneurysms")
RETINOPATHY, EXUDATES, HAEMORRHAGES, MICROANEURYSMS = range(4)
BRIGHTNESS = ("mixed", "bright", "dark", "dark")

MACULA = 0.62
"""From disc to macula, in radii of the field of view."""


@dataclass(frozen=True)
class Eye:
    """Where things are, in radii of the field of view unless said otherwise; the image may show a part of it.

    Attributes:
        x: Horizontal position of each pixel, [n, 1, S].
        y: Vertical position of each pixel, [n, S, 1].
        field: [n, S, S], 1 in the middle of the field of view, 0 on its edge.
        temple: [n, 1, 1], +1 where the macula lies right of the disc, else -1.
        disc: Centre (x, y), each [n, 1, 1].
        macula: Centre (x, y), each [n, 1, 1].
        zoom: Image units in one radius (across, down), each [n, 1, 1].
        shift: Centre of the field of view in the image (across, down), each [n, 1, 1].
    """

    x: Tensor
    y: Tensor
    field: Tensor
    temple: Tensor
    disc: tuple[Tensor, Tensor]
    macula: tuple[Tensor, Tensor]
    zoom: tuple[Tensor, Tensor]
    shift: tuple[Tensor, Tensor]


def draw(canvas: Canvas, abnormal: Tensor, difficulty: float) -> Drawing:
    """A batch of photographs.

    Args:
        canvas: To draw on.
        abnormal: [n] bool, which images get lesions.
        difficulty: 0..1.
    """
    eye = _eye(canvas)
    shade, fine = canvas.noise(2.5), canvas.noise(45)
    vessels, reflex = _vessels(canvas, eye)
    disc, cup, pale = _disc(canvas, eye, shade, fine)
    light = _light(canvas, eye, shade, fine)

    kind = canvas.choose(0.45, 0.22, 0.2, 0.13)
    sick = abnormal[:, None, None]
    ill = numbers(sick)
    free = edge(eye.field[ill] - 0.02, 0.01) * (1 - disc[ill]).clamp_(max=0.5).mul_(2)
    yellow, soft, blood = (part.mul_(free) for part in _lesions(canvas, eye, kind, difficulty, ill))

    colour, disc_colour, exudate = _colours(canvas)
    image = colour * light[:, None]
    image.addcmul_(disc_colour, (disc * (1 + 0.4 * cup) + 0.3 * pale * (1 - disc))[:, None])
    macula = bump(((eye.x - eye.macula[0]) ** 2 + (eye.y - eye.macula[1]) ** 2).sqrt_(), canvas.uniform(0.15, 0.34))
    # Haemoglobin takes green and blue; vessels, blood and the pigment of the macula differ in strength only.
    dark, strength = vessels, canvas.uniform(level(difficulty, 0.6, 0.2), 1)
    dark[ill] = torch.maximum(vessels[ill], strength[ill] * blood)
    dark.addcmul_(macula.mul_(canvas.uniform(0.1, 0.85)), 1 - dark)
    dye = torch.stack([canvas.uniform(*span) for span in ((0.12, 0.4), (0.32, 0.68), (0.25, 0.6))], 1)
    image.mul_((dye * dark[:, None]).neg_().add_(1))
    image.add_((reflex * canvas.uniform(0, 0.12))[:, None] * colour.new_tensor([1, 0.8, 0.6])[:, None, None])
    pale_share, share = (
        canvas.uniform(level(difficulty, 0.4, 0.15), 0.6),
        canvas.uniform(level(difficulty, 0.6, 0.3), 1),
    )
    spots = image[ill].lerp_(exudate[ill] * 0.92, (soft * pale_share[ill])[:, None])
    image[ill] = spots.lerp_(exudate[ill], (yellow * share[ill])[:, None])
    image = _camera(canvas, eye, image)

    mask = torch.zeros_like(dark, dtype=torch.bool)
    mask[ill] = (yellow > 0.3) | (soft > 0.35) | (blood > 0.3)
    attributes = [
        {"finding": KINDS[k], "brightness": BRIGHTNESS[k], "count": "multiple", "view": None}
        for k in kind.flatten().tolist()
    ]
    finish = Finish(bias=0.06, noise=0.025, blur=0.7, gamma=0.2, contrast=0.2, brightness=0.02, marks=0.08, blocks=0.25)
    return Drawing(image, mask, attributes, finish)


def _eye(canvas: Canvas) -> Eye:
    """A crop to the width of the field, a whole circle on black, or a part of it that fills the image."""
    crop = canvas.choose(0.45, 0.3, 0.25)
    across = torch.where(crop == 0, canvas.uniform(0.97, 1.03), canvas.uniform(0.8, 1.02))
    across = torch.where(crop == 2, canvas.uniform(1.1, 1.7), across)
    down = across * torch.where(crop == 0, canvas.uniform(1.0, 1.3), 1.0)
    shift = torch.where(crop == 0, 0.01, torch.where(crop == 1, 0.06, 0.2))
    dx, dy = shift * canvas.uniform(-1, 1), shift * canvas.uniform(-1, 1)
    x, y = (canvas.x - dx) / across, (canvas.y - dy) / down
    temple = torch.where(canvas.chance(0.5), 1.0, -1.0)
    # Centred on the macula, between, or on the disc.
    away = torch.where(canvas.chance(0.8), canvas.uniform(0.3, 0.85), canvas.uniform(-0.15, 0.3))
    disc = -temple * away, canvas.uniform(-0.18, 0.12)
    macula = disc[0] + temple * MACULA * canvas.uniform(0.9, 1.1), disc[1] + canvas.uniform(0, 0.15)
    return Eye(x, y, ellipse(x, y, 0, 0, 1, 1), temple, disc, macula, (across, down), (dx, dy))


def _paths(
    canvas: Canvas, start: tuple[Tensor, Tensor], angle: Tensor, bend: Tensor, steps: int, stride: float
) -> list[Tensor]:
    """Curves x, y and their direction, each [n, k, steps], that begin at a point [n, k] and turn as they go."""
    along = torch.arange(steps, device=canvas.device) * stride
    k = angle.shape[1]
    waves = canvas.uniform(4, 14, k, 1) * along + canvas.uniform(0, 6.3, k, 1)
    quick = canvas.uniform(15, 40, k, 1) * along + canvas.uniform(0, 6.3, k, 1)
    wobble = canvas.uniform(0, 0.35, k, 1) * waves.sin() + canvas.uniform(0, 0.25, k, 1) * quick.sin()
    # Turning fades, so that arcades become straight towards the rim.
    turned = bend[..., None] * (1 - (1 - along / 1.6).clamp_min(0).square()) * 0.8
    heading = angle[..., None] + turned + wobble
    x = start[0][..., None] + stride * heading.cos().cumsum(2)
    y = start[1][..., None] + stride * heading.sin().cumsum(2)
    return [x, y, heading]


def _vessels(canvas: Canvas, eye: Eye) -> tuple[Tensor, Tensor]:
    """Arteries and veins as trees from the disc, darkness 0..1, and the bright line along the widest."""
    n, temple = canvas.n, eye.temple[:, 0]
    vein = torch.tensor([1.0, 0.75] * 5, device=canvas.device)
    # Two arcades about the macula above and below, two trunks to the nose, one small pair across.
    out = torch.tensor([1.35, 1.5, -1.35, -1.5, 2.3, 2.1, -2.3, -2.1, 0.45, 2.9], device=canvas.device)
    turn = torch.tensor([-1.8, -2.0, 1.8, 2.0, 0.3, 0, -0.3, 0, -0.4, 0], device=canvas.device)
    out = out + 0.25 * canvas.randn(n, 10)
    turn = turn * canvas.uniform(0.6, 1.35, 1) + 0.25 * canvas.randn(n, 10)
    stride = 2 * canvas.pixel
    length = math.ceil(1.5 / stride)
    scatter = 0.02 * canvas.randn(2, n, 10)
    start = eye.disc[0][:, 0] * temple + scatter[0], eye.disc[1][:, 0] + scatter[1]
    size = canvas.uniform(0.009, 0.016, 1) * vein * torch.where(vein.new_tensor([*[1] * 8, 0.5, 0.5]) > 0.9, 1, 0.5)
    dark = canvas.uniform(0.7, 1, 1) * (0.75 + 0.25 * vein)
    trunk = _paths(canvas, start, out, turn, length, stride)
    planes = [_lines(canvas, eye, trunk, size, dark, 0.45)]
    reflex = _lines(canvas, eye, trunk, 0.3 * size, 1 - 0.6 * (vein > 0.9).float() + 0 * dark, 0.3)
    parent, width, shade, steps = trunk, size, dark, length
    for children, share in ((4, 0.9), (3, 0.4)):
        parent, width, shade, steps = _branches(canvas, parent, width, shade, (children, math.ceil(steps * share)))
        planes.append(_lines(canvas, eye, parent, width, shade, 0.6))
    return torch.maximum(planes[0], planes[1]).maximum(planes[2]), reflex * planes[0]


def _branches(
    canvas: Canvas, parent: list[Tensor], width: Tensor, shade: Tensor, plan: tuple[int, int]
) -> tuple[list[Tensor], Tensor, Tensor, int]:
    """`plan[0]` branches of `plan[1]` steps on every vessel."""
    children, steps = plan
    n, k, length = parent[0].shape
    at = (canvas.uniform(0.06, 0.8, k, children) * length).long()
    x, y, heading = (value.gather(2, at).flatten(1) for value in parent)
    away = canvas.uniform(0.4, 1.1, k * children) * torch.where(canvas.rand(n, k * children) < 0.5, 1, -1)
    bend = 0.4 * canvas.randn(n, k * children) - 0.8 * away
    paths = _paths(canvas, (x, y), heading + away, bend, steps, 1.3 * canvas.pixel)
    thin = width.repeat_interleave(children, 1) * canvas.uniform(0.35, 0.7, k * children)
    return paths, thin, shade.repeat_interleave(children, 1) * canvas.uniform(0.5, 0.95, k * children), steps


def _lines(canvas: Canvas, eye: Eye, path: list[Tensor], width: Tensor, dark: Tensor, taper: float) -> Tensor:
    """Paths as lines that get thinner; the trees are drawn for macula right of disc, then mirrored."""
    steps = path[0].shape[2]
    along = 1 - taper * torch.linspace(0, 1, steps, device=canvas.device)
    x = path[0].flatten(1) * eye.temple[:, 0] * eye.zoom[0][:, 0] + eye.shift[0][:, 0]
    y = path[1].flatten(1) * eye.zoom[1][:, 0] + eye.shift[1][:, 0]
    radius = (width[..., None] * along).flatten(1) * eye.zoom[0][:, 0]
    return dots(canvas, x, y, radius, (dark[..., None] * along.sqrt()).flatten(1))


def _disc(canvas: Canvas, eye: Eye, shade: Tensor, fine: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Optic disc 0..1, its cup, and the pale halo or crescent that many healthy eyes have beside it."""
    (cx, cy), radius = eye.disc, canvas.uniform(0.11, 0.16)
    value = ellipse(eye.x, eye.y, cx, cy, radius, radius * canvas.uniform(1, 1.15)) + 0.03 * shade
    disc = edge(value, canvas.uniform(0.1, 0.5)) * canvas.uniform(0.6, 1)
    dx = canvas.uniform(-0.2, 0.3) * radius * eye.temple
    cup = ellipse(eye.x, eye.y, cx + dx, cy, radius * canvas.uniform(0.3, 0.7), radius * canvas.uniform(0.3, 0.65))
    crescent = ellipse(eye.x, eye.y, cx + 0.35 * radius * eye.temple, cy, 1.25 * radius, 1.2 * radius)
    # Nerve fibres shine in streaks along the arcades.
    far = bump(value, 6.0) * edge(eye.temple * (eye.x - cx) + 0.3, 0.5)
    streaks = canvas.uniform(0, 0.35).clamp_min(0.05) * far * (1 + 0.5 * fine) * bump((eye.y - cy).abs() - 0.32, 0.3)
    pale = torch.where(canvas.chance(0.35), edge(crescent, 0.15) * canvas.uniform(0.2, 0.9), 0.0) + streaks
    return disc, edge(cup, canvas.uniform(0.3, 0.9)), pale


def _light(canvas: Canvas, eye: Eye, shade: Tensor, fine: Tensor) -> Tensor:
    """Illumination times the texture of retina and choroid."""
    tilt = canvas.uniform(-0.22, 0.22) * eye.x + canvas.uniform(-0.22, 0.22) * eye.y
    centre = canvas.uniform(0.4, 1.4) * eye.field.clamp_min(0)
    glow = 0.8 + canvas.uniform(0, 0.6) * centre * (1.5 - 0.5 * centre) + tilt + canvas.uniform(0, 0.1) * shade
    choroid = bump(canvas.noise(10).add_(canvas.noise(24), alpha=0.25), 0.7).sub_(0.4)
    choroid.mul_(canvas.uniform(-0.06, 0.18)).mul_(edge(canvas.noise(2), 2))
    glow = choroid.add_(glow).addcmul_(fine, canvas.uniform(0, 0.05))
    weak = canvas.uniform(0, 0.05)
    glow.addcmul_(canvas.noise(20), weak)
    distance = ((eye.x - eye.macula[0]) ** 2 + (eye.y - eye.macula[1]) ** 2).sqrt_()
    # Young retinas shine in a ring about the macula, and a spark in its middle.
    ring = bump(distance - canvas.uniform(0.14, 0.24), 0.07) * canvas.uniform(-0.3, 0.1).clamp_min(0)
    spark = bump(distance, 0.025) * canvas.uniform(-0.4, 0.5).clamp_min(0)
    return glow.add_(ring.mul_((0.3 * fine).add_(1))).add_(spark).clamp_min_(0.1)


def _colours(canvas: Canvas) -> tuple[Tensor, Tensor, Tensor]:
    """[n, 3, 1, 1] of retina, of what the disc adds, of exudates."""
    red = canvas.uniform(0.32, 0.85, 1, 1, 1)
    green = red * canvas.uniform(0.33, 0.62, 1, 1, 1)
    blue = green * torch.where(canvas.chance(0.7), canvas.uniform(0, 0.3), canvas.uniform(0.3, 0.75))[..., None]
    retina = torch.cat([red, green, blue], 1)
    gain = canvas.uniform(0.2, 0.5, 1, 1, 1)
    disc = torch.cat([gain * 0.9, gain, canvas.uniform(0.1, 0.8, 1, 1, 1) * gain], 1)
    bright = (red * 1.1 + 0.12).clamp(max=1)
    exudate = torch.cat(
        [bright, bright * canvas.uniform(0.7, 0.95, 1, 1, 1), blue + canvas.uniform(0, 0.15, 1, 1, 1) * bright], 1
    )
    return retina, disc, exudate


def _lesions(canvas: Canvas, eye: Eye, kind: Tensor, difficulty: float, ill: Tensor) -> list[Tensor]:
    """Hard exudates, cotton wool spots and blood in the images with lesions, each 0..1 in [k, S, S]."""

    def some(low: float, high: float) -> Tensor:
        return canvas.uniform(low, high)[ill]

    fine = canvas.noise(canvas.uniform(55, 110), only=ill)
    middle = canvas.noise(canvas.uniform(18, 40), only=ill)
    cx, cy = canvas.place(edge(eye.field - 0.15, 0.1))
    group = canvas.blob(cx, cy, canvas.uniform(0.12, 0.6), rough=0.5, only=ill)
    # Exudates lie in a patch, in a ring about a leak, or far apart.
    ring = 1 - (group - 0.15).abs_() / some(0.15, 0.3)
    where = either(canvas.chance(0.35)[ill], ring, group).clamp_(-2, 1)
    many = some(-0.6, 1.1) - level(difficulty, 0, 0.25) - 2.2
    hard = where.mul_(1.2).add_(fine, alpha=0.75).addcmul_(middle, some(0, 0.6)).add_(many)
    width, shown = some(0.3, 0.9), (kind == RETINOPATHY) & canvas.chance(0.85) | (kind == EXUDATES)
    hard = edge(hard, width).mul_(shown[ill])

    cotton = canvas.noise(canvas.uniform(9, 16), only=ill).add_(fine, alpha=0.25).sub_(some(1.9, 2.8))
    shown = (kind == RETINOPATHY) & canvas.chance(0.4) | (kind == EXUDATES) & canvas.chance(0.15)
    cotton = edge(cotton, 1.2).mul_(shown[ill])

    bleeds = canvas.uniform(16, 40)
    spread = canvas.noise(bleeds, bleeds * canvas.uniform(0.6, 1.3), only=ill).add_(fine, alpha=0.35)
    spread.add_(canvas.noise(2.5, only=ill), alpha=0.7).sub_(some(2.1, level(difficulty, 2.5, 3.0)))
    bled = (kind == RETINOPATHY) & canvas.chance(0.8) | (kind == HAEMORRHAGES)
    blots = edge(spread, some(0.4, 1.3)).mul_(bled[ill])
    return [hard, cotton, torch.maximum(blots, _microaneurysms(canvas, eye, kind, difficulty)[ill])]


def _microaneurysms(canvas: Canvas, eye: Eye, kind: Tensor, difficulty: float) -> Tensor:
    """Red dots of one to four pixels, anywhere or near a place."""
    most = 60
    number = canvas.uniform(0, 1, 1).square() * most + level(difficulty, 12, 5)
    there = (kind != EXUDATES)[:, 0] & (torch.arange(most, device=canvas.device) < number)
    near = torch.where(canvas.chance(0.5)[:, 0], 0.9, canvas.uniform(0.15, 0.5, 1))
    x, y = (canvas.randn(canvas.n, most) * near).clamp(-0.95, 0.95), (canvas.randn(canvas.n, most) * near)
    x, y = x + canvas.uniform(-0.4, 0.4, 1) * (near < 0.9), y.clamp(-0.95, 0.95)
    radius = canvas.uniform(0.004, 0.014, most) * canvas.uniform(0.8, 1.4, 1)
    across, down = x * eye.zoom[0][:, 0] + eye.shift[0][:, 0], y * eye.zoom[1][:, 0] + eye.shift[1][:, 0]
    return dots(canvas, across, down, radius, there * canvas.uniform(0.5, 1, most))


def _camera(canvas: Canvas, eye: Eye, image: Tensor) -> Tensor:
    """Black outside the field of view, with a notch on some; haze at the rim, dust on the lens."""
    rim = canvas.uniform(-0.3, 0.5).clamp_min(0) * bump(eye.field, canvas.uniform(0.06, 0.25))
    haze = torch.stack([canvas.uniform(0.3, 0.8), canvas.uniform(0.25, 0.7), canvas.uniform(0.05, 0.6)], 1)
    image.lerp_(haze, rim[:, None])
    dust = dots(canvas, canvas.uniform(-1, 1, 4), canvas.uniform(-1, 1, 4), canvas.uniform(0.02, 0.06, 4), 1.0)
    image.add_((dust * canvas.uniform(-0.1, 0.05).clamp_min(0))[:, None])
    inside = edge(eye.field, canvas.uniform(0.005, 0.03))
    side = torch.where(canvas.chance(0.7), 1.0, -1.0)
    notch = (eye.x * side > canvas.uniform(0.78, 0.84)) & ((eye.y - canvas.uniform(-0.7, -0.35)).abs() < 0.035)
    inside.mul_(~(notch & canvas.chance(0.5)))
    # Some cameras leave a few grey levels outside.
    black = torch.cat([canvas.uniform(0, 0.03), canvas.uniform(0, 0.02), canvas.uniform(0, 0.02)], 1)[..., None]
    return torch.lerp(black.expand_as(image), image, inside[:, None].expand_as(image))
