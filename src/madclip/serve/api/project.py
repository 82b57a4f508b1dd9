"""The project as a whole: its settings, how images and labels come in and go out, and the server's own state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from sqlalchemy import func, select
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from madclip import __version__
from madclip.backbones.catalogue import catalogue
from madclip.backbones.names import DEFAULT_BACKBONE
from madclip.errors import DataError
from madclip.serve import images, intake, labels, orders
from madclip.serve.api.models import (
    FolderOpen,
    FolderOpened,
    Health,
    Login,
    ManifestRead,
    Project,
    ProjectChange,
    Uploaded,
)
from madclip.serve.api.service import ApiError, Served, Service
from madclip.serve.guard import COOKIE, DAY
from madclip.serve.places import size_of
from madclip.serve.tables import Image, Job
from madclip.training.cache import TokenCache

router = APIRouter(tags=["project"])
RESEARCH = "Research software, not a medical device. It ranks images by how anomalous they look beside a few examples."
MOST_FILES = 2_000
"""Files in one upload."""


@router.get("/healthz")
def health() -> Health:
    """That the server answers."""
    return Health(status="ok", version=__version__)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(service: Served) -> Response:
    """What a Prometheus server collects."""
    project = service.project
    with project.database.look() as session:
        count = orders.counts(session)
        states = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).tuples().all())
    lines = ["# TYPE madclip_images gauge"]
    lines += [f'madclip_images{{label="{kind}"}} {count[kind]}' for kind in ("normal", "abnormal", "unlabelled")]
    lines += ["# TYPE madclip_jobs gauge"]
    lines += [f'madclip_jobs{{state="{state}"}} {number}' for state, number in sorted(states.items())]
    lines += ["# TYPE madclip_jobs_ended_total counter", f"madclip_jobs_ended_total {service.jobs.finished}"]
    lines += ["# TYPE madclip_calls_total counter"]
    lines += [f'madclip_calls_total{{process="reading"}} {project.readers.calls}']
    lines += [f'madclip_calls_total{{process="predicting"}} {project.predictor.calls}']
    lines += ["# TYPE madclip_tokens_bytes gauge", f"madclip_tokens_bytes {_disk(service)['tokens']}"]
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")


@router.post("/v1/session", status_code=204)
def login(service: Served, given: Login, response: Response, request: Request) -> None:
    """Log a browser in with a token; the answer sets a cookie that scripts cannot read."""
    guard = service.guard
    if guard is None or not guard.tokens:
        return
    if guard.slowed():
        raise ApiError(429, "slow_down", "too many wrong tokens: come again in a minute")
    cookie = guard.login(given.token)
    if cookie is None:
        raise ApiError(401, "token", "this token is not known")
    secure = request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https"
    response.set_cookie(COOKIE, cookie, max_age=int(DAY), httponly=True, samesite="strict", secure=secure, path="/")


@router.delete("/v1/session", status_code=204)
def logout(service: Served, request: Request, response: Response) -> None:
    """Log this browser out."""
    if service.guard is not None and (cookie := request.cookies.get(COOKIE)):
        service.guard.logout(cookie)
    response.delete_cookie(COOKIE, path="/")


@router.get("/v1/project")
def get_project(service: Served) -> Project:
    """The project: what its images show, how many there are, the detector in use."""
    project = service.project
    with project.database.look() as session:
        return Project(
            name=project.places.root.name,
            objective=project.get(session, "objective"),
            backbone=project.get(session, "backbone"),
            backbones=_backbones(service),
            read_only=False,
            counts=orders.counts(session),  # type: ignore[arg-type]  # pydantic makes a Counts of it
            detector=project.detector_in_use(session),
            disk=_disk(service),  # type: ignore[arg-type]
            research_use=RESEARCH,
        )


def _backbones(service: Service) -> list[str]:
    """What may be chosen: what the server was started with, what comes with the package, what was downloaded."""
    here = [e.id for e in catalogue() if e.embed_dim and e.folder.is_dir() and any(e.folder.iterdir())]
    return list(dict.fromkeys([*service.project.backbones, DEFAULT_BACKBONE, "tiny", *here]))


def _disk(service: Service) -> dict[str, int]:
    project, places = service.project, service.project.places
    tokens = sum(TokenCache(folder).size() for folder in (places.image_tokens, places.shot_tokens))
    thumbnails = size_of(places.root / "thumbnails")
    return {"tokens": tokens, "tokens_limit": project.tokens_limit, "thumbnails": thumbnails}


@router.patch("/v1/project")
def patch_project(service: Served, change: ProjectChange) -> Project:
    """Change what the images show, the backbone of the next fit, or how much disk cached tokens may take."""
    project = service.project
    if change.backbone is not None and change.backbone not in _backbones(service):
        known = ", ".join(_backbones(service))
        raise ApiError(422, "unusable", f"this backbone is not on this machine; there are {known}")
    with project.database.change() as session:
        for key in ("objective", "backbone"):
            value = getattr(change, key)
            if value is not None:
                project.put(session, key, value.strip())
    if change.tokens_limit is not None:
        project.limit_tokens(change.tokens_limit)
    return get_project(service)


@router.post("/v1/folders", status_code=201)
def open_folder(service: Served, folder: FolderOpen) -> FolderOpened:
    """Open a folder of this machine; only a browser on this machine can."""
    if not service.local:
        raise ApiError(
            403, "not_local", "folders of the server's machine are opened by whoever starts it; upload files"
        )
    if "\0" in folder.path:
        raise ApiError(422, "invalid", "path: not a path")
    found = FolderOpened.model_validate(intake.open_folder(service.project, Path(folder.path)))
    look_at_images(service)
    return found


def look_at_images(service: Service) -> None:
    """Has new images looked at in the background, so that they can be compared and, by a detector, predicted."""
    with service.project.database.change() as session:
        waiting = select(Job.id).where(Job.state == "queued", Job.background)
        if session.scalar(waiting.limit(1)) is None:
            service.jobs.add(session, "predict", {}, background=True)
    service.jobs.begin()


_FILES = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            }
        },
    }
}


@router.post("/v1/uploads", status_code=201, openapi_extra=_FILES)
async def upload(service: Served, request: Request) -> Uploaded:
    """Keep uploaded files; the same content twice is the same image."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise ApiError(415, "type", "files come as multipart/form-data in the field files")
    async with request.form(max_files=MOST_FILES, max_fields=10) as form:
        files = [one for one in form.getlist("files") if isinstance(one, UploadFile)]
        if not files:
            raise ApiError(422, "invalid", "files: no file was sent")
        return await run_in_threadpool(_keep, service, files)


def _keep(service: Service, files: list[UploadFile]) -> Uploaded:
    numbers: list[int] = []
    refused = []
    for file in files:
        try:
            numbers += intake.upload(service.project, file.filename or "", file.file)
        except DataError as error:
            refused.append({"name": file.filename or "", "error": str(error)})
    with service.project.database.look() as session:
        kept = session.scalars(select(Image).where(Image.id.in_(numbers)).order_by(Image.id)).all()
        made = images.shown(service.project, session, kept)
    if numbers:
        look_at_images(service)
    return Uploaded.model_validate({"images": made, "refused": refused})


@router.get("/v1/manifest.csv", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
def get_manifest(service: Served) -> Response:
    """The labels as a manifest that every command of madclip reads."""
    text = labels.manifest(service.project).encode("utf-8", "surrogateescape")
    headers = {"content-disposition": 'attachment; filename="manifest.csv"'}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


_CSV: dict[str, Any] = {"requestBody": {"required": True, "content": {"text/csv": {"schema": {"type": "string"}}}}}


@router.post("/v1/manifest", openapi_extra=_CSV)
async def post_manifest(service: Served, request: Request) -> ManifestRead:
    """Take labels and masks from a manifest, for images that are in the project."""
    content = await request.body()
    return ManifestRead.model_validate(await run_in_threadpool(labels.read_manifest, service.project, content))
