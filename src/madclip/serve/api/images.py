"""Images, their pictures, and what a person says of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool

from madclip.errors import DataError
from madclip.serve import images, labels
from madclip.serve.api.models import Conflict, Image, ImagePage, Images, LabelChange, LabelMany, Verdict
from madclip.serve.api.service import ApiError, Id, Served, image_shown
from madclip.serve.tables import Image as Kept

router = APIRouter(prefix="/v1", tags=["images"])
CONFLICT: dict[int | str, dict[str, Any]] = {409: {"model": Conflict, "description": "It was changed meanwhile."}}
PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}
FLOATS: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": {}}}}
KEPT = {"cache-control": "private, max-age=3600"}
"""How long a browser may show a picture again without asking; what a person changes is never among these."""


Version = Annotated[str, Header(pattern=r'^"?[1-9][0-9]{0,14}"?$', description="The image's version, as a number.")]


def kept(service: Served, number: int) -> Kept:
    """The image of a number."""
    with service.project.database.look() as session:
        return images.one(session, number)


@router.get("/images")
def list_images(
    service: Served,
    sort: Literal["name", "score", "uncertainty", "next", "similarity"] = "name",
    order: Literal["asc", "desc"] | None = None,
    to: Annotated[int | None, Query(ge=1, le=2**53)] = None,
    label: Literal["normal", "abnormal", "none", "any"] = "any",
    verdict: Verdict | None = None,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 500,
) -> ImagePage:
    """Images in an order: by name, score, uncertainty, what to label next, or similarity to the image `to`."""
    wanted = images.Wanted(sort, order, to, label, verdict, offset, limit)
    return ImagePage.model_validate(images.page(service.project, wanted))


@router.get("/images/{number}")
def get_image(service: Served, number: Id) -> Image:
    """One image."""
    return Image.model_validate(image_shown(service, kept(service, number)))


@router.delete("/images/{number}", status_code=204)
def delete_image(service: Served, number: Id) -> None:
    """Delete an image with all that came of it; the file too where it was uploaded, never one of an opened folder."""
    images.erase(service.project, number)


@router.put("/images/{number}/label", responses=CONFLICT)
def put_label(service: Served, number: Id, change: LabelChange) -> Image:
    """Label an image; 409 where somebody else changed it since its version was read."""
    changed = labels.set_label(service.project, number, change.label, change.version)
    return Image.model_validate(image_shown(service, changed))


@router.post("/labels")
def post_labels(service: Served, change: LabelMany) -> Images:
    """Give many images one label, whatever they had."""
    changed = labels.set_labels(service.project, change.ids, change.label)
    with service.project.database.look() as session:
        return Images.model_validate({"images": images.shown(service.project, session, changed)})


@router.get("/next")
def get_next(service: Served, limit: Annotated[int, Query(ge=1, le=200)] = 20) -> Images:
    """What to label next, the most useful first, with the reason in words."""
    page = images.page(service.project, images.Wanted("next", label="none", limit=limit))
    return Images.model_validate({"images": [one for one in page["images"] if one["next"]]})


# Pictures


@router.get("/images/{number}/thumbnail.jpg", responses={200: {"content": {"image/jpeg": {}}}}, response_class=Response)
def get_thumbnail(service: Served, number: Id) -> Response:
    """A small JPEG, longer side 192."""
    image, project = kept(service, number), service.project
    path = project.places.thumbnail(number)
    try:
        fresh = path.stat().st_mtime_ns >= project.file_of(image).stat().st_mtime_ns
    except OSError:
        fresh = False
    if not fresh:
        try:
            found, _ = project.read("thumbnail", image, grey="file", out=str(path))
        except DataError as error:
            with project.database.change() as session:
                images.one(session, number).error = str(error)
            raise
        if image.width is None:
            with project.database.change() as session:
                again = images.one(session, number)
                again.width, again.height = found["width"], found["height"]
    return FileResponse(path, media_type="image/jpeg", headers=KEPT)


@router.get("/images/{number}/picture.png", responses=PNG, response_class=Response)
def get_picture(
    service: Served,
    number: Id,
    low: Annotated[float | None, Query(allow_inf_nan=False, ge=-1e9, le=1e9)] = None,
    high: Annotated[float | None, Query(allow_inf_nan=False, ge=-1e9, le=1e9)] = None,
) -> Response:
    """The image in 8 bits at its own size; `low` and `high` are the stored grey values of black and white."""
    if (low is None) != (high is None) or (low is not None and high is not None and low >= high):
        raise ApiError(422, "invalid", "give low and high, low below high, or neither")
    grey = "file" if low is None else f"{low!r},{high!r}"
    _, body = service.project.read("picture", kept(service, number), grey=grey)
    return Response(body, media_type="image/png", headers=KEPT)


@router.get("/images/{number}/pixels", responses=FLOATS, response_class=Response)
def get_pixels(service: Served, number: Id) -> Response:
    """Stored grey values, float32 little-endian [H, W]; X-Shape is H,W and X-Range the values of black and white."""
    found, body = service.project.read("pixels", kept(service, number), grey="file")
    height, width = found["shape"]
    headers = {**KEPT, "x-shape": f"{height},{width}", "x-range": ",".join(map(repr, found["range"]))}
    return Response(body, media_type="application/octet-stream", headers=headers)


# Masks


@router.get("/images/{number}/mask.png", responses=PNG, response_class=Response)
def get_mask(service: Served, number: Id) -> Response:
    """The mask of an image, 8 bits, 0 and 255."""
    image = kept(service, number)
    if image.mask is None:
        raise ApiError(404, "not_found", f"image {number} has no mask")
    content = service.project.places.mask(number, image.mask).read_bytes()
    return Response(content, media_type="image/png", headers={"etag": f'"{image.version}"'})


_BODY = {
    "requestBody": {"required": True, "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.put("/images/{number}/mask.png", responses=CONFLICT, openapi_extra=_BODY)
async def put_mask(service: Served, number: Id, request: Request, if_match: Version) -> Image:
    """Keep a painted mask of the image's own size; If-Match is the image's version that was painted on."""
    content = await request.body()
    return await run_in_threadpool(_keep_mask, service, number, content, if_match)


@router.delete("/images/{number}/mask.png", responses=CONFLICT)
def delete_mask(service: Served, number: Id, if_match: Version) -> Image:
    """Take the mask away; the label stays."""
    return _keep_mask(service, number, None, if_match)


def _keep_mask(service: Served, number: int, content: bytes | None, if_match: str) -> Image:
    version = int(if_match.strip('"'))
    if content is None:
        changed = labels.keep_mask(service.project, number, b"", version)
    else:
        changed = labels.set_mask(service.project, number, content, version)
    return Image.model_validate(image_shown(service, changed))


# Maps


def _map_of(service: Served, number: int) -> tuple[int, Kept]:
    """The detector in use and the image, where there is a map."""
    image = kept(service, number)
    with service.project.database.look() as session:
        detector = service.project.detector_in_use(session)
    if detector is None or not service.project.places.map(detector, number).is_file() or image.width is None:
        raise ApiError(404, "not_found", f"image {number} has no prediction")
    return detector, image


def _restored(service: Served, do: str, number: int, **more: Any) -> tuple[dict[str, Any], bytes]:
    detector, image = _map_of(service, number)
    project = service.project
    arguments: dict[str, Any] = {"kept": str(project.places.map(detector, number)), "size": [image.height, image.width]}
    if do == "overlay":
        arguments |= dict(zip(("path", "frame", "axis"), project.slice_of(image), strict=True))
    return project.predictor.call(do, detector=str(project.places.detector(detector)), **arguments, **more)


@router.get("/images/{number}/map", responses=FLOATS, response_class=Response)
def get_map(service: Served, number: Id) -> Response:
    """The anomaly map of the detector in use, float32 little-endian [H, W] in 0..1; X-Shape is H,W."""
    found, body = _restored(service, "heat", number)
    height, width = found["shape"]
    headers = {"x-shape": f"{height},{width}"}
    return Response(body, media_type="application/octet-stream", headers=headers)


@router.get("/images/{number}/overlay.png", responses=PNG, response_class=Response)
def get_overlay(service: Served, number: Id, threshold: Annotated[float | None, Query(ge=0, le=1)] = None) -> Response:
    """The map in colours over its image; with a threshold, the outline of what reaches it."""
    _, body = _restored(service, "overlay", number, threshold=threshold)
    return Response(body, media_type="image/png")
