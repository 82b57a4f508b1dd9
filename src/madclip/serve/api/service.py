"""What every answer needs, and how errors are told."""

from __future__ import annotations

import sys
import threading
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from madclip.errors import MadCLIPError, MissingExtraError
from madclip.serve.api.models import Refusal
from madclip.serve.images import shown
from madclip.serve.jobs import Jobs
from madclip.serve.labels import ChangedError
from madclip.serve.project import Project
from madclip.serve.workers import BusyError, FaultError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from madclip.serve.guard import Guard
    from madclip.serve.tables import Image


@dataclass
class Service:
    """The parts of a running server.

    Attributes:
        project: What it serves.
        jobs: What is done for it.
        stopping: Set when the server is about to end.
        local: Whether only this machine can ask, so that folders of it may be opened.
        guard: Who may ask.
    """

    project: Project
    jobs: Jobs
    local: bool
    guard: Guard | None = None
    stopping: threading.Event = field(default_factory=threading.Event)


class ApiError(Exception):
    """A refusal with a status and a code."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def _service(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


Served = Annotated[Service, Depends(_service)]
Id = Annotated[int, Path(ge=1, le=2**53)]
_MEANING = {
    400: "The request cannot be understood.",
    401: "A token is needed.",
    403: "Not from this host or origin.",
    404: "There is no such thing.",
    409: "It was changed meanwhile, or is not in a state for this.",
    413: "Too large.",
    415: "Of another type.",
    422: "A value makes no sense, or a file cannot be used.",
    429: "Too many at once: come again.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": Refusal, "description": meaning} for status, meaning in _MEANING.items()
}
"""What every answer may be instead of what was asked for."""


def refusal(status: int, code: str, message: str, **more: Any) -> JSONResponse:
    """The body of an answer that is no success."""
    headers = {"retry-after": "1"} if status == 429 else None
    return JSONResponse({"error": {"code": code, "message": message}, **more}, status, headers)


def image_shown(service: Service, image: Image) -> dict[str, Any]:
    """One image as the API gives it."""
    with service.project.database.look() as session:
        return shown(service.project, session, [image])[0]


def tell_errors(app: FastAPI) -> None:
    """Turns errors into answers: what a user can mend in its own words, all else without a trace of the program."""

    @app.exception_handler(ApiError)
    def _(_: Request, error: ApiError) -> Response:
        return refusal(error.status, error.code, str(error))

    @app.exception_handler(LookupError)
    def _(_: Request, error: LookupError) -> Response:
        return refusal(404, "not_found", str(error).strip("'"))

    @app.exception_handler(ChangedError)
    def _(request: Request, error: ChangedError) -> Response:
        return refusal(409, "conflict", str(error), image=image_shown(_service(request), error.image))

    @app.exception_handler(MadCLIPError)
    def _(_: Request, error: MadCLIPError) -> Response:
        if isinstance(error, BusyError):
            return refusal(429, "busy", str(error))
        if isinstance(error, FaultError):
            return refusal(500, "fault", str(error))
        return refusal(422, "missing_extra" if isinstance(error, MissingExtraError) else "unusable", str(error))

    @app.exception_handler(RequestValidationError)
    def _(_: Request, error: RequestValidationError) -> Response:
        # What was sent is not repeated: it may be no JSON (1e400), or somebody's name.
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier())
        return refusal(422, "invalid", f"{where}: {first['msg']}")

    @app.exception_handler(HTTPException)
    def _(_: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method"}.get(error.status_code, "invalid")
        return refusal(error.status_code, code, str(error.detail))

    @app.exception_handler(Exception)
    def _(_: Request, error: Exception) -> Response:
        # Its words may quote a file's name: its kind and its place are enough to find it.
        last = traceback.extract_tb(error.__traceback__)[-1]
        print(f"madclip serve: {type(error).__name__} in {last.name}, line {last.lineno}", file=sys.stderr)
        return refusal(500, "fault", f"an unforeseen error ({type(error).__name__})")
