"""Pictures of predictions: heatmap overlays and contact sheets, as uint8 arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

_SHEET_HEIGHT = 176
_GAP = 6


def heat(anomaly_map: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Colours of a map: [H, W] in 0..1 -> [H, W, 3], from black through red to pale yellow."""
    from matplotlib import colormaps

    return np.asarray(colormaps["inferno"](anomaly_map.clip(0, 1), bytes=True))[..., :3]


def overlay(
    pixels: npt.NDArray[np.float32], anomaly_map: npt.NDArray[np.float32], *, strength: float = 0.6
) -> npt.NDArray[np.uint8]:
    """A map over its image; the more anomalous, the more of the map is seen.

    Args:
        pixels: [3, H, W] in 0..1.
        anomaly_map: [H, W]; its own range is spread over the colours, since maps of few-shot detectors are seldom
            calibrated: compare scores between images, not colours.
        strength: Opacity of the map where it is highest.

    Returns:
        [H, W, 3].
    """
    spread = stretch(anomaly_map)
    image = np.moveaxis(pixels, 0, -1) * 255
    opacity = strength * spread[..., None]
    return (image * (1 - opacity) + heat(spread) * opacity).round().astype(np.uint8)


def stretch(anomaly_map: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A map spread over 0..1, from its median to its largest value."""
    low, high = float(np.median(anomaly_map)), float(anomaly_map.max())
    return ((anomaly_map - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float32)


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
    sheet = Image.new("RGB", (columns * cell[0] + _GAP, per_column * cell[1] + _GAP), "white")
    for i, line in enumerate(lines):
        sheet.paste(line, (_GAP + i // per_column * cell[0], _GAP + i % per_column * cell[1]))
    return np.asarray(sheet)
