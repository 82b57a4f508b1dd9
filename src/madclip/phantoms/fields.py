"""What phantoms are drawn with: seeded numbers, smooth fields, poses, lesions, and the faults of every scanner."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ALL = slice(None)
"""All images of a batch."""

BANDS = 5
"""Bands of rows in which noise of many cells is drawn."""

SPLINE_STD = 0.4793
"""Standard deviation of a 2-D cubic B-spline through unit normal knots, averaged over positions."""


@dataclass(frozen=True)
class Canvas:
    """A batch to draw on, with its own random numbers.

    Positions are in -1..1 from left to right and from top to bottom, so a radius of 1 is half an image. What is drawn
    per image has shape [n, 1, 1] and broadcasts over [n, size, size].
    """

    n: int
    size: int
    generator: torch.Generator

    @property
    def device(self) -> torch.device:
        """Where everything is drawn."""
        return self.generator.device

    @property
    def x(self) -> Tensor:
        """[1, 1, size], the columns."""
        return _axis(self.size, self.device)[None, None, :]

    @property
    def y(self) -> Tensor:
        """[1, size, 1], the rows."""
        return _axis(self.size, self.device)[None, :, None]

    @property
    def pixel(self) -> float:
        """Width of a pixel."""
        return 2 / self.size

    def rand(self, *shape: int) -> Tensor:
        """Uniform numbers in 0..1 of exactly this shape."""
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def randn(self, *shape: int) -> Tensor:
        """Normal numbers of exactly this shape."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """[n, *shape], or [n, 1, 1] where no shape is given."""
        return low + (high - low) * self.rand(self.n, *(shape or (1, 1)))

    def chance(self, probability: float) -> Tensor:
        """[n, 1, 1] bool."""
        return self.rand(self.n, 1, 1) < probability

    def choose(self, *weights: float) -> Tensor:
        """[n, 1, 1] int64: an index into the weights."""
        edges = torch.tensor(weights, device=self.device).cumsum(0)
        return torch.bucketize(self.rand(self.n, 1, 1) * edges[-1], edges[:-1], right=True)

    def grain(self) -> Tensor:
        """[n, size, size], independent normal numbers at every pixel."""
        return self.randn(self.n, self.size, self.size)

    def noise(self, cells: float | Tensor, cells_y: float | Tensor | None = None, only: Tensor | slice = ALL) -> Tensor:
        """[n, size, size], a smooth field of mean 0 and deviation 1; [k, size, size] of `only` k images.

        Args:
            cells: Bumps from left to right: a number, or one for each image [n, 1, 1].
            cells_y: Bumps from top to bottom; as `cells` where None.
            only: Numbers of the images that are wanted; random numbers are drawn for all.
        """
        cells_y = cells if cells_y is None else cells_y
        rows = self._spline(cells_y)
        rows, across = rows[only], self._knots(rows.shape[2], cells, only)
        if rows.shape[2] <= 2 * BANDS:
            return torch.bmm(rows, across)
        # Only some of the knots reach a band of rows; most products with the others would be with 0.
        field = across.new_empty(len(rows), self.size, self.size)
        fewest, most = _range(cells_y)
        height = math.ceil(self.size / BANDS)
        for top in range(0, self.size, height):
            stop = min(top + height, self.size)
            knots = slice(int(top / self.size * fewest), math.ceil(stop / self.size * most) + 4)
            torch.bmm(rows[:, top:stop, knots], across[:, knots], out=field[:, top:stop])
        return field

    def curve(self, cells: float) -> Tensor:
        """[n, 1, size], a smooth function of the column, mean 0 and deviation 1."""
        rows = self._spline(0.01)
        return torch.bmm(rows[:, :1], self._knots(rows.shape[2], cells))

    def _knots(self, rows: int, cells: float | Tensor, only: Tensor | slice = ALL) -> Tensor:
        """[n, rows, size], random knots that are smooth from left to right."""
        columns = self._spline(cells)
        knots = self.randn(self.n, rows, columns.shape[2]) / SPLINE_STD
        return torch.bmm(knots[only], columns[only].transpose(1, 2))

    def fractal(self, cells: float, octaves: int, gain: float = 0.5) -> Tensor:
        """[n, size, size], noise at doubling frequencies, deviation about 1."""
        total = self.noise(cells)
        for octave in range(1, octaves):
            total = total + gain**octave * self.noise(cells * 2**octave)
        return total / math.sqrt(sum(gain ** (2 * octave) for octave in range(octaves)))

    def _spline(self, cells: float | Tensor) -> Tensor:
        """[n or 1, size, knots], weights of cubic B-splines at every pixel."""
        count = cells.reshape(-1, 1, 1) if isinstance(cells, Tensor) else cells
        knots = torch.arange(math.ceil(_range(cells)[1]) + 4, device=self.device)
        # A shift of the knots for each image, so that no grid stays at the same place.
        at = (_axis(self.size, self.device)[None, :, None] + 1) / 2 * count + 1 + self.rand(self.n, 1, 1)
        distance = (at - knots).abs_()
        near = (1 - distance).clamp_(min=0).pow_(3)
        return distance.neg_().add_(2).clamp_(min=0).pow_(3).sub_(near, alpha=4).div_(6)

    def pose(
        self,
        rotate: float = 0.15,
        zoom: tuple[float, float] = (0.9, 1.15),
        shift: float = 0.08,
        warp: float = 0.03,
        stretch: float = 0.08,
    ) -> tuple[Tensor, Tensor]:
        """Coordinates x, y [n, size, size] of a body that lies a little differently in every image.

        Args:
            rotate: Largest angle in radians.
            zoom: Range of magnification: above 1 the body is larger.
            shift: Largest shift on either axis.
            warp: Deviation of a smooth deformation.
            stretch: Largest relative difference of the two axes.
        """
        angle = self.uniform(-rotate, rotate)
        scale = self.uniform(*zoom)
        ratio = 1 + self.uniform(-stretch, stretch)
        x, y = self.x - self.uniform(-shift, shift), self.y - self.uniform(-shift, shift)
        across = angle.cos() / (scale * ratio) * x - angle.sin() / (scale * ratio) * y
        down = angle.sin() * ratio / scale * x + angle.cos() * ratio / scale * y
        if warp:
            across, down = across.add_(self.noise(3), alpha=warp), down.add_(self.noise(3), alpha=warp)
        return across, down

    def place(self, region: Tensor) -> tuple[Tensor, Tensor]:
        """A point of each image, anywhere in its region: cx, cy [n, 1, 1].

        Args:
            region: [n, size, size], positive where the point may lie; where it is nowhere, anywhere.
        """
        step = max(1, self.size // 48)
        coarse = region.expand(self.n, self.size, self.size)[:, ::step, ::step] > 0.5
        index = (coarse.flatten(1).float() + 1e-3).mul(self.rand(self.n, coarse[0].numel())).argmax(1)
        rows, columns = index // coarse.shape[2], index % coarse.shape[2]
        half = step * self.pixel / 2
        cx = columns.float() * step * self.pixel - 1 + half + self.uniform(-half, half, 1)[:, 0]
        cy = rows.float() * step * self.pixel - 1 + half + self.uniform(-half, half, 1)[:, 0]
        return cx.reshape(-1, 1, 1), cy.reshape(-1, 1, 1)

    def blob(
        self,
        cx: Tensor,
        cy: Tensor,
        radius: Tensor,
        rough: float = 0.3,
        elongation: float = 0.5,
        only: Tensor | slice = ALL,
    ) -> Tensor:
        """[n, size, size], positive inside a lesion of any outline, 1 at its centre, 0 on its edge.

        Args:
            cx: Centre, [n, 1, 1].
            cy: Centre, [n, 1, 1].
            radius: Mean radius, [n, 1, 1].
            rough: Deviation of the outline in radii: 0 is an ellipse, above 0.4 pieces may come off.
            elongation: Largest logarithm of the ratio of the axes.
            only: As for `noise`.
        """
        angle, ratio = self.uniform(0, math.pi), (self.uniform(-elongation, elongation) / 2).exp()
        x, y = (self.x - cx) / radius, (self.y - cy) / radius
        across = (angle.cos() * ratio * x)[only] - (angle.sin() * ratio * y)[only]
        down = (angle.sin() / ratio * x)[only] + (angle.cos() / ratio * y)[only]
        value = across.square_().addcmul_(down, down).sqrt_().neg_().add_(1)
        if rough:
            outline = self.noise((1.6 / radius).clamp(3, 40), only=only)
            value.addcmul_(outline, (1.5 + value).clamp_(0, 1), value=rough)
        return value


@dataclass(frozen=True)
class Finish:
    """How strongly an image is degraded and marked after it is drawn; each is the top of a range.

    Attributes:
        bias: Deviation of the logarithm of a smooth gain.
        noise: Deviation of noise in grey levels of 0..1.
        blur: Share of a binomial 3 x 3 mean that is mixed in (up to 1), twice.
        gamma: Largest logarithm of the exponent.
        contrast: Largest logarithm of the factor about mid-grey.
        brightness: Largest shift.
        marks: Probability of letters, rulers, callipers or arrows.
        blocks: Probability of JPEG-like blocks.
    """

    bias: float = 0.1
    noise: float = 0.03
    blur: float = 0.8
    gamma: float = 0.2
    contrast: float = 0.15
    brightness: float = 0.05
    marks: float = 0.3
    blocks: float = 0.15


@dataclass(frozen=True)
class Drawing:
    """What a modality drew.

    Attributes:
        image: [n, 1 or 3, size, size] float32, 0..1 (what lies outside is clipped).
        mask: [n, size, size] bool; empty where the image is normal.
        attributes: One dictionary for each image: `finding`, `brightness`, `view`, ... (see `captions`); side, height
            and size are measured on the mask afterwards where a modality does not give them.
        finish: What is done to the image next.
    """

    image: Tensor
    mask: Tensor
    attributes: list[dict[str, Any]]
    finish: Finish = field(default_factory=Finish)


def edge(value: Tensor, width: float | Tensor) -> Tensor:
    """0 below -width / 2, 1 above width / 2, smooth between: the cheap sigmoid of all outlines."""
    t = (value / width).clamp_(-0.5, 0.5)
    slope = torch.addcmul(_constant(1.5, t.device), t, t, value=-2)
    return torch.addcmul(_constant(0.5, t.device), slope, t, out=slope)


def bump(value: Tensor, width: float | Tensor) -> Tensor:
    """1 at value 0, falling smoothly to 0 at +-width: the cheap bell of all lines."""
    t = value / width
    return torch.addcmul(_constant(1.0, t.device), t, t, value=-1, out=t).clamp_(min=0).square_()


def ellipse(
    x: Tensor, y: Tensor, cx: float | Tensor, cy: float | Tensor, rx: float | Tensor, ry: float | Tensor
) -> Tensor:
    """1 at the centre, 0 on the edge, negative outside."""
    across, down = _radii(x, cx, rx).square_(), _radii(y, cy, ry).square_()
    total = across.add_(down) if across.shape == down.shape else across + down
    return total.sqrt_().neg_().add_(1)


def _radii(x: Tensor, centre: float | Tensor, radius: float | Tensor) -> Tensor:
    """Distance from a centre in radii, in memory of its own."""
    if not isinstance(centre, Tensor) and centre == 0:
        return x / radius
    away = x - centre
    if isinstance(radius, Tensor) and radius.shape[0] > away.shape[0]:
        return away / radius
    return away.div_(radius)


def smooth(image: Tensor) -> Tensor:
    """[..., H, W], binomial mean over 3 x 3; edges stay."""
    return _smooth_rows(_smooth_rows(image).transpose(-1, -2)).transpose(-1, -2).mul_(1 / 16)


def _smooth_rows(image: Tensor) -> Tensor:
    """Four times the binomial mean over three rows: sums of neighbours, twice, have its weights."""
    result = torch.empty_like(image)
    pairs = image[..., :-1, :] + image[..., 1:, :]
    torch.add(pairs[..., :-1, :], pairs[..., 1:, :], out=result[..., 1:-1, :])
    torch.mul(image[..., :: image.shape[-2] - 1, :], 4, out=result[..., :: image.shape[-2] - 1, :])
    return result


def paint(image: Tensor, cover: Tensor, value: float | Tensor) -> Tensor:
    """The image with a value over it, as opaque as `cover` says."""
    colour = value if isinstance(value, Tensor) else _constant(value, image.device)
    return torch.lerp(image, colour.expand_as(image), cover.expand_as(image))


def either(condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """`torch.where` for a condition [n, 1, 1] and finite images [n, S, S]: a quarter of its time."""
    return torch.lerp(no, yes, condition.to(no.dtype))


def numbers(chosen: Tensor) -> Tensor:
    """[k], the numbers of the images chosen by [n, 1, 1] bool: what only they show is drawn for them alone."""
    return chosen.flatten().nonzero()[:, 0]


def level(difficulty: float, easy: float, hard: float) -> float:
    """A setting between its value at difficulty 0 and at 1."""
    return easy + (hard - easy) * difficulty


def develop(canvas: Canvas, image: Tensor, finish: Finish) -> Tensor:
    """The image as a scanner and an archive would deliver it; geometry stays, so masks stay exact.

    Args:
        canvas: The canvas of the batch.
        image: [n, c, S, S]; it is drawn over.
        finish: How much of everything.

    Returns:
        [n, c, S, S] in 0..1.
    """
    if finish.bias:
        image.mul_(canvas.noise(2).mul_(canvas.uniform(0, finish.bias)).add_(1).clamp_(0.4, 1.8)[:, None])
    if finish.blur:
        image.lerp_(smooth(smooth(image)), canvas.uniform(0, finish.blur, 1, 1, 1).square())
    image.clamp_(0, 1)
    if finish.gamma:
        # Exponents near 1 by a parabola: a power would cost more than the rest of this function.
        bend = canvas.uniform(-finish.gamma, finish.gamma, 1, 1, 1)
        image.lerp_(image * image, bend)
    gain = canvas.uniform(-finish.contrast, finish.contrast, 1, 1, 1).exp()
    shift = 0.4 * gain.clamp(max=1) - 0.4 * gain + canvas.uniform(-1, 1, 1, 1, 1) * finish.brightness
    image.mul_(gain).add_(shift)
    if finish.noise:
        image.add_(canvas.grain().mul_(canvas.uniform(0, 1) ** 2 * finish.noise)[:, None])
    image.clamp_(0, 1)
    if finish.marks:
        image = mark(canvas, image, finish.marks)
    if finish.blocks:
        chosen = canvas.rand(canvas.n) < finish.blocks
        image[chosen] = compress(image[chosen], float(canvas.rand(1) * 0.06 + 0.01))
    return image


def compress(image: Tensor, step: float) -> Tensor:
    """[n, c, H, W], the blocks of a JPEG file: coefficients of 8 x 8 cosines rounded, high ones more coarsely."""
    n, c, height, width = image.shape
    if n == 0:
        return image
    padded = F.pad(image, (0, -width % 8, 0, -height % 8), mode="replicate")
    cosines = _cosines(image.device)
    tiles = padded.reshape(n, c, padded.shape[2] // 8, 8, padded.shape[3] // 8, 8).transpose(3, 4)
    steps = step * (1 + torch.arange(8.0, device=image.device)[:, None] + torch.arange(8.0, device=image.device))
    rounded = (cosines @ tiles @ cosines.T / steps).round() * steps
    back: Tensor = (cosines.T @ rounded @ cosines).transpose(3, 4).reshape(padded.shape)
    return back[..., :height, :width].clamp(0, 1)


def dots(canvas: Canvas, x: Tensor, y: Tensor, radius: Tensor, strength: float | Tensor = 1.0) -> Tensor:
    """[n, size, size], the largest strength of all discs that cover a pixel: spots, and lines made of many spots.

    Args:
        canvas: The canvas of the batch.
        x: Centres, [n, k].
        y: Centres, [n, k].
        radius: [n, k]; below half a pixel the disc gets fainter instead of smaller.
        strength: [n, k] or one number, 0..1.
    """
    pixels = radius / canvas.pixel
    reach = max(1, math.ceil(float(pixels.max())))
    # A margin takes what falls outside, so that no disc has to be cut.
    margin = 2 * reach + 1
    wide = canvas.size + 2 * margin
    columns = ((x + 1) * (canvas.size / 2) - 0.5 + margin).clamp_(reach, wide - 1 - reach)
    rows = ((y + 1) * (canvas.size / 2) - 0.5 + margin).clamp_(reach, wide - 1 - reach)
    offsets = torch.arange(-reach, reach + 1, device=canvas.device)
    column, row = columns.round(), rows.round()
    across = (offsets + (column - columns)[..., None]).square_()[:, :, None, :]
    down = (offsets + (row - rows)[..., None]).square_()[:, :, :, None]
    cover = (across + down).sqrt_().neg_().add_((pixels + 0.5)[..., None, None]).clamp_(0, 1)
    cover.mul_((strength * (2 * pixels).clamp(max=1))[..., None, None])
    index = (row * wide + column).long()[..., None] + (offsets[:, None] * wide + offsets).flatten()
    plane = torch.zeros(canvas.n, wide * wide, device=canvas.device)
    # The largest of all does not depend on the order, so this stays deterministic on every device.
    plane.scatter_reduce_(1, index.flatten(1), cover.flatten(1), "amax")
    inner = slice(margin, margin + canvas.size)
    return plane.view(canvas.n, wide, wide)[:, inner, inner].contiguous()


GLYPHS = {
    "L": "1000010000100001000010000100001111",
    "R": "11110100011000111110101001001010001",
    "A": "01110100011000111111100011000110001",
    "P": "11110100011000111110100001000010000",
    "H": "10001100011000111111100011000110001",
    "1": "00100011000010000100001000010001110",
    "2": "01110100010000100110010001000011111",
    "3": "11110000010000101110000010000111110",
    "5": "11111100001111000001000011000101110",
    "0": "01110100011001110101110011000101110",
    "c": "00000000000111010000100001000001110",
    "m": "00000000001101010101101011010110101",
    ".": "00000000000000000000000000110001100",
    "+": "00000001000010011111001000010000000",
}
"""5 x 7 letters that are burnt into images."""
TEXTS = (
    "L",
    "R",
    "R",
    "L",
    "A",
    "P",
    "H",
    "RA",
    "LP",
    "R1",
    "L2",
    "3.5cm",
    "1.2cm",
    "20mm",
    "5cm",
    "R 10",
    "AP",
    "L.A",
)


def mark(canvas: Canvas, image: Tensor, probability: float) -> Tensor:
    """Letters, rulers, callipers and arrows, on normal and abnormal images alike; [n, c, S, S] as it came in."""
    chosen = (canvas.rand(canvas.n) < probability).tolist()
    if not any(chosen):
        return image
    draws = canvas.rand(canvas.n, 12).tolist()
    image = image.clone()
    for picture, (kind, *numbers), wanted in zip(image, draws, chosen, strict=True):
        if wanted:
            light = 1.0 if numbers[10] < 0.85 else 0.0
            if kind < 0.6:
                _text(picture, numbers, light)
            elif kind < 0.8:
                _ruler(picture, numbers, light)
            else:
                _callipers(picture, numbers, light)
    return image


def _text(picture: Tensor, numbers: list[float], light: float) -> None:
    size = picture.shape[-1]
    letters = _letters(TEXTS[int(numbers[0] * len(TEXTS))], picture.device)
    scale = 1 + int(numbers[1] ** 3 * 3.5 * size / 240)
    stamp = letters.repeat_interleave(scale, 0).repeat_interleave(scale, 1)[: size // 2, : size // 2]
    height, width = stamp.shape
    # Three quarters near an edge, where technicians put them; the rest anywhere.
    top, left = numbers[2], numbers[3]
    if numbers[4] < 0.4:
        top = 0.12 * top if numbers[5] < 0.7 else 1 - 0.12 * top
    elif numbers[4] < 0.8:
        left = 0.14 * left if numbers[5] < 0.5 else 1 - 0.14 * left
    row, column = int(top * (size - height)), int(left * (size - width))
    window = picture[:, row : row + height, column : column + width]
    window.copy_(window + stamp * (0.5 + 0.5 * numbers[6]) * (light - window))


def _ruler(picture: Tensor, numbers: list[float], light: float) -> None:
    size = picture.shape[-1]
    step = max(3, int(size * (0.02 + 0.06 * numbers[0])))
    length = max(2, int(size * 0.02))
    start, stop = int(size * 0.3 * numbers[1]), size - int(size * 0.3 * numbers[2])
    at = int(numbers[3] * size * 0.06)
    across = picture if numbers[4] < 0.6 else picture.transpose(1, 2)
    if numbers[5] < 0.5:
        across = across.flip(2)  # flip copies, so the ticks are written back below
    across[:, start:stop:step, at : at + length] = light
    across[:, start : stop : 5 * step, at : at + 2 * length] = light
    if numbers[5] < 0.5:
        across = across.flip(2)
        picture.copy_(across if numbers[4] < 0.6 else across.transpose(1, 2))


def _callipers(picture: Tensor, numbers: list[float], light: float) -> None:
    size = picture.shape[-1]
    margin, arm = int(size * 0.06), max(2, int(size * 0.012))
    span = size - 2 * margin
    ends = [(margin + int(numbers[i] * span), margin + int(numbers[i + 1] * span)) for i in (0, 2)]
    if numbers[4] < 0.7:  # near each other, as about a lesion
        (row, column), reach = ends[0], 0.05 + 0.3 * numbers[5]
        ends[1] = tuple(  # type: ignore[assignment]
            min(max(int(a + (b - 0.5) * 2 * reach * size), margin), size - margin - 1)
            for a, b in ((row, numbers[6]), (column, numbers[7]))
        )
    for row, column in ends:
        picture[:, row - arm : row + arm + 1, column] = light
        picture[:, row, column - arm : column + arm + 1] = light
    if numbers[8] < 0.6:
        (top, left), (bottom, right) = ends
        dots = max(2, int(math.hypot(bottom - top, right - left) / 4))
        share = torch.linspace(0, 1, dots, device=picture.device)
        rows, columns = (top + share * (bottom - top)).long(), (left + share * (right - left)).long()
        picture[:, rows, columns] = light


@functools.cache
def _axis(size: int, device: torch.device) -> Tensor:
    return (torch.arange(size, device=device) + 0.5) * (2 / size) - 1


@functools.cache
def _constant(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, device=device)


def _range(cells: float | Tensor) -> tuple[float, float]:
    """Smallest and largest of the numbers."""
    return (float(cells.min()), float(cells.max())) if isinstance(cells, Tensor) else (cells, cells)


@functools.cache
def _letters(text: str, device: torch.device) -> Tensor:
    """[7, 6 x letters] of 0 and 1."""
    blank = "0" * 35
    columns = []
    for letter in text:
        bits = [float(bit) for bit in GLYPHS.get(letter, blank).ljust(35, "0")]
        columns.append(F.pad(torch.tensor(bits, device=device).reshape(7, 5), (0, 1)))
    return torch.cat(columns, 1)


@functools.cache
def _cosines(device: torch.device) -> Tensor:
    """[8, 8], the orthonormal cosine transform."""
    k = torch.arange(8.0, device=device)
    rows = torch.cos(math.pi * (2 * k[None] + 1) * k[:, None] / 16) / 2
    rows[0] /= math.sqrt(2)
    return rows
