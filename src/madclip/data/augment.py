"""The fixed augmented variants of the shots (method.md, sections 6 and 10)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from madclip.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from madclip.recipe import Jitter


def make_variants(
    pixels: torch.Tensor,
    masks: torch.Tensor | None,
    names: Sequence[str],
    *,
    labels: torch.Tensor,
    jitter: Jitter,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """All named variants of a batch; only `jitter` draws from the generator.

    Args:
        pixels: float32 [B, 3, H, W] in 0..1.
        masks: float32 [B, 1, H, W], or None; they go through the same bilinear steps (threshold them at 0.5).
        names: The variants, from `recipe.ALL_VARIANTS`.
        labels: [B], 1 where abnormal; `per_class` jitter draws once for each class and call.
        jitter: Colour jitter drawn for each image about the image's mean, or as the released code does.
        generator: On the CPU.

    Returns:
        Pixels [V, B, 3, H, W], and masks [V, B, 1, H, W] or None.

    Raises:
        RecipeError: A name is not that of a variant.
    """
    unknown = [name for name in names if name != "jitter" and name not in _GEOMETRIC]
    if unknown or not names:
        known = ", ".join((*_GEOMETRIC, "jitter"))
        raise RecipeError(f"unknown variant {unknown[0]!r}; known: {known}" if unknown else "no variant is named")
    draw = _jitter_images if jitter == "per_image" else _jitter_classes
    images = [draw(pixels, labels, generator) if name == "jitter" else _GEOMETRIC[name](pixels) for name in names]
    return torch.stack(images), None if masks is None else move_masks(masks, names)


def move_masks(masks: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """Masks of all named variants: float32 [B, 1, H, W] -> [V, B, 1, H, W]; jitter leaves a mask as it is."""
    return torch.stack([masks if name == "jitter" else _GEOMETRIC[name](masks) for name in names])


def _sample(images: torch.Tensor, theta: list[list[float]]) -> torch.Tensor:
    """Samples [B, C, H, W] on a grid in [-1, 1] moved by the 2 x 3 matrix `theta`."""
    matrix = torch.tensor(theta, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _rotate(degrees: float) -> Callable[[torch.Tensor], torch.Tensor]:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return lambda images: _sample(images, [[cos, -sin, 0.0], [sin, cos, 0.0]])


def _translate(x: float, y: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda images: _sample(images, [[1.0, 0.0, x], [0.0, 1.0, y]])


def _zoom(factor: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def zoom(images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[-2:]
        rows, columns = (
            slice((side - int(side / factor)) // 2, (side + int(side / factor)) // 2) for side in (height, width)
        )
        return F.interpolate(images[..., rows, columns], (height, width), mode="bilinear", align_corners=False)

    return zoom


def _factors(count: int, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Brightness and contrast factors in U(0.8, 1.2): [2, count, 1, 1, 1]."""
    drawn = 0.8 + 0.4 * torch.rand(count, 2, generator=generator).T
    return drawn.reshape(2, count, 1, 1, 1).to(images)


def _jitter_images(pixels: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:  # noqa: ARG001
    brightness, contrast = _factors(len(pixels), pixels, generator)
    bright = pixels * brightness
    mean = bright.mean(dim=(1, 2, 3), keepdim=True)
    jittered: torch.Tensor = (mean + contrast * (bright - mean)).clamp(0, 1)
    return jittered


def _jitter_classes(pixels: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """As released: one draw for the abnormal images, then one for the normal ones; the mean is that of each column."""
    drawn = _factors(2, pixels, generator)
    brightness, contrast = drawn[:, (labels.to(pixels.device) == 0).long()]
    bright = pixels * brightness
    mean = bright.mean(dim=(1, 2), keepdim=True)
    jittered: torch.Tensor = (mean + contrast * (bright - mean)).clamp(0, 1)
    return jittered


_GEOMETRIC: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda images: images,
    "rotate-22.5": _rotate(-22.5),
    "rotate-11.25": _rotate(-11.25),
    "rotate+11.25": _rotate(11.25),
    "rotate+22.5": _rotate(22.5),
    "translate++": _translate(0.1, 0.1),
    "translate-+": _translate(-0.1, 0.1),
    "translate--": _translate(-0.1, -0.1),
    "translate+-": _translate(0.1, -0.1),
    "zoom1.1": _zoom(1.1),
    "zoom1.15": _zoom(1.15),
    "zoom1.2": _zoom(1.2),
    "zoom1.3": _zoom(1.3),
    "flip-horizontal": lambda images: images.flip(-1),
    "flip-vertical": lambda images: images.flip(-2),
}
"""The deterministic variants: each moves [B, C, H, W], images and masks alike."""
