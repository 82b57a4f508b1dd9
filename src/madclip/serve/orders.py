"""What the learning process is told to do for a job: its parts, from what the database holds when each begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from madclip.backbones.names import default_recipe
from madclip.data.patients import find_patients
from madclip.errors import DataError, RecipeError
from madclip.serve.tables import ABNORMAL, Detector, Feature, Image, Job, Said, Volume

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.orm import Session

    from madclip.serve.project import Project
    from madclip.serve.wire import Header

CHECKED = 32
"""Images that an export is checked on."""


def order(project: Project, job: Job) -> Iterator[Header]:
    """The parts of a job, one after the other; each is made when the one before it is done.

    Raises:
        DataError: What it needs is not there.
    """
    if job.kind in ("fit", "refit"):
        with project.database.look() as session:
            finished = session.get(Detector, job.id) is not None
        if not finished:
            yield _fit(project, job)
        yield from _predict(project, job, job.id)
    elif job.kind == "predict":
        with project.database.look() as session:
            detector = project.detector_in_use(session)
        yield from _predict(project, job, detector)
    elif job.kind == "evaluate":
        yield _evaluate(project, job)
    else:
        yield _export(project, job)


def samples_of(project: Project, session: Session, images: Sequence[Image]) -> list[list[Any]]:
    """Labelled images as the learning process takes them: path, frame, axis, label, mask, patient, volume.

    Patients are those of a manifest or of headers; where nobody says, they are found in names as for folders.
    """
    names = [image.name.rpartition(".")[0] if image.frame is None else image.name for image in images]
    labels = [int(image.label == ABNORMAL) for image in images]
    guessed = find_patients(names, labels, "auto").of if not any(image.patient for image in images) else None
    keys = dict(session.execute(select(Volume.id, Volume.key)).tuples().all())
    made = []
    for number, image in enumerate(images):
        mask = project.places.mask(image.id, image.mask) if image.mask and image.label == ABNORMAL else None
        patient = guessed[number] if guessed else image.patient
        volume = None if image.volume_id is None else keys[image.volume_id]
        made.append([*project.slice_of(image), labels[number], mask and str(mask), patient, volume])
    return made


def labelled(session: Session) -> list[Image]:
    """The images that have a label and can be read, in the order of their numbers."""
    query = select(Image).where(Image.label.is_not(None), Image.error.is_(None)).order_by(Image.id)
    return list(session.scalars(query))


def setting(project: Project, session: Session, parameters: dict[str, Any]) -> Header:
    """How a fit is to be done, where a job does not say all of it."""
    backbone = parameters.get("backbone") or project.get(session, "backbone")
    return {
        "recipe": parameters.get("recipe") or default_recipe(backbone),
        "changes": {k: tuple(v) if isinstance(v, list) else v for k, v in parameters.get("changes", {}).items()},
        "backbone": backbone,
        "objective": parameters.get("objective") or project.get(session, "objective"),
        "operating_point": parameters.get("operating_point", "youden"),
        "folds": parameters.get("folds"),
    }


def _fit(project: Project, job: Job) -> Header:
    places = project.places
    with project.database.change() as session:
        images = labelled(session)
        learned = {str(image.id): [image.label, image.mask] for image in images}
        chosen = setting(project, session, job.parameters)
        before = project.detector_in_use(session) if job.kind == "refit" else None
        if job.kind == "refit" and before is None:
            raise RecipeError("there is no detector to go on from; fit one first")
        if chosen["folds"] is None:
            # A detector of normal images alone has no head to go on from, and learns anew.
            made = session.get(Detector, before or 0)
            chosen["folds"] = 0 if made is not None and made.abnormal else 4
        kept = session.get_one(Job, job.id)
        same = kept.learned == learned and places.state(job.id).exists()
        kept.learned = job.learned = learned
        for image in images:
            image.learned = True
        samples = samples_of(project, session, images)
    if not same:
        places.state(job.id).unlink(missing_ok=True)
    return {
        "do": job.kind,
        "folder": str(places.detector(job.id)),
        "setting": chosen,
        "samples": samples,
        "before": None if before is None else str(places.detector(before)),
        "state": str(places.state(job.id)),
        "resume": same,
        "tokens": str(places.shot_tokens),
    }


def _predict(project: Project, job: Job, detector: int | None) -> Iterator[Header]:
    """The images that nothing is said of yet; asked for by number only those."""
    with project.database.look() as session:
        query = select(Image).order_by(Image.label.is_not(None), Image.id)
        if detector is None:
            space = project.get(session, "space")
            query = query.where(~select(Feature).where(Feature.image_id == Image.id, Feature.space == space).exists())
        else:
            said = select(Said).where(Said.image_id == Image.id, Said.detector_id == detector)
            query = query.where(~said.exists())
        if ids := job.parameters.get("ids"):
            query = query.where(Image.id.in_(ids))
        images = list(session.scalars(query))
        chosen = setting(project, session, _last_recipe(session) | job.parameters)
    if job.tries > 1:
        images = [image for image in images if _can_be_read(project, image)]
    slices = [[image.id, *project.slice_of(image)] for image in images]
    if not slices:
        return
    project.places.maps(detector or 0).mkdir(exist_ok=True, mode=0o700)
    yield {
        "do": "predict",
        "images": slices,
        "tokens": str(project.places.image_tokens),
        "detector": None if detector is None else str(project.places.detector(detector)),
        "maps": str(project.places.maps(detector or 0)),
        "setting": chosen,
        "number": detector,
    }


def _last_recipe(session: Session) -> dict[str, Any]:
    """The recipe that was asked for last, so that what is looked at beforehand serves the next fit."""
    query = select(Job.parameters).where(Job.kind == "fit").order_by(Job.id.desc()).limit(1)
    return session.scalar(query) or {}


def _can_be_read(project: Project, image: Image) -> bool:
    """Whether a reading process survives an image: one may have ended the learning process before."""
    try:
        project.read("size_of_image", image)
    except DataError as error:
        with project.database.change() as session:
            session.get_one(Image, image.id).error = str(error)
        return False
    return True


def _in_use(project: Project, session: Session) -> int:
    detector = project.detector_in_use(session)
    if detector is None:
        raise RecipeError("there is no detector; fit one first")
    return detector


def _evaluate(project: Project, job: Job) -> Header:
    with project.database.look() as session:
        detector = _in_use(project, session)
        images = labelled(session)
        if not images:
            raise DataError("no image has a label, so there is nothing to evaluate on")
        learned = session.get_one(Detector, detector).learned
        if all(str(image.id) in learned for image in images):
            raise DataError("the detector has learned from every labelled image: label some that it has not seen")
        samples = samples_of(project, session, images)
    return {
        "do": "evaluate",
        "detector": str(project.places.detector(detector)),
        "samples": samples,
        "report": str(project.places.report(job.id)),
        "title": f"Detector {detector}",
    }


def _export(project: Project, job: Job) -> Header:
    with project.database.look() as session:
        detector = job.parameters.get("detector") or _in_use(project, session)
        made = session.get(Detector, detector)
        shots = [int(number) for number in (made.learned if made else {})]
        query = select(Image).where(Image.error.is_(None)).order_by(Image.id.in_(shots).desc(), Image.id)
        files = dict.fromkeys(str(project.file_of(image)) for image in session.scalars(query.limit(CHECKED)))
    return {
        "do": "export",
        "detector": str(project.places.detector(detector)),
        "engine": job.parameters.get("format", "onnx"),
        "images": list(files),
        "work": str(project.places.work / f"export-{job.id}"),
    }


def counts(session: Session) -> dict[str, int]:
    """How many images there are, by label."""
    found = dict(session.execute(select(Image.label, func.count()).group_by(Image.label)).tuples().all())
    return {
        "images": sum(found.values()),
        "normal": found.get("normal", 0),
        "abnormal": found.get("abnormal", 0),
        "unlabelled": found.get(None, 0),
        "masks": session.scalar(select(func.count()).where(Image.mask.is_not(None))) or 0,
    }
