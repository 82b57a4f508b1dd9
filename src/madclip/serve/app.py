"""The server: its parts put together, started and ended."""

from __future__ import annotations

import logging
import os
import tempfile
from contextlib import asynccontextmanager
from dataclasses import dataclass
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import TYPE_CHECKING, Any

from madclip import __version__
from madclip.errors import DataError, MissingExtraError, RecipeError

try:
    import uvicorn
    from anyio import to_thread
    from fastapi import FastAPI
    from sqlalchemy import delete

    from madclip.serve.api import detectors, images, jobs, pages, project, volumes
    from madclip.serve.api.service import ERRORS, Service, tell_errors
    from madclip.serve.guard import Guard, is_loopback, read_tokens
    from madclip.serve.jobs import Jobs
    from madclip.serve.places import Places, locked
    from madclip.serve.project import Project, audit, most_memory
    from madclip.serve.tables import Session
except ImportError as missing:
    raise MissingExtraError.of("The server", "serve", str(missing)) from None

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

CONNECTIONS = 1000
"""Connections at once; more are told to come again."""
THREADS = 64
"""Requests that are answered at once, without those that wait for a prediction."""


@dataclass(frozen=True)
class Serving:
    """How a project is served.

    Attributes:
        project: Its folder.
        host: The address to listen at.
        port: The port to listen at; 0 takes a free one.
        token_file: Digests of the tokens that are needed; made where it is missing.
        folders: Folders to open at the start.
        backbone: The backbone of the next fit; None leaves what the project has.
        objective: What the images show; None likewise.
    """

    project: Path
    host: str = "127.0.0.1"
    port: int = 8765
    token_file: Path | None = None
    folders: Sequence[Path] = ()
    backbone: str | None = None
    objective: str | None = None


def make_app(service: Service) -> FastAPI:
    """The application of a service, without the guard around it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        service.jobs.start()
        yield

    app = FastAPI(
        title="madclip",
        version=__version__,
        summary="Few-shot anomaly detection in medical images: label, learn, look, correct.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
    )
    app.state.service = service
    tell_errors(app)
    for part in (project, images, volumes, jobs, detectors, pages):
        app.include_router(part.router)
    return app


def serve(serving: Serving, say: Callable[[str], None]) -> None:
    """Serves a project until Ctrl-C.

    Args:
        serving: What and how.
        say: Told each line for whoever started it.

    Raises:
        RecipeError: Others than this machine would be served without a token.
        DataError: The project, a folder or the address cannot be used.
    """
    from madclip.serve.intake import open_folder

    if serving.token_file is None and not is_loopback(serving.host):
        raise RecipeError(f"--host {serving.host} serves other machines too: give --token-file")
    tokens, made = read_tokens(serving.token_file) if serving.token_file else ((), None)
    with locked(Places(serving.project)):
        held = Project(serving.project, (serving.backbone,) if serving.backbone else ())
        work = Jobs(held, most_memory())
        try:
            held.tidy()
            # What is taken in waits on the project's own disk: the system's folder may be small, memory, or read-only.
            os.environ["TMPDIR"] = tempfile.tempdir = str(held.places.work)
            _keep_audit(held)
            say(f"backbone of the next fit: {_settle(held, serving)}")
            service = Service(held, work, local=not tokens and is_loopback(serving.host))
            for folder in serving.folders:
                found = open_folder(held, folder.expanduser().absolute())
                say(f"{folder}: {found['added']} images added, {found['images']} in the project")
            project.look_at_images(service)
            guard = Guard(make_app(service), held.database, tokens)
            service.guard = guard
            if made:
                say(f"token, shown this once: {made}")
            _listen(guard, service, serving, say)
        finally:
            work.close()
            held.close()


def _settle(held: Project, serving: Serving) -> str:
    """Takes over what the server was started with; gives the backbone."""
    with held.database.change() as session:
        session.execute(delete(Session))  # whoever logged in with a token that was taken back is out
        for key in ("backbone", "objective"):
            if value := getattr(serving, key):
                held.put(session, key, value)
        return held.get(session, "backbone")


def _keep_audit(held: Project) -> None:
    handler = logging.FileHandler(held.places.audit, encoding="ascii")
    handler.setFormatter(logging.Formatter("%(message)s"))
    held.places.audit.chmod(0o600)
    audit.handlers = [handler]
    audit.setLevel(logging.INFO)
    audit.propagate = False


def _listen(guard: Guard, service: Service, serving: Serving, say: Callable[[str], None]) -> None:
    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            service.stopping.set()  # whoever watches a job is not waited for
            super().handle_exit(sig, frame)

    settings = uvicorn.Config(
        guard,
        host=serving.host,
        port=serving.port,
        log_level="critical",  # its words on errors would quote names of files
        access_log=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=60,
        timeout_graceful_shutdown=3,
        server_header=False,
        proxy_headers=False,
    )
    server = Server(settings)
    try:
        socket = settings.bind_socket()
    except SystemExit:
        raise DataError(f"{serving.host}:{serving.port}: cannot listen there; another program may do so") from None
    # asyncio does this only to sockets that name their protocol; without it answers on kept connections wait 40 ms.
    socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    socket.listen(CONNECTIONS)  # who comes from now on waits a moment, and is not turned away
    host, port = socket.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    say(f"open http://{shown}:{port}/ in a browser; Ctrl-C ends it")
    server.run([socket])
