"""Images of a project as the API shows them: sorted, filtered, in pages; and how one is deleted for good."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Select, delete, func, select

from madclip.errors import DataError
from madclip.serve.project import Project, log
from madclip.serve.suggest import Suggestion, most_alike, what_next
from madclip.serve.tables import Detector, Feature, Image, Said, Volume
from madclip.training.cache import TokenCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.orm import Session

SUGGESTED = 200
"""How many images are suggested at most."""
Shown = dict[str, Any]


@dataclass(frozen=True)
class Wanted:
    """Which images are asked for, in which order; see the contract."""

    sort: str = "name"
    order: str | None = None
    to: int | None = None
    label: str = "any"
    verdict: str | None = None
    offset: int = 0
    limit: int = 500


def shown(project: Project, session: Session, images: Sequence[Image]) -> list[Shown]:
    """Images as the API gives them."""
    detector = project.detector_in_use(session)
    numbers = [image.id for image in images]
    said = select(Said.image_id, Said.row).where(Said.detector_id == detector, Said.image_id.in_(numbers))
    rows: dict[int, Shown] = dict(session.execute(said).tuples().all()) if detector else {}
    volumes = {image.volume_id for image in images if image.volume_id is not None}
    count = select(Image.volume_id, func.count()).where(Image.volume_id.in_(volumes)).group_by(Image.volume_id)
    slices = dict(session.execute(count).tuples().all()) if volumes else {}
    ranks = project.cache.get("next", (0, {}))[1]  # what was computed last: nobody waits for a new one here
    return [_shown(image, rows.get(image.id), slices.get(image.volume_id, 1), ranks.get(image.id)) for image in images]


def _shown(image: Image, row: Shown | None, slices: int, rank: tuple[int, str] | None) -> Shown:
    return {
        "id": image.id,
        "name": image.name,
        "width": image.width,
        "height": image.height,
        "label": image.label,
        "mask": image.mask is not None,
        "version": image.version,
        "volume": image.volume_id,
        "frame": image.frame,
        "axis": image.axis,
        "place": image.place,
        "slices": slices,
        "row": row,
        "next": {"rank": rank[0], "reason": rank[1]} if rank and image.label is None else None,
        "error": image.error,
    }


def one(session: Session, number: int) -> Image:
    """The image of a number.

    Raises:
        LookupError: There is none.
    """
    found = session.get(Image, number)
    if found is None:
        raise LookupError(f"there is no image {number}")
    return found


def page(project: Project, wanted: Wanted) -> Shown:
    """A page of images, and how many there are in all."""
    if wanted.sort in ("next", "similarity"):
        return _ranked_page(project, wanted)
    with project.database.look() as session:
        detector = project.detector_in_use(session)
        query = _filtered(wanted, detector)
        total = session.scalar(select(func.count()).select_from(query.subquery())) or 0
        # The name of a slice ends in its number, which as text would put 10 before 2.
        file = func.substr(Image.name, 1, func.length(Image.name) - func.length(Image.frame_mark))
        orders: dict[str, list[Any]] = {"score": [Said.score], "uncertainty": [Said.uncertainty]}
        columns = orders.get(wanted.sort, [file, Image.axis, Image.frame])
        falling = (wanted.order or ("asc" if wanted.sort == "name" else "desc")) == "desc"
        keys = [(column.desc() if falling else column.asc()).nulls_last() for column in columns]
        ordered = query.order_by(*keys, Image.id)
        images = session.scalars(ordered.offset(wanted.offset).limit(wanted.limit)).all()
        return {"total": total, "offset": wanted.offset, "images": shown(project, session, images)}


def _filtered(wanted: Wanted, detector: int | None) -> Select[Any]:
    query = select(Image).outerjoin(Said, (Said.image_id == Image.id) & (Said.detector_id == (detector or 0)))
    if wanted.label == "none":
        query = query.where(Image.label.is_(None))
    elif wanted.label != "any":
        query = query.where(Image.label == wanted.label)
    return query if wanted.verdict is None else query.where(Said.verdict == wanted.verdict)


def _ranked_page(project: Project, wanted: Wanted) -> Shown:
    """A page in an order that the database does not know."""
    value: dict[int, float] = {number: -rank for number, (rank, _) in ranking(project).items()}
    if wanted.sort == "similarity":
        value = _similarity(project, wanted.to)
    with project.database.look() as session:
        numbers = list(session.scalars(_filtered(wanted, project.detector_in_use(session)).with_only_columns(Image.id)))
        ranked = sorted((number for number in numbers if number in value), key=lambda number: -value[number])
        # The first to label, or the most alike, come first; `asc` and `desc` speak of rank and of similarity.
        if wanted.order == ("desc" if wanted.sort == "next" else "asc"):
            ranked.reverse()
        rest = [number for number in numbers if number not in value]
        chosen = [*ranked, *rest][wanted.offset : wanted.offset + wanted.limit]
        found = {image.id: image for image in session.scalars(select(Image).where(Image.id.in_(chosen)))}
        images = shown(project, session, [found[number] for number in chosen])
        return {"total": len(numbers), "offset": wanted.offset, "images": images}


def _similarity(project: Project, to: int | None) -> dict[int, float]:
    numbers, pooled = features(project)
    if to is None or to not in numbers:
        raise DataError("similarity needs `to`, the number of an image that was looked at already")
    alike = most_alike(pooled, numbers.index(to))
    return dict(zip(numbers, alike.tolist(), strict=True))


def features(project: Project) -> tuple[list[int], np.ndarray[Any, np.dtype[np.float32]]]:
    """Numbers of the images that the present backbone has looked at, and their pooled tokens [N, d]."""

    def compute() -> tuple[list[int], np.ndarray[Any, np.dtype[np.float32]]]:
        with project.database.look() as session:
            space = _space(project, session)
            query = select(Feature.image_id, Feature.pooled).where(Feature.space == space).order_by(Feature.image_id)
            found = session.execute(query).tuples().all()
        rows = [np.frombuffer(pooled, "<f4") for _, pooled in found]
        return [number for number, _ in found], np.stack(rows) if rows else np.zeros((0, 1), np.float32)

    made: tuple[list[int], np.ndarray[Any, np.dtype[np.float32]]] = project.remembered("features", compute)
    return made


def _space(project: Project, session: Session) -> str:
    """The space in which images are compared: that of the detector in use, or the one that was computed last."""
    detector = project.detector_in_use(session)
    if detector is not None and (found := session.get(Detector, detector)) is not None:
        return found.space
    return project.get(session, "space")


def ranking(project: Project) -> dict[int, tuple[int, str]]:
    """What to label next: rank from 1 and reason of each image that is suggested."""

    def compute() -> dict[int, tuple[int, str]]:
        numbers, pooled = features(project)
        with project.database.look() as session:
            labels = dict(session.execute(select(Image.id, Image.label)).tuples().all())
            detector = project.detector_in_use(session)
            query = select(Said.image_id, Said.row).where(Said.detector_id == (detector or 0))
            rows: dict[int, Shown] = dict(session.execute(query).tuples().all())
        kinds = np.array([{"normal": 0, "abnormal": 1}.get(labels.get(n) or "", -1) for n in numbers], np.int8)
        chance = np.array([_chance(rows.get(number)) for number in numbers], np.float64)
        made: list[Suggestion] = what_next(pooled, kinds, chance, SUGGESTED) if numbers else []
        return {numbers[one.place]: (rank, one.reason) for rank, one in enumerate(made, 1)}

    found: dict[int, tuple[int, str]] = project.remembered("next", compute)
    return found


def _chance(row: Shown | None) -> float:
    """The probability of an anomaly, or the score where a detector has no calibration; NaN without either."""
    if row is None:
        return float("nan")
    value = row["probability"] if row["probability"] is not None else row["score"]
    return float("nan") if value is None else float(value)


def uncertainty(row: Shown) -> float | None:
    """How little a row decides: 1 where the probability is one half, 0 where it is 0 or 1."""
    chance = _chance(row)
    return None if np.isnan(chance) else 1 - 2 * abs(chance - 0.5)


def erase(project: Project, number: int) -> None:
    """Deletes an image for good: its thumbnail, tokens, maps, rows, label and mask; its file where it was uploaded.

    A file that was uploaded goes with the last of its images. Of an image that a detector has learned from, nothing
    but its digest stays in that detector's folder.

    Raises:
        LookupError: There is none.
    """
    places = project.places
    with project.database.change() as session:
        image = one(session, number)
        if image.learned:
            TokenCache(places.shot_tokens).clear()  # which of them are this image's is not known
        keys = session.scalars(select(Feature.key).where(Feature.image_id == number)).all()
        detectors = session.scalars(select(Detector)).all()
        session.execute(delete(Feature).where(Feature.image_id == number))
        session.execute(delete(Said).where(Said.image_id == number))
        for detector in detectors:
            detector.learned = {key: value for key, value in detector.learned.items() if key != str(number)}
            detector.held_out = {key: value for key, value in detector.held_out.items() if key != str(number)}
        session.delete(image)
        session.flush()
        others = session.scalar(select(func.count()).where(Image.path == image.path, Image.uploaded))
        left = session.scalar(select(func.count()).where(Image.volume_id == image.volume_id))
        if image.volume_id is not None and not left:
            session.execute(delete(Volume).where(Volume.id == image.volume_id))
    cache = TokenCache(places.image_tokens)
    for key in keys:
        cache.remove(key)
    paths = [places.thumbnail(number), *(places.map(detector.id, number) for detector in detectors)]
    paths += [places.mask(number, image.mask)] if image.mask else []
    paths += [places.uploads / image.path] if image.uploaded and not others else []
    for path in paths:
        path.unlink(missing_ok=True)
    project.database.settle()
    log("deleted", image=number)
