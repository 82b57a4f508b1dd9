"""Anomaly maps as colours: one colour map and one legend for every picture of this package.

The colour map is viridis. Its steps look equally large, it gets lighter all the way, also in grey print and with every
kind of colour vision, and its blue, green and yellow stand out from a grey radiograph and from an orange fundus alike;
the usual inferno and magma are orange themselves. Lesions that are yellow still turn green before they turn yellow.
"""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.float32]
    Picture: TypeAlias = npt.NDArray[np.uint8]

_VIRIDIS = (
    "RAFURAJVRANXRQVYRQZaRQhbRglcRgteRgxfRg5hRw9iRxFjRxJlRxRmRxVnRxZpRxhqSBlrSBpsSBxuSB1vSB5wSCBxSCFySCJzSCN0RyV1RyZ2"
    "Ryd3Ryh4Ryp5Ryt6Ryx7Ri18Ri98RjB9RjF+RTJ/RTR/RTWARTaBRDeBRDmCQzqDQzuDQzyEQj2EQj6FQkCFQUGGQUKGQEOHQESHP0WHP0eIPkiI"
    "PkmJPUqJPUuJPUyJPE2KPE6KO1CKO1GKOlKLOlOLOVSLOVWLOFaLOFeMN1iMN1mMNlqMNluMNVyMNV2MNF6NNF+NM2CNM2GNMmKNMmONMWSNMWWN"
    "MWaNMGeNMGiNL2mNL2qNLmuOLmyOLm2OLW6OLW+OLHCOLHGOLHKOK3OOK3SOKnWOKnaOKneOKXiOKXmOKHqOKHqOKHuOJ3yOJ32OJ36OJn+OJoCO"
    "JoGOJYKOJYONJISNJIWNJIaNI4eNI4iNI4mNIomNIoqNIouNIYyNIY2MIY6MII+MIJCMIJGMH5KMH5OLH5SLH5WLH5aLHpeKHpiKHpmKHpmKHpqJ"
    "HpuJHpyJHp2IHp6IHp+IHqCHH6GHH6KGH6OGIKSFIKWFIaaFIaeEIqeEI6iDI6mCJKqCJauBJqyBJ62AKK5/Ka9/KrB+K7F9LLF9LrJ8L7N7MLR6"
    "MrV6M7Z5Nbd4Nrh3OLl2Obl2O7p1Pbt0PrxzQL1yQr5xRL5wRb9vR8BuScFtS8JsTcJrT8NpUcRoU8VnVcZmV8ZlWcdkW8hiXslhYMlgYspfZMtd"
    "Z8xcacxba81Zbc5YcM5Wcs9VdNBUd9BSedFRfNJPftJOgdNMg9NLhtRJiNVHi9VGjdZEkNZDktdBldc/l9g+mtg8ndk6n9k4oto3pdo1p9szqtsy"
    "rdwwr9wust0std0rt90put4nvd4mv98kwt8ixd8hx+AfyuAezeAdz+Ec0uEb1OEa1+IZ2uIY3OIY3+MY4eMY5OMY5+QZ6eQZ7OQa7uUb8eUc8+Ue"
    "9uYf+OYh+uYi/eck"
)
COLOURS = np.frombuffer(base64.b64decode(_VIRIDIS), np.uint8).reshape(256, 3)
"""The colour map from its lowest to its highest value, as matplotlib has it, which takes half a second to import."""
STRENGTH = 0.6
"""Opacity of a map where it is highest."""
THUMBNAIL = 192
"""Longer side of a thumbnail, pixels."""
_MARGIN, _BAR, _INK = 8, 10, (29, 36, 48)
_SMALLEST = 96
"""Pixels of a side of a picture that letters are drawn on."""
_BARS = (200, 100, 50, 20, 10, 5, 2, 1, 0.5, 0.2, 0.1)
"""Lengths that a bar may have: mm."""


def heat(values: Floats, low: float = 0.0, high: float = 1.0) -> Picture:
    """Colours [..., 3] of values [...]: dark blue at `low` and below, yellow at `high` and above."""
    scaled = np.clip((values - low) / max(high - low, 1e-9), 0, 1)
    picture: Picture = COLOURS.take(np.minimum(scaled * 256, 255).astype(np.uint8), 0)
    return picture


def span(anomaly_map: Floats) -> tuple[float, float]:
    """Where the colours of one map begin and end: its median and its largest value.

    Maps of few-shot detectors are seldom calibrated, so each is shown over its own range: compare scores between
    images, not colours.
    """
    return float(np.median(anomaly_map)), float(anomaly_map.max())


def stretch(anomaly_map: Floats, between: tuple[float, float] | None = None) -> Floats:
    """A map spread over 0..1, from its median to its largest value or between others; a flat map becomes 0."""
    low, high = between or span(anomaly_map)
    return ((anomaly_map - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float32)


def overlay(
    pixels: Floats, anomaly_map: Floats, *, strength: float = STRENGTH, between: tuple[float, float] | None = None
) -> Picture:
    """A map over its image; the more anomalous, the more of the map is seen.

    Args:
        pixels: [3, H, W] in 0..1.
        anomaly_map: [H, W].
        strength: Opacity of the map where it is highest, 0..1.
        between: Where the colours begin and end; None takes the map's own range (`span`).

    Returns:
        [H, W, 3].
    """
    spread = stretch(anomaly_map, between)
    opacity = strength * spread[..., None]
    blended = np.ascontiguousarray(np.moveaxis(pixels * 255, 0, -1))
    blended *= 1 - opacity
    blended += heat(spread) * opacity
    return np.rint(blended, out=blended).astype(np.uint8)


def oriented(
    picture: Picture, sides: str, spacing: tuple[float, float] | None, *, at_detector: bool = False
) -> Picture:
    """A picture [H, W, 3] with letters of the patient's sides at its edges and a bar of a round length.

    Args:
        picture: What they are drawn on; one that is too small for them is given back as it is.
        sides: What lies to the left, right, top and bottom, a letter each; empty where that is unknown.
        spacing: Millimetres between rows and between columns; None where unknown.
        at_detector: Whether they are those of a detector, which the bar then says.
    """
    from PIL import Image, ImageDraw

    height, width = picture.shape[:2]
    if min(height, width) < _SMALLEST or not (sides or spacing):
        return picture
    drawn = Image.fromarray(picture)
    draw = ImageDraw.Draw(drawn)
    edge = max(2, width // 100)
    size = max(10, min(height, width) // 24)
    places = ((edge, height // 2, "lm"), (width - edge, height // 2, "rm"), (width // 2, edge, "mt"))
    for letter, (x, y, anchor) in zip(sides, (*places, (width // 2, height - edge, "mb")), strict=False):
        draw.text((x, y), letter, "white", anchor=anchor, font_size=size, stroke_width=1, stroke_fill="black")
    if spacing:
        length = next((one for one in _BARS if one <= width * spacing[1] / 4), 0)
        right, bottom = width - 3 * edge, height - 3 * edge
        if length:
            left = right - length / spacing[1]
            draw.line((left, bottom, right, bottom), "black", 4)
            draw.line((left, bottom, right, bottom), "white", 2)
            said = f"{length} mm" if length < 10 else f"{length / 10:g} cm"
            said += " at detector" if at_detector else ""
            place = (right, bottom - 3)
            draw.text(place, said, "white", anchor="rb", font_size=size, stroke_width=1, stroke_fill="black")
    return np.asarray(drawn)


def side_by_side(pixels: Floats, picture: Picture) -> Any:
    """An image [3, H, W] in 0..1 beside what was drawn over it, as a small picture of Pillow."""
    from PIL import Image

    plain = np.moveaxis(pixels * 255, 0, -1).round().astype(np.uint8)
    scale = min(1.0, THUMBNAIL / max(picture.shape[:2]))
    width, height = (max(1, round(side * scale)) for side in (picture.shape[1], picture.shape[0]))
    both = Image.new("RGB", (2 * width, height))
    for i, part in enumerate((plain, picture)):
        both.paste(Image.fromarray(part).resize((width, height), Image.Resampling.LANCZOS), (i * width, 0))
    return both


def legend(width: int, low: str, high: str) -> Picture:
    """The colours from left to right with a word under each end: [24, width, 3] on white."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (width, 24), "white")
    ramp = heat(np.linspace(0, 1, width, dtype=np.float32))[None].repeat(_BAR, 0)
    strip.paste(Image.fromarray(ramp), (0, 0))
    draw = ImageDraw.Draw(strip)
    draw.text((0, _BAR + 1), low, fill=_INK)
    draw.text((width, _BAR + 1), high, fill=_INK, anchor="ra")
    return np.asarray(strip)


def captioned(pixels: Floats | None, anomaly_map: Floats, caption: str, *, side: int = 320) -> Picture:
    """A picture to look at: image and heatmap side by side with a legend below and a caption above.

    Args:
        pixels: [3, H, W] in 0..1; None where the image is not at hand, and the map is then shown alone.
        anomaly_map: [H, W].
        caption: One line.
        side: Length of each picture's longer side, pixels.

    Returns:
        [height, width, 3] on white.
    """
    from PIL import Image, ImageDraw

    if pixels is None:
        panels = [heat(stretch(anomaly_map))]
    else:
        panels = [np.moveaxis(pixels * 255, 0, -1).round().astype(np.uint8), overlay(pixels, anomaly_map)]
    height, width = anomaly_map.shape
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    low, high = span(anomaly_map)
    key = Image.fromarray(legend(max(size[0], 160), f"median {low:.3f}", f"highest {high:.3f}"))
    total = max(len(panels) * (size[0] + _MARGIN) + _MARGIN, key.width + 2 * _MARGIN)
    sheet = Image.new("RGB", (total, size[1] + 4 * _MARGIN + key.height + 8), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), caption, fill=_INK)
    for i, panel in enumerate(panels):
        sheet.paste(Image.fromarray(panel).resize(size), (_MARGIN + i * (size[0] + _MARGIN), 3 * _MARGIN))
    sheet.paste(key, (total - key.width - _MARGIN, size[1] + 4 * _MARGIN))
    return np.asarray(sheet)


def png(picture: npt.NDArray[Any]) -> bytes:
    """A picture [H, W, 3] or [H, W] of uint8 as the bytes of a PNG file."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()
