"""Brain MR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from madclip.data.phantoms.fields import Canvas, Drawing, edge, ellipse, level

if TYPE_CHECKING:
    from torch import Tensor


def draw(canvas: Canvas, abnormal: Tensor, difficulty: float) -> Drawing:
    """A batch of axial slices.

    Args:
        canvas: To draw on.
        abnormal: [n] bool, which images get a lesion.
        difficulty: 0..1.
    """
    x, y = canvas.pose()
    inside = ellipse(x, y, 0, 0, 0.7, 0.85)
    image = 0.4 * edge(inside, 0.05)
    cx, cy = canvas.place(inside > 0.15)
    lesion = canvas.blob(cx, cy, canvas.uniform(0.06, level(difficulty, 0.4, 0.2)))
    cover = edge(lesion, 0.2) * abnormal[:, None, None]
    image = image + 0.3 * cover
    return Drawing(image[:, None], cover > 0.5, [{"finding": "tumour", "brightness": "bright"}] * canvas.n)
