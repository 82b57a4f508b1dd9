"""Retinal OCT: B-scans with layers, fovea, speckle and the shadows of vessels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from madclip.phantoms.fields import Canvas, Drawing, Finish, bump, edge, level, numbers, paint, smooth

if TYPE_CHECKING:
    from torch import Tensor

KINDS = ("intraretinal fluid", "subretinal fluid", "drusen", "detachment", "neovascularisation")
INTRARETINAL, SUBRETINAL, DRUSEN, DETACHMENT, CNV = range(5)
BINS = 192


@dataclass(frozen=True)
class Retina:
    """Curves [n, 1, S] over the columns, in image coordinates (down is positive).

    Attributes:
        top: Inner limiting membrane.
        bottom: Where the photoreceptors end.
        pigment: Pigment epithelium.
        bed: Bruch's membrane: where the pigment epithelium lies in a healthy eye.
        pit: 0..1, how much of the inner layers is missing at the fovea.
    """

    top: Tensor
    bottom: Tensor
    pigment: Tensor
    bed: Tensor
    pit: Tensor


def draw(canvas: Canvas, abnormal: Tensor, difficulty: float) -> Drawing:
    """A batch of B-scans.

    Args:
        canvas: To draw on.
        abnormal: [n] bool, which images get a finding.
        difficulty: 0..1.
    """
    kind = canvas.choose(0.3, 0.2, 0.2, 0.12, 0.18)
    sick = abnormal[:, None, None]
    retina, at = _retina(canvas, kind, sick, difficulty)
    y = canvas.y
    thickness = (retina.bottom - retina.top).clamp_min(0.02)
    depth = (y - retina.top) / thickness
    layers = _layers(canvas, depth, retina.pit)
    image, below = _back_of_the_eye(canvas, retina, layers)

    cystic = numbers((kind == INTRARETINAL) & sick)
    wet = _intraretinal(canvas, depth, at, cystic)
    image[cystic] *= 1 - canvas.uniform(level(difficulty, 0.8, 0.5), 0.97)[cystic] * wet
    gap = edge(y - retina.bottom, 0.012).mul_(edge(retina.pigment - y, 0.012))
    lifted = edge(y - (retina.pigment + 0.012), 0.015).mul_(edge(retina.bed - y, 0.02))
    content = torch.where(kind == DRUSEN, 0.45, torch.where(kind == CNV, 0.65, canvas.uniform(0.05, 0.35)))
    speckled = canvas.noise(24).mul_(0.3).add_(1)
    image.lerp_(content * speckled, lifted)
    # Blood and tissue under the retina are as uneven as what lifts it, fluid is even.
    solid, even = canvas.uniform(0.05, 0.6), canvas.uniform(0.02, 0.09)
    murky = speckled.mul_(torch.where(kind == CNV, solid, 0.0)).add_(torch.where(kind == CNV, 0.0, even))
    image.lerp_(murky, gap)
    fluid = (y > retina.bottom) & (y < retina.pigment) & (retina.pigment - retina.bottom > 1.5 * canvas.pixel)
    raised = (y > retina.pigment - 0.01) & (y < retina.bed) & (retina.bed - retina.pigment > 2 * canvas.pixel)
    mask = (fluid | raised) & sick
    mask[cystic] = wet > 0.5

    image.mul_(_shadows(canvas, retina)).add_(below)
    image = _speckle(canvas, image, difficulty)
    image = _margins(canvas, image)
    attributes = [
        {"finding": KINDS[k], "brightness": ("dark", "dark", "bright", "mixed", "bright")[k], "view": None}
        for k in kind.flatten().tolist()
    ]
    finish = Finish(0.08, 0.02, 0.9, gamma=0.35, contrast=0.25, brightness=0.04, marks=0.2)
    return Drawing(image[:, None], mask, attributes, finish)


def _retina(canvas: Canvas, kind: Tensor, sick: Tensor, difficulty: float) -> tuple[Retina, Tensor]:
    """The curves of the retina with its deformation, and the column [n, 1, 1] of the finding."""
    x = canvas.x
    fovea = canvas.uniform(-0.5, 0.5)
    bed = canvas.uniform(0.0, 0.5) + canvas.uniform(-0.3, 0.3) * x + canvas.uniform(-0.25, 0.3) * x * x
    bed = bed + canvas.uniform(0, 0.02) * canvas.curve(5)
    thick = canvas.uniform(0.28, 0.7) * (1 + canvas.uniform(-0.15, 0.15) * x + 0.03 * canvas.curve(6))
    # A third of all scans miss the fovea.
    pit = bump(x - fovea, canvas.uniform(0.15, 0.4)) * canvas.uniform(0.3, 1) * canvas.chance(0.67)
    at = torch.where(canvas.chance(0.5), fovea, canvas.uniform(-0.75, 0.75))
    height = canvas.uniform(level(difficulty, 0.1, 0.03), level(difficulty, 0.3, 0.16))
    dome = bump(x - at, canvas.uniform(0.15, 0.6)) * (1 + 0.15 * canvas.curve(8))
    swelling = torch.where(kind == INTRARETINAL, canvas.uniform(0.1, 1) * height, 0.0) * dome * sick
    bumps = (canvas.curve(18) + 0.5 * canvas.curve(30) - canvas.uniform(0.2, 1.0)).clamp_min(0)
    bumps = canvas.uniform(level(difficulty, 0.04, 0.02), 0.08) * bumps.clamp(max=2) * bump(x - at, 1.2)
    drusen = torch.where(kind == DRUSEN, bumps, 0.0)
    rough = (1 + 0.35 * canvas.curve(14)).clamp_min(0.1)
    detached = torch.where(kind == DETACHMENT, dome * height, 0.0) + torch.where(
        kind == CNV, dome * rough * height, 0.0
    )
    pigment = bed - (drusen + detached).clamp_min(0) * sick
    fluid = torch.where(kind == SUBRETINAL, height * dome, 0.0) + torch.where(kind == CNV, 0.4 * height * dome, 0.0)
    bottom = pigment - fluid.clamp_min(0) * sick
    top = bottom - thick * (1 - 0.6 * pit) - swelling
    return Retina(top, bottom, pigment, bed, pit * (1 - 0.7 * (swelling > 0.02))), at


def _layers(canvas: Canvas, depth: Tensor, pit: Tensor) -> Tensor:
    """Brightness between vitreous and photoreceptors, by depth 0..1."""
    u = torch.linspace(0, 1, BINS, device=canvas.device)[None]

    def band(at: float, width: float, low: float, high: float) -> Tensor:
        shifted = at + 0.015 * canvas.randn(canvas.n, 1)
        return canvas.uniform(low, high, 1) * bump(u - shifted, width * canvas.uniform(0.8, 1.25, 1))

    table = canvas.uniform(0.12, 0.25, 1) + band(0.05, 0.12, 0.25, 0.65) + band(0.24, 0.15, 0.1, 0.3)
    table = table - band(0.41, 0.07, 0.03, 0.12) + band(0.51, 0.06, 0.08, 0.3) - band(0.66, 0.14, 0.04, 0.14)
    table = table + band(0.8, 0.025, 0.0, 0.2) + band(0.89, 0.04, 0.3, 0.7) + band(0.99, 0.04, 0.0, 0.3)
    # At the fovea the inner half of the retina is missing, so its surface is already the outer half.
    shown = torch.lerp(depth, 0.45 + 0.55 * depth, pit)
    index = shown.clamp_(0, 1).mul_(BINS - 1).long()
    inside = edge(depth, 0.03).mul_(edge(1.02 - depth, 0.03))
    return inside.mul_(table.clamp_min(0.02).gather(1, index.flatten(1)).view_as(depth))


def _back_of_the_eye(canvas: Canvas, retina: Retina, layers: Tensor) -> tuple[Tensor, Tensor]:
    """The scan with pigment epithelium and choroid, and the faint light of the vitreous."""
    y = canvas.y
    under = y - retina.pigment
    strength = canvas.uniform(0.55, 1)
    pigment = bump(under, canvas.uniform(0.018, 0.035)).mul_(strength)
    deep = y - retina.bed
    fade = (deep / canvas.uniform(0.2, 0.7)).neg_().add_(1).clamp_(0, 1)
    holes = edge(canvas.noise(16, 22) - canvas.uniform(0.0, 0.9), 0.6)
    choroid = edge(deep, 0.02).mul_(canvas.uniform(0.15, 0.5)).mul_(fade)
    choroid.mul_(holes.mul_(-canvas.uniform(0.1, 0.6)).add_(1))
    # Some vitreous bodies show a thin membrane above the retina: normal with age.
    line = retina.bed - canvas.uniform(0.4, 0.9) - 0.05 * canvas.curve(3)
    membrane = bump(line - y, 0.012).mul_(edge(retina.top - y, 0.01)).mul_(canvas.uniform(-0.4, 0.3).clamp_min(0))
    return torch.maximum(layers, pigment).maximum(choroid), membrane.add_(canvas.uniform(0.0, 0.07))


def _intraretinal(canvas: Canvas, depth: Tensor, at: Tensor, cystic: Tensor) -> Tensor:
    """Cysts between the layers near a column in the images that have them, 0..1."""
    cells = canvas.uniform(8, 22)
    # The threshold rises away from the middle, so cysts get smaller there instead of being cut.
    layer, depth = canvas.uniform(0.25, 0.65), depth[cystic]
    near = bump(canvas.x - at, canvas.uniform(0.2, 0.7))[cystic]
    far = 1 - near * bump(depth - layer[cystic], canvas.uniform(0.25, 0.5)[cystic])
    bubbles = canvas.noise(cells, cells * canvas.uniform(0.7, 1.2), only=cystic)
    bubbles.sub_(canvas.uniform(-1.3, 0.2)[cystic]).add_(far, alpha=-2.5)
    return edge(bubbles, 0.3) * edge(depth - 0.06, 0.05) * edge(0.92 - depth, 0.04)


def _shadows(canvas: Canvas, retina: Retina) -> Tensor:
    """Vessels of the inner retina throw vertical shadows; a lid or an opacity darkens broad ones."""
    columns = edge(canvas.curve(26) - 1.4, 0.5)
    broad = (1 + canvas.uniform(0, 0.35) * canvas.curve(3)).clamp(0.3, 1.5)
    below = edge(canvas.y - (retina.top + 0.05), 0.06)
    return below.mul_(-canvas.uniform(0, 0.6) * columns).add_(1).mul_(broad)


def _speckle(canvas: Canvas, image: Tensor, difficulty: float) -> Tensor:
    grain = canvas.grain()
    grain.lerp_(smooth(grain).mul_(2.2), canvas.uniform(0, 1))
    strength, dust = canvas.uniform(0.08, level(difficulty, 0.3, 0.5)), canvas.uniform(0, 0.06)
    image = image.mul_(grain.mul_(strength).add_(1)).clamp_(min=0)
    return image.addcmul_(canvas.rand(canvas.n, canvas.size, canvas.size), dust)


def _margins(canvas: Canvas, image: Tensor) -> Tensor:
    """White or black wedges where an export was turned to level the retina, and cropped sides."""
    slope, inset = canvas.uniform(-0.3, 0.3), canvas.uniform(0.75, 1.0)
    i, light = numbers(canvas.chance(0.2)), canvas.chance(0.7).float()
    wedge = edge(canvas.y.abs() + slope[i] * canvas.x * canvas.y.sign() - inset[i], 0.01)
    image[i] = paint(image[i], wedge, light[i])
    return image
