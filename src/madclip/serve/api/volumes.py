"""Volumes as NIfTI: the scan, its heat map and its label map, all on one grid."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from madclip.errors import DataError
from madclip.serve import images, labels
from madclip.serve.api.models import Images, Volume
from madclip.serve.api.service import ApiError, Id, Served, Service
from madclip.serve.project import named
from madclip.serve.tables import Image

router = APIRouter(prefix="/v1/volumes/{number}", tags=["volumes"])
NIFTI: dict[int | str, dict[str, Any]] = {200: {"content": {"application/gzip": {}}}}
SECONDS = 120.0


def _slices(service: Service, number: int) -> list[Image]:
    """The slices of a volume, in order."""
    with service.project.database.look() as session:
        query = select(Image).where(Image.volume_id == number).order_by(Image.place, Image.id)
        found = list(session.scalars(query))
    if not found:
        raise ApiError(404, "not_found", f"there is no volume {number}")
    return found


Stretch = Annotated[int | None, Query(ge=1, le=100_000)]


@router.get("")
def get_volume(service: Served, number: Id) -> Volume:
    """How many slices a volume has, and how they are spaced."""
    slices = _slices(service, number)
    return Volume(id=number, slices=len(slices), stretches=_call(service, slices, "stretches")[0]["counts"])


def _call(service: Service, slices: list[Image], do: str, **more: Any) -> tuple[dict[str, Any], bytes]:
    project = service.project
    pool = project.predictor if do == "heat_volume" else project.readers
    places = [project.slice_of(image) for image in slices]
    try:
        return pool.call(do, images=places, seconds=SECONDS, **more)
    except DataError as error:
        raise DataError(named(str(error), places[0][0], slices[0].name)) from None


def _stretch(
    service: Service, slices: list[Image], stretch: int | None, do: str, **more: Any
) -> tuple[dict[str, Any], bytes]:
    """What a process says of one stretch of a volume's slices, counted from 1; of all, where that is but one."""
    found = _call(service, slices, do, stretch=stretch, **more)
    if "counts" not in found[0]:
        return found
    count = len(found[0]["counts"])
    if stretch is None:
        message = f"these slices lie in {count} evenly spaced stretches: ask for ?stretch=1 to {count}"
        raise ApiError(409, "stretches", message)
    raise ApiError(404, "not_found", f"volume {slices[0].volume_id} has {count} stretches")


def _gz(content: bytes) -> Response:
    return Response(content, media_type="application/gzip")


@router.get("/image.nii.gz", responses=NIFTI, response_class=Response)
def get_image(service: Served, number: Id, stretch: Stretch = None) -> Response:
    """The volume, in the values that its files mean."""
    return _gz(_stretch(service, _slices(service, number), stretch, "image_volume")[1])


@router.get("/heatmap.nii.gz", responses=NIFTI, response_class=Response)
def get_heatmap(service: Served, number: Id, stretch: Stretch = None) -> Response:
    """The maps of the detector in use on the volume's grid, float32 in 0..1."""
    slices, project = _slices(service, number), service.project
    with project.database.look() as session:
        detector = project.detector_in_use(session)
    maps = [project.places.map(detector or 0, image.id) for image in slices]
    kept = [str(path) if path.is_file() else None for path in maps]
    if detector is None or not any(kept):
        raise ApiError(404, "not_found", f"volume {number} has no prediction")
    width, height = labels.size_of(project, slices[0])
    folder = str(project.places.detector(detector))
    more = {"detector": folder, "maps": kept, "size": [height, width]}
    return _gz(_stretch(service, slices, stretch, "heat_volume", **more)[1])


@router.get("/mask.nii.gz", responses=NIFTI, response_class=Response)
def get_mask(service: Served, number: Id, stretch: Stretch = None) -> Response:
    """The masks of the slices as a label map, uint8, 1 where something is marked."""
    slices, project = _slices(service, number), service.project
    masks = [str(project.places.mask(image.id, image.mask)) if image.mask else None for image in slices]
    size = list(labels.size_of(project, slices[0]))
    return _gz(_stretch(service, slices, stretch, "mask_volume", masks=masks, size=size)[1])


_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.put("/mask.nii.gz", openapi_extra=_BODY)
async def put_mask(service: Served, number: Id, request: Request, stretch: Stretch = None) -> Images:
    """Take a label map on the volume's grid: it sets the masks of all slices; slices with something are abnormal."""
    content = await request.body()
    if not content:
        raise ApiError(422, "invalid", "the body is a label map as .nii or .nii.gz")
    return await run_in_threadpool(_keep, service, number, stretch, content)


def _keep(service: Service, number: int, stretch: int | None, content: bytes) -> Images:
    slices = _slices(service, number)
    found, body = _stretch(service, slices, stretch, "mask_slices", body=content)
    slices = slices[found["start"] :][: len(found["lengths"])]
    start = 0
    for image, length in zip(slices, found["lengths"], strict=True):
        part, start = body[start : start + length], start + length
        if part or image.mask:
            labels.keep_mask(service.project, image.id, part, None)
    with service.project.database.look() as session:
        numbers = [image.id for image in slices]
        changed = session.scalars(select(Image).where(Image.id.in_(numbers)).order_by(Image.place, Image.id)).all()
        return Images.model_validate({"images": images.shown(service.project, session, changed)})
