"""Detectors: every one is kept; what each learned, what it gets wrong, and what it says of a file that is sent."""

from __future__ import annotations

import csv
import io
import json
import secrets
import shutil
import tempfile
import zipfile
from typing import TYPE_CHECKING, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse
from sqlalchemy import delete, select
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile

from madclip.serve import images, intake
from madclip.serve.api.models import Curve, Detector, Detectors, Predicted, Row, WrongImages
from madclip.serve.api.project import look_at_images
from madclip.serve.api.service import ApiError, Id, Served, Service
from madclip.serve.project import PREDICTING, log
from madclip.serve.tables import ABNORMAL, Image, Job, Said
from madclip.serve.tables import Detector as Kept

if TYPE_CHECKING:
    from typing import BinaryIO

    from sqlalchemy.orm import Session

router = APIRouter(prefix="/v1", tags=["detectors"])
WAITING = CapacityLimiter(2 * PREDICTING)
REPORT = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; sandbox allow-scripts"
)
"""What a report may do: run its own script in an origin of its own, from which nothing here can be asked."""
SECONDS = 300.0
"""Seconds that a prediction of a file may take."""


def _found(session: Session, number: int) -> Kept:
    detector = session.get(Kept, number)
    if detector is None:
        raise ApiError(404, "not_found", f"there is no detector {number}")
    return detector


def _shown(service: Service, session: Session, kept: Kept) -> Detector:
    engines = service.project.places.detector(kept.id) / "engines"
    exports = sorted({path.name.partition("-")[0] for path in engines.iterdir()}) if engines.is_dir() else []
    columns = {name: getattr(kept, name) for name in Detector.model_fields if name not in ("active", "exports")}
    active = service.project.detector_in_use(session) == kept.id
    return Detector.model_validate({**columns, "active": active, "exports": exports})


@router.get("/detectors")
def list_detectors(service: Served) -> Detectors:
    """All detectors, the newest first."""
    with service.project.database.look() as session:
        kept = session.scalars(select(Kept).order_by(Kept.id.desc())).all()
        return Detectors(detectors=[_shown(service, session, one) for one in kept])


@router.get("/detectors/{number}")
def get_detector(service: Served, number: Id) -> Detector:
    """One detector."""
    with service.project.database.look() as session:
        return _shown(service, session, _found(session, number))


@router.post("/detectors/{number}/activate")
def activate(service: Served, number: Id) -> Detector:
    """Use this detector from now on; images that it has not said anything of are predicted in the background."""
    with service.project.database.change() as session:
        kept = _found(session, number)
        service.project.put(session, "detector", str(number))
        service.project.put(session, "space", kept.space)
        made = _shown(service, session, kept)
    log("detector in use", detector=number)
    look_at_images(service)
    return made


@router.delete("/detectors/{number}", status_code=204)
def remove(service: Served, number: Id) -> None:
    """Delete a detector with its maps and exports; not the one in use."""
    with service.project.database.change() as session:
        _found(session, number)
        if service.project.detector_in_use(session) == number:
            raise ApiError(409, "in_use", "this detector is in use; activate another one first")
        session.execute(delete(Said).where(Said.detector_id == number))
        session.execute(delete(Kept).where(Kept.id == number))
    for folder in (service.project.places.detector(number), service.project.places.maps(number)):
        shutil.rmtree(folder, ignore_errors=True)
    log("detector deleted", detector=number)


@router.get("/detectors/{number}/wrong")
def wrong(service: Served, number: Id) -> WrongImages:
    """Labelled images whose out-of-fold score is on the wrong side of the threshold, the worst first."""
    with service.project.database.look() as session:
        kept = _found(session, number)
        scores = {int(key): float(score) for key, score in kept.held_out.items()}
        query = select(Image).where(Image.id.in_(scores), Image.label.is_not(None))
        labelled = {image.id: image for image in session.scalars(query)}
        threshold = kept.threshold
        found = [
            image
            for image in labelled.values()
            if threshold is not None and (scores[image.id] >= threshold) != (image.label == ABNORMAL)
        ]
        found.sort(key=lambda image: -abs(scores[image.id] - (threshold or 0)))
        made = images.shown(service.project, session, found)
    said = ["anomalous" if scores[one["id"]] >= (threshold or 0) else "normal" for one in made]
    rows = [
        {"image": one, "score": scores[one["id"]], "said": word, "label": one["label"]}
        for one, word in zip(made, said, strict=True)
    ]
    return WrongImages.model_validate({"images": rows})


@router.get("/detectors/{number}/curve")
def curve(service: Served, number: Id) -> Curve:
    """Out-of-fold scores of both classes, for a histogram and for what a threshold costs."""
    with service.project.database.look() as session:
        kept = _found(session, number)
        return Curve(normal=kept.curve["normal"], abnormal=kept.curve["abnormal"], threshold=kept.threshold)


@router.get(
    "/detectors/{number}/folder.zip", response_class=Response, responses={200: {"content": {"application/zip": {}}}}
)
def folder(service: Served, number: Id) -> Response:
    """The detector's folder, as `madclip predict` takes it, with its exports."""
    with service.project.database.look() as session:
        _found(session, number)
    root = service.project.places.detector(number)
    work = service.project.places.work
    with tempfile.NamedTemporaryFile(dir=work, suffix=".zip", delete=False) as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(root.rglob("*")):
                if path.is_file():
                    archive.write(path, f"detector-{number}/{path.relative_to(root).as_posix()}")
        name = file.name
    made = work / name
    name = f"detector-{number}.zip"
    return FileResponse(made, media_type="application/zip", filename=name, background=BackgroundTask(made.unlink))


_FILE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


@router.post("/detectors/{number}/predict", openapi_extra=_FILE)
async def predict(
    service: Served,
    number: Id,
    request: Request,
    wanted: Literal["none", "png", "npy", "nifti"] = Query("none", alias="map"),
) -> Predicted:
    """What a detector says of an image, a volume or a zipped study; nothing of it is kept."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(415, "type", "a file comes as multipart/form-data in the field file")
    async with request.form(max_files=1, max_fields=10) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise ApiError(422, "invalid", "file: no file was sent")
        # Threads of their own: those who wait for the one predicting process hold up nobody else.
        given = (service, number, file.file, file.filename or "", wanted)
        return await to_thread.run_sync(_predicted, *given, limiter=WAITING)


def _predicted(service: Service, number: int, source: BinaryIO, name: str, wanted: str) -> Predicted:
    project = service.project
    with project.database.look() as session:
        _found(session, number)
    stem = project.places.work / f"predict-{secrets.token_hex(8)}"
    path = intake.taken(project, source, stem, name)
    try:
        arguments: dict[str, Any] = {
            "path": str(path),
            "name": intake.shown_name(name),
            "work": f"{stem}.study",
            "wanted": wanted,
        }
        folder_ = str(project.places.detector(number))
        _, body = project.predictor.call("predict", detector=folder_, seconds=SECONDS, **arguments)
        return Predicted.model_validate(json.loads(body))
    finally:
        path.unlink(missing_ok=True)


@router.get("/results.csv", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
def results(service: Served) -> Response:
    """What the detector in use says of all images, a row each."""
    text = io.StringIO()
    table = csv.DictWriter(text, [*Row.model_fields, "label"], lineterminator="\n")
    table.writeheader()
    with service.project.database.look() as session:
        detector = service.project.detector_in_use(session) or 0
        query = select(Said.row, Image.label).join(Image).where(Said.detector_id == detector).order_by(Image.name)
        for row, label in session.execute(query.order_by(Image.id)):
            table.writerow({key: _harmless(value) for key, value in {**row, "label": label}.items()})
    headers = {"content-disposition": 'attachment; filename="results.csv"'}
    return Response(text.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _harmless(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: names come from outside."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value


@router.get("/report.html", response_class=Response, responses={200: {"content": {"text/html": {}}}})
def report(service: Served) -> Response:
    """The page of the last evaluation."""
    with service.project.database.look() as session:
        done = select(Job.id).where(Job.kind == "evaluate", Job.state == "done").order_by(Job.id.desc())
        for number in session.scalars(done):
            path = service.project.places.report(number)
            if path.is_file():
                policy = REPORT
                return FileResponse(path, media_type="text/html", headers={"content-security-policy": policy})
    raise ApiError(404, "not_found", "nothing was evaluated yet")
