"""One self-contained page from an `Explanation`: what a detector learned, and why it says what it says of an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from madclip.data.geometry import restore_map
from madclip.data.readers import read_image
from madclip.data.readers.formats import may_be_scanner_file
from madclip.evaluation.gallery import shrink
from madclip.files import write_whole
from madclip.heatmap import heat, overlay
from madclip.report.figures import data_uri
from madclip.report.templates import computed, page_part, source_hash, template

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    import numpy.typing as npt

    from madclip.data.samples import Sample
    from madclip.explain import Explanation
    from madclip.explain.explanation import Seen
    from madclip.explain.parts import Part
    from madclip.explain.shots import FromMemory, Shots

    Floats = npt.NDArray[np.float32]

NEAREST = 4
"""Shots of each class that are shown beside an image."""
WIDTH = 400
"""Units across a strip on which contributions are drawn."""
CONTRIBUTORS = 6
"""Shots of a memory that are named."""


def write_explanation(
    told: Explanation, out_html: Path | str, *, detector: str = "", date: datetime | None = None
) -> Path:
    """Write the page; a file that is there is replaced once the new one is complete.

    It loads nothing, and a content security policy forbids that it does. Names of images are shown as on the page of
    predictions: file names without their folders, and those of scanner files not at all.

    Args:
        told: What is to be shown.
        out_html: Where the page goes.
        detector: What to call the detector, for example its folder.
        date: When this was computed; None is now.

    Returns:
        The path written.

    Raises:
        OSError: The file cannot be written there.
        DataError: A shot cannot be read any more.
    """
    path = Path(out_html)
    text = render_explanation(told, detector=detector, date=date)
    write_whole(path, text.encode("utf-8", "backslashreplace"))
    return path


def render_explanation(told: Explanation, *, detector: str = "", date: datetime | None = None) -> str:
    """The page as text; arguments as in `write_explanation`."""
    from markupsafe import Markup

    style = page_part("explanation.css")
    image, shots, joint = told.image, told.shots, told.joint
    gap = _gap(shots)
    ramp = data_uri(heat(np.linspace(0, 1, 128, dtype=np.float32)[None].repeat(4, 0)))
    return template("explanation.html", number=_number).render(
        style=Markup(style),  # noqa: S704  (a file of this package)
        style_hash=source_hash(style),
        ramp=ramp,
        facts={**({"Detector": detector} if detector else {}), **told.facts, "Computed": computed(date)},
        findings=told.findings,
        image=_image(image) if image else None,
        line=_line(image, shots),
        strips=_strips(image, shots),
        rows=_rows(image, gap) if image else None,
        maps=_maps(image) if image else None,
        near=_near(image, shots) if image and shots and not image.memory else None,
        memory=_memory(image, image.memory) if image and image.memory else None,
        shots=shots,
        gap=gap,
        moved=[(part.name, value, _share(value, [v for _, v in told.moved])) for part, value in told.moved],
        texts=told.texts,
        contexts=_contexts(told),
        route=_route(told),
        joint=joint,
        parts=[_modality(name, part) for name, part in joint.parts.items()] if joint else [],
    )


def _modality(name: str, told: Explanation) -> dict[str, Any]:
    """What is shown of one modality where all are."""
    return {
        "name": name,
        "facts": {title: said for title, said in told.facts.items() if title in ("Learned from", "Image score")},
        "strips": _strips(None, told.shots),
        "gap": _gap(told.shots),
        "texts": told.texts,
        "contexts": _contexts(told),
    }


def _gap(shots: Shots | None) -> dict[Part, float] | None:
    """Which share of the difference between the classes each part makes, where it is known; see `Shots.gap`."""
    apart = shots.gap() if shots else None
    return dict(zip(shots.parts, apart.tolist(), strict=True)) if shots and apart is not None else None


def _route(told: Explanation) -> list[dict[str, Any]]:
    """How far the image is from each modality, with the nearest shot of each."""
    at = _Scale([0.0, *(value for one in told.route for value in (one.distance, one.limit))])
    rows = []
    for one in told.route:
        picture = None
        if one.shot is not None and told.image is not None:
            pixels = read_image(one.shot.image, told.image.prediction.grey_range).pixels
            name = "a shot" if may_be_scanner_file(one.shot.image.path) else one.shot.image.name
            picture = {"source": data_uri(shrink(_picture(pixels))), "name": name, "label": one.shot.label}
        rows.append({"near": one, "zero": at(0.0), "at": at(one.distance), "limit": at(one.limit), "picture": picture})
    return rows


def _number(value: float, digits: int = 3) -> str:
    """A signed value as it is printed."""
    return f"{value:+.{digits}f}".replace("-", "−")


def _share(value: float, others: Sequence[float]) -> float:
    return round(WIDTH * value / max(*others, 1e-9), 1)


def _named(sample: Sample, number: int) -> str:
    """A shot's name on the page."""
    return f"shot {number + 1}" if may_be_scanner_file(sample.image.path) else sample.image.name


def _picture(pixels: Floats) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(np.moveaxis(pixels * 255, 0, -1).round().astype(np.uint8))


def _image(image: Seen) -> dict[str, Any]:
    """What the head of the page says of the image."""
    found, source = image.prediction, image.prediction.source
    hidden = source is None or may_be_scanner_file(source.path)
    name = "the image" if hidden or source is None else source.name
    if hidden and source is not None and source.frame is not None:
        name = f"slice or frame {source.frame + 1}"
    shown = found.anomaly_map
    if image.corner is not None:
        shown = restore_map(image.parts.anomaly_maps[0], _size(image), image.view)
    return {
        "name": name,
        "found": found,
        "tile": image.corner,
        "picture": data_uri(shrink(_picture(image.pixels))),
        "overlay": data_uri(_ringed(shrink(overlay(image.pixels, shown)), shown)),
        "near": image.distance,
    }


def _ringed(picture: npt.NDArray[np.uint8], anomaly_map: Floats) -> npt.NDArray[np.uint8]:
    """A picture with a ring around the highest place of its map."""
    from PIL import Image, ImageDraw

    row, column = np.unravel_index(int(anomaly_map.argmax()), anomaly_map.shape)
    x, y = column * picture.shape[1] / anomaly_map.shape[1], row * picture.shape[0] / anomaly_map.shape[0]
    drawn = Image.fromarray(picture)
    for radius, colour in ((11, "black"), (10, "white")):
        ImageDraw.Draw(drawn).ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour, width=2)
    return np.asarray(drawn)


def _size(image: Seen) -> tuple[int, int]:
    return image.pixels.shape[1], image.pixels.shape[2]


class _Scale:
    """Places on a strip: values from a lowest to a highest one, with a little room on both sides."""

    def __init__(self, values: Sequence[float]) -> None:
        low, high = min(values), max(values)
        room = 0.06 * (high - low) or 0.01
        self.low, self.high = low - room, high + room

    def __call__(self, value: float) -> float:
        return round(WIDTH * (value - self.low) / (self.high - self.low), 1)


def _line(image: Seen | None, shots: Shots | None) -> dict[str, Any] | None:
    """The score of the image among those of the shots."""
    if image is None:
        return None
    score, threshold = float(image.parts.scores[0]), image.prediction.threshold
    known: list[list[float]] = [[], []]
    if shots is not None and shots.given is not None:
        scores = image.parts.base + shots.given.sum(0)
        known = [scores[shots.labels == bool(label)].tolist() for label in (0, 1)]
    if not (known[0] or known[1] or threshold is not None):
        return None
    at = _Scale([score, *known[0], *known[1], *([] if threshold is None else [threshold])])
    return {
        "dots": [[at(value) for value in values] for values in known],
        "at": at(score),
        "threshold": None if threshold is None else at(threshold),
        "ends": (at.low, at.high),
    }


def _strips(image: Seen | None, shots: Shots | None) -> list[dict[str, Any]]:
    """For each part what it gives to this image's score, and what to those of the shots."""
    parts = image.parts.parts if image else shots.parts if shots else ()
    given = image.parts.given[:, 0].tolist() if image else [None] * len(parts)
    others = torch.zeros(len(parts), 0) if shots is None or shots.given is None else shots.given
    if not len(parts):
        return []
    at = _Scale([0.0, *(value for value in given if value is not None), *others.flatten().tolist()])
    labels = shots.labels if others.shape[1] and shots else torch.zeros(0, dtype=torch.bool)
    return [
        {
            "part": part,
            "value": value,
            "at": None if value is None else at(value),
            "zero": at(0.0),
            "dots": [[at(x) for x in row[labels == bool(label)].tolist()] for label in (0, 1)],
            "means": [at(float(row[labels == bool(k)].mean())) if (labels == bool(k)).any() else None for k in (0, 1)],
        }
        for part, value, row in zip(parts, given, others, strict=True)
    ]


def _rows(image: Seen, gap: dict[Part, float] | None) -> dict[str, Any]:
    """The sum in numbers."""
    found = image.parts
    rows = zip(found.parts, found.whole[:, 0].tolist(), found.spot[:, 0].tolist(), strict=True)
    return {
        "rows": [(part.name, whole, spot, whole + spot, gap[part] if gap else None) for part, whole, spot in rows],
        "base": found.base,
        "score": float(found.scores[0]),
        "spotted": bool(found.spot.any()),
    }


def _maps(image: Seen) -> dict[str, Any]:
    """What each part gives to the map, above the rest of the image: on one scale."""
    found, size = image.parts, _size(image)
    maps = [restore_map(one, size, image.view) for one in found.maps[:, 0]]
    lifted = [one - np.median(one) for one in maps]
    high = max(1e-6, *(float(one.max()) for one in lifted))
    largest = max(1e-6, float(np.sum(lifted, 0).max()))
    panels = []
    for part, one in zip(found.parts, lifted, strict=True):
        peak = float(one.max())
        panels.append(
            {
                "name": part.name,
                "kind": part.kind,
                "peak": peak,
                "nothing": peak < 0.02 * largest,
                "picture": data_uri(shrink(overlay(image.pixels, one, between=(0.0, high)))),
            }
        )
    # Branch by branch, so that the taps of one stand side by side.
    panels.sort(key=lambda panel: panel["kind"] == "abnormal")
    return {"panels": panels, "high": high}


def _near(image: Seen, shots: Shots) -> dict[str, Any]:
    """The nearest shots of each class, for and against."""
    ordered = shots.nearest(image.pooled)
    scores = None if shots.given is None else (image.parts.base + shots.given.sum(0)).tolist()
    sides = []
    for label, title in ((1, "For: the abnormal shots most like it"), (0, "Against: the normal shots most like it")):
        mine = [(sample, cosine) for sample, cosine in ordered if sample.label == label][:NEAREST]
        figures = []
        for sample, cosine in mine:
            number = shots.samples.index(sample)
            figures.append(
                {
                    "picture": data_uri(shrink(_picture(read_image(sample.image, image.prediction.grey_range).pixels))),
                    "name": _named(sample, number),
                    "cosine": cosine,
                    "score": None if scores is None else scores[number],
                }
            )
        sides.append({"title": title, "label": label, "figures": figures})
    first = [sample.label for sample, _ in ordered[:5]]
    return {"sides": sides, "first": len(first), "abnormal": sum(first)}


def _memory(image: Seen, found: FromMemory) -> dict[str, Any]:
    """The places farthest from a memory, beside what of it is nearest to them, and which shots are near."""
    places = []
    for number, one in enumerate(found.patches, 1):
        sample = found.samples.get(one.shot)
        there = None
        if sample is not None and one.there is not None:
            pixels = read_image(sample.image, image.prediction.grey_range).pixels
            there = data_uri(_boxed(pixels, [(one.there, "")], image))
        places.append(
            {
                "number": number,
                "distance": one.distance,
                "shot": f"normal shot {one.shot + 1}" if sample is None else _named(sample, one.shot),
                "there": there,
            }
        )
    ordered = sorted(enumerate(found.shots), key=lambda pair: -pair[1])[:CONTRIBUTORS]
    return {
        "image": data_uri(_boxed(image.pixels, [(one.patch, str(i)) for i, one in enumerate(found.patches, 1)], image)),
        "places": places,
        "of": len(found.shots),
        "shares": [
            (
                _named(found.samples[shot], shot) if shot in found.samples else f"normal shot {shot + 1}",
                share,
                _share(share, found.shots),
            )
            for shot, share in ordered
        ],
    }


def _boxed(pixels: Floats, patches: Sequence[tuple[int, str]], image: Seen) -> npt.NDArray[np.uint8]:
    """A picture with a box of three patches' side around each of the patches, which are the memory's unit."""
    from PIL import Image, ImageDraw

    rows, columns = image.grid
    size = image.view.size
    drawn = Image.fromarray(shrink(_picture(pixels)))
    draw = ImageDraw.Draw(drawn)
    for patch, word in patches:
        row, column = divmod(patch, columns)
        mask = torch.zeros(size, size)
        top, left = (row - 1) * size // rows, (column - 1) * size // columns
        mask[max(top, 0) : top + 3 * size // rows, max(left, 0) : left + 3 * size // columns] = 1
        inside = np.argwhere(restore_map(mask, (pixels.shape[1], pixels.shape[2]), image.view) > 0.5)
        if not len(inside):
            continue
        scale = drawn.width / pixels.shape[2], drawn.height / pixels.shape[1]
        (y0, x0), (y1, x1) = inside.min(0), inside.max(0)
        box = (x0 * scale[0], y0 * scale[1], x1 * scale[0], y1 * scale[1])
        draw.rectangle(box, outline="#FFB000", width=2)
        if word:
            draw.text((box[0] + 4, box[1] + 2), word, fill="#FFB000", stroke_width=1, stroke_fill="black")
    return np.asarray(drawn)


def _contexts(told: Explanation) -> list[dict[str, Any]]:
    """Contexts of each prompt, in a row."""
    rows: dict[tuple[int, str], list[Any]] = {}
    for one in told.texts.contexts if told.texts else ():
        rows.setdefault((one.label, one.prompt), []).append(one)
    return [{"label": label, "prompt": prompt, "contexts": row} for (label, prompt), row in rows.items()]
