"""Jobs: begun, watched, cancelled."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from sqlalchemy import func, select
from starlette.concurrency import run_in_threadpool

from madclip.calibration.thresholds import parse_operating_point
from madclip.recipe import Recipe
from madclip.serve.api.models import Job, Jobs, JobWanted
from madclip.serve.api.service import ApiError, Id, Served, Service
from madclip.serve.jobs import ENDED, WAITING
from madclip.serve.orders import setting
from madclip.serve.tables import Detector
from madclip.serve.tables import Job as Kept
from madclip.serve.workers import BusyError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
EVERY = 0.15
"""Seconds between two looks at a job that is watched."""
QUIET = 15.0
"""Seconds after which an empty line says that the server is still there: proxies end what is quiet for a minute."""


def found(service: Service, number: int) -> Job:
    """The job of a number."""
    with service.project.database.look() as session:
        job = session.get(Kept, number)
    if job is None:
        raise ApiError(404, "not_found", f"there is no job {number}")
    return Job.model_validate(service.jobs.shown(job))


@router.post("", status_code=202)
def begin(service: Served, wanted: JobWanted) -> Job:
    """Begin a job: fit, refit, predict, evaluate or export; it goes on also after a restart of the server."""
    given = wanted.parameters
    parameters = given.model_dump(exclude_unset=True)
    parse_operating_point(given.operating_point)
    with service.project.database.change() as session:
        chosen = setting(service.project, session, parameters)
        Recipe.preset(chosen["recipe"], **chosen["changes"])
        parameters |= {name: chosen[name] for name in ("backbone", "objective")}
        waiting = session.scalar(select(func.count()).where(Kept.state == "queued", ~Kept.background)) or 0
        if waiting >= WAITING:
            raise BusyError(f"{waiting} jobs wait already: come again later")
        needs = wanted.kind in ("refit", "evaluate", "export")
        if needs and session.get(Detector, service.project.detector_in_use(session) or 0) is None:
            raise ApiError(409, "no_detector", f"{wanted.kind} needs a detector; fit one first")
        job = service.jobs.add(session, wanted.kind, parameters)
    service.jobs.begin()
    return found(service, job.id)


@router.get("")
def list_jobs(service: Served) -> Jobs:
    """The last jobs, the newest first."""
    with service.project.database.look() as session:
        jobs = session.scalars(select(Kept).order_by(Kept.id.desc()).limit(100)).all()
    return Jobs(jobs=[Job.model_validate(service.jobs.shown(job)) for job in jobs])


@router.get("/{number}")
def get_job(service: Served, number: Id) -> Job:
    """One job."""
    return found(service, number)


@router.delete("/{number}")
def cancel_job(service: Served, number: Id) -> Job:
    """Cancel a job; one that is over stays as it is."""
    found(service, number)
    service.jobs.cancel(number)
    return found(service, number)


@router.get(
    "/{number}/events", response_class=StreamingResponse, responses={200: {"content": {"text/event-stream": {}}}}
)
async def watch_job(service: Served, number: Id, request: Request) -> StreamingResponse:
    """A job as server-sent events, one whenever something changes; the stream ends when the job does."""
    await run_in_threadpool(found, service, number)

    async def events() -> AsyncIterator[str]:
        last, at = "", time.monotonic()
        while not service.stopping.is_set() and not await request.is_disconnected():
            job = await run_in_threadpool(found, service, number)
            said = json.dumps(job.model_dump(), ensure_ascii=False)
            if said != last:
                last, at = said, time.monotonic()
                yield f"data: {said}\n\n"
            elif time.monotonic() - at > QUIET:
                at = time.monotonic()
                yield ":\n\n"
            if job.state in ENDED:
                return
            await asyncio.sleep(EVERY)

    return StreamingResponse(events(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})
