"""The page of a run of predictions: to sort, to filter and to look at, with nothing but its own folder."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.data.readers.formats import may_be_scanner_file
from madclip.files import write_whole
from madclip.heatmap import heat
from madclip.report.figures import data_uri
from madclip.report.templates import computed, page_part, source_hash, template

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

ANSWERS = ("anomalous", "uncertain", "normal")


def write_page(
    path: Path,
    rows: Sequence[dict[str, Any]],
    about: dict[str, str] | None = None,
    *,
    date: datetime | None = None,
    numbered: bool = False,
) -> None:
    """Write the page of a folder of predictions, highest score first and failures last.

    It asks for nothing but the thumbnails, overlays and maps beside it, each only when it comes into view; a content
    security policy forbids all else. Names are shown as the tables have them, but for scanner files, whose names often
    are a patient's: the number of the row stands in their place.

    Args:
        path: The page; paths of pictures in `rows` are relative to its folder.
        rows: As `PredictionFolder` makes them.
        about: Facts for the head of the page.
        date: When this was computed; None is now.
        numbered: Whether no name is shown at all.

    Raises:
        OSError: The page cannot be written there.
    """
    # A name that is no valid Unicode holds lone surrogates; escaped, they are text.
    text = render_page(rows, about, date=date, numbered=numbered).encode("utf-8", "backslashreplace")
    write_whole(path, text)


def render_page(
    rows: Sequence[dict[str, Any]],
    about: dict[str, str] | None = None,
    *,
    date: datetime | None = None,
    numbered: bool = False,
) -> str:
    """The page as text; arguments as in `write_page`."""
    from markupsafe import Markup

    style, script = (page_part(name) for name in ("predictions.css", "predictions.js"))
    order = sorted(range(len(rows)), key=lambda i: (rows[i]["score"] is None, -(rows[i]["score"] or 0.0)))
    said = Counter(answer(row) for row in rows)
    ramp = heat(np.linspace(0, 1, 128, dtype=np.float32)[None].repeat(4, 0))
    hidden = {row["image"] for row in rows if numbered or may_be_scanner_file(Path(row["image"]))}
    common = common_folder([row["image"] for row in rows if row["image"] not in hidden])
    items = [
        {
            **rows[i],
            "name": shown_name(rows[i], common) if rows[i]["image"] not in hidden else f"image {i}",
            "error": rows[i]["error"] and rows[i]["error"].replace(rows[i]["image"], f"image {i}"),
            "number": i,
            "answer": answer(rows[i]),
            "thumbnail": thumbnail_of(rows[i]["overlay"]),
        }
        for i in order
    ]
    return template("predictions.html").render(
        facts={
            **(about or {}),
            **({"Folder": common} if common else {}),
            "Computed": computed(date),
        },
        items=items,
        counts={word: said[word] for word in (*ANSWERS, "no threshold", "failed") if said[word]},
        ramp=data_uri(ramp, lossless=True),
        style=Markup(style),  # noqa: S704  (files of this package)
        script=Markup(script),  # noqa: S704
        style_hash=source_hash(style),
        script_hash=source_hash(script),
    )


def common_folder(images: Sequence[str]) -> str:
    """The folder that all images lie in; empty where there is none."""
    try:
        found = os.path.commonpath([os.path.dirname(image) for image in images])  # noqa: PTH120  (a name as given)
    except ValueError:  # no images, other drives, or relative and absolute names
        return ""
    return "" if found == os.sep else found


def shown_name(row: dict[str, Any], common: str) -> str:
    """The image's name below the common folder, with the frame behind it."""
    name = row["image"].removeprefix(common).lstrip("/\\") if common else row["image"]
    return name if row["frame"] is None else f"{name}#{row['axis'] or ''}{row['frame']}"


def answer(row: dict[str, Any]) -> str:
    """What the page sorts a row under: its verdict, or why there is none."""
    if row["error"] is not None:
        return "failed"
    return row["verdict"] or row["decision"] or "no threshold"


def thumbnail_of(overlay_path: str | None) -> str | None:
    """Where the thumbnail lies that belongs to an overlay; None where there is no overlay."""
    if overlay_path is None:
        return None
    return f"thumbnails/{overlay_path.removeprefix('overlays/').removesuffix('.png')}.jpg"
