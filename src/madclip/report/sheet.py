"""Contact sheets: images side by side with their heatmaps and masks, as one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.heatmap import legend, overlay

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

_SHEET_HEIGHT = 176
_GAP = 6


def contact_sheet(
    rows: Sequence[tuple[str, npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[Any] | None]],
) -> npt.NDArray[np.uint8]:
    """Images side by side with their overlays and masks.

    Args:
        rows: For each line a caption, pixels [3, H, W], anomaly map [H, W] and mask [H, W] or None.

    Returns:
        [height, width, 3] on white.
    """
    from PIL import Image, ImageDraw

    lines = []
    for caption, pixels, anomaly_map, mask in rows:
        panels = [np.moveaxis(pixels * 255, 0, -1).round().astype(np.uint8), overlay(pixels, anomaly_map)]
        if mask is not None:
            panels.append(np.repeat(mask.astype(np.uint8)[..., None] * 255, 3, -1))
        width = round(_SHEET_HEIGHT * pixels.shape[2] / pixels.shape[1])
        line = Image.new("RGB", (3 * width + 2 * _GAP, _SHEET_HEIGHT + 18), "white")
        for i, panel in enumerate(panels):
            line.paste(Image.fromarray(panel).resize((width, _SHEET_HEIGHT)), (i * (width + _GAP), 18))
        ImageDraw.Draw(line).text((1, 3), caption, fill="black")
        lines.append(line)
    columns = 2 if len(lines) > 4 else 1
    per_column = -(-len(lines) // columns)
    cell = (max(line.width for line in lines) + 2 * _GAP, _SHEET_HEIGHT + 18 + _GAP)
    key = Image.fromarray(legend(2 * _SHEET_HEIGHT, "median of the image's map", "its highest value"))
    size = columns * cell[0] + _GAP, per_column * cell[1] + 2 * _GAP + key.height
    sheet = Image.new("RGB", size, "white")
    for i, line in enumerate(lines):
        sheet.paste(line, (_GAP + i // per_column * cell[0], _GAP + i % per_column * cell[1]))
    sheet.paste(key, (_GAP, size[1] - key.height))
    return np.asarray(sheet)
