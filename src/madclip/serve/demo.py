"""Images of no patient to try the page on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from madclip.files import new_folder
from madclip.phantoms import generate

if TYPE_CHECKING:
    from pathlib import Path

COUNT, SEED, DIFFICULTY = 96, 21_000, 0.35
"""Phantoms, their seed, which pre-training never used, and how hard they are to tell apart."""


def draw_demo(project: Path) -> Path:
    """A folder beside the project with phantoms of brains, half of them with lesions, whose names do not say which.

    It is drawn once.
    """
    folder = project.with_name(f"{project.name}-images")
    if not folder.is_dir():
        drawn = generate("brain", COUNT, SEED, difficulty=DIFFICULTY)
        with new_folder(folder) as building:
            for number, pixels in enumerate(drawn.pixels):
                Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(building / f"brain_{number:03d}.png")
    return folder
