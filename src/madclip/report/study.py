"""The page of a run's series: the score of every slice as a curve, a montage, and what the numbers rest on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.files import write_whole
from madclip.report.page import thumbnail_of
from madclip.report.templates import computed, page_part, source_hash, template

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from pathlib import Path

PAGE = "series.html"
MONTAGE, WORST = 40, 5
"""How many images of a series are shown at even distances, and how many with the highest scores are among them."""
_WIDTH = 1000


def write_study_page(
    folder: Path,
    series: Sequence[dict[str, Any]],
    images: Sequence[Sequence[dict[str, Any]]],
    about: dict[str, str],
    date: datetime | None = None,
) -> None:
    """Writes `series.html`, which needs nothing but the thumbnails beside it; series have numbers and no names.

    Args:
        folder: That of the predictions.
        series: A row for each series, as in `series.jsonl`.
        images: The rows of each series' images, in order.
        about: Facts for the head of the page.
        date: When this was computed; None is now.

    Raises:
        OSError: The page cannot be written there.
    """
    from markupsafe import Markup

    style = page_part("study.css")
    text = template("study.html").render(
        facts={**about, "Computed": computed(date)},
        series=[_shown(number, row, rows) for number, (row, rows) in enumerate(zip(series, images, strict=True))],
        style=Markup(style),  # noqa: S704  (a file of this package)
        style_hash=source_hash(style),
    )
    write_whole(folder / PAGE, text.encode("utf-8", "backslashreplace"))


def _shown(number: int, row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the page needs of one series."""
    scored = [(place, one["score"]) for place, one in enumerate(rows) if one["score"] is not None]
    step = _WIDTH / max(1, len(rows) - 1)
    points = [(round(place * step, 1), round(110 - 100 * score, 1)) for place, score in scored]
    highest = row["highest"]
    threshold = next((one["threshold"] for one in rows if one["threshold"] is not None), None)
    return {
        **row,
        "number": number,
        "width": _WIDTH,
        "points": " ".join(f"{x},{y}" for x, y in points) if len(points) > 1 else "",
        "peak": None if highest is None else (round(highest * step, 1), round(110 - 100 * row["score"], 1)),
        "line": None if threshold is None else round(110 - 100 * threshold, 1),
        "pictures": _montage(scored, rows),
    }


def _montage(scored: Sequence[tuple[int, float]], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Images at even distances, and those with the highest scores, in order."""
    drawn = [(place, score) for place, score in scored if rows[place]["overlay"]]
    worst = {place for place, _ in sorted(drawn, key=lambda one: -one[1])[:WORST]}
    even = {drawn[at][0] for at in np.linspace(0, len(drawn) - 1, min(MONTAGE, len(drawn))).round().astype(int)}
    return [
        {
            "place": place + 1,
            "score": score,
            "worst": place in worst,
            "overlay": rows[place]["overlay"],
            "thumbnail": thumbnail_of(rows[place]["overlay"]),
        }
        for place, score in drawn
        if place in worst | even
    ]
