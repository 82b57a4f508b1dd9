"""Jobs: a queue in the database, one learning process that does them, and what becomes of them after a crash."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from madclip.errors import MadCLIPError
from madclip.serve.orders import order
from madclip.serve.outcome import keep_detector, keep_row
from madclip.serve.project import Project, log
from madclip.serve.tables import Job
from madclip.serve.wire import Header, receive, send
from madclip.serve.workers import Child, FaultError, Watch, start

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

TRIES = 3
"""So often a job is begun that ends the process or the server each time."""
GRACE = 5.0
"""Seconds until a cancelled job that does not stop by itself is killed."""
ENDED = ("done", "failed", "cancelled")
WAITING = 50
"""Jobs that may wait."""


@dataclass
class Live:
    """How far the running job is, which is not worth a write to the disk.

    Attributes:
        job: Its number.
        stage: What it does.
        done: Units finished.
        total: Units in all.
        loss: Loss of the last step.
        begun: When this stage began, and how far it was then.
    """

    job: int
    stage: str = ""
    done: int = 0
    total: int = 0
    loss: float | None = None
    begun: tuple[float, int] = field(default_factory=lambda: (time.monotonic(), 0))

    def told(self, said: Header) -> None:
        """Takes word of progress."""
        if said["progress"] != self.stage or said["done"] < self.done:
            self.begun = (time.monotonic(), said["done"])
        self.stage, self.done, self.total, self.loss = said["progress"], said["done"], said["total"], said["loss"]

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the rest of this stage will take at its pace so far."""
        at, already = self.begun
        if not already < self.done <= self.total:
            return None
        return (time.monotonic() - at) / (self.done - already) * (self.total - self.done)


class Jobs:
    """The queue, and the thread that sees to it.

    Args:
        project: Whose jobs they are.
        memory: Bytes that the learning process may have.
    """

    def __init__(self, project: Project, memory: int) -> None:
        self.project, self._memory = project, memory
        self.live: Live | None = None
        self.finished = 0
        self._child: Child | None = None
        self._wake, self._stop = threading.Event(), threading.Event()
        self._cancel: str = ""
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)
        with project.database.change() as session:
            for job in session.scalars(select(Job).where(Job.state == "running")):
                job.state = "queued"

    def start(self) -> None:
        """Begins to do jobs, those first that a restart has interrupted."""
        self._thread.start()

    def close(self) -> None:
        """Ends the learning process; its job is resumed at the next start."""
        self._stop.set()
        self._wake.set()
        self._end_process()
        if self._thread.is_alive():
            self._thread.join(10)

    def add(self, session: Session, kind: str, parameters: dict[str, Any], *, background: bool = False) -> Job:
        """Puts a job into the queue; `begin` is to be called once it is committed."""
        job = Job(kind=kind, parameters=parameters, background=background)
        session.add(job)
        session.flush()
        log("job queued", job=job.id, kind=kind)
        return job

    def begin(self) -> None:
        """Looks whether there is something to do; what runs in the background gives way to what somebody asked for."""
        live = self.live
        if live is not None:
            with self.project.database.look() as session:
                running = session.get(Job, live.job)
                asked = session.scalar(select(Job.id).where(Job.state == "queued", ~Job.background).limit(1))
            if running is not None and running.background and asked is not None:
                self._ask_to_stop("paused")
        self._wake.set()

    def cancel(self, number: int) -> None:
        """Cancels a job; one that is over stays as it is."""
        with self.project.database.change() as session:
            job = session.get(Job, number)
            if job is not None and job.state == "queued":
                job.state = "cancelled"
        if self.live is not None and self.live.job == number:
            self._ask_to_stop("cancelled")
        log("job cancelled", job=number)

    def _ask_to_stop(self, why: str) -> None:
        child, live = self._child, self.live
        self._cancel = why if why == "cancelled" else self._cancel or why
        if child is None:
            return
        try:
            send(child.to, {"cancel": True})
        except OSError:
            return

        def insist() -> None:
            if self.live is live and self._cancel:
                child.process.kill()

        timer = threading.Timer(GRACE, insist)
        timer.daemon = True
        timer.start()

    # The thread

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                job = self._next()
                if job is not None:
                    self._done_or_failed(job)
                    continue
            except Exception as error:  # noqa: BLE001  (a full disk may be freed, and then the queue goes on)
                log("the queue waits", reason=type(error).__name__)
            self._wake.wait(1.0)
            self._wake.clear()

    def _done_or_failed(self, job: Job) -> None:
        try:
            self._do(job)
        except Exception as error:  # noqa: BLE001  (a fault in one job, and the next one is done)
            self._end_process()  # whatever it has still to say belongs to this job
            if not self._stop.is_set():
                self._end(job.id, "failed", f"a fault of the server ({type(error).__name__})")
        finally:
            self.live = None

    def _next(self) -> Job | None:
        query = select(Job).where(Job.state == "queued").order_by(Job.background, Job.id).limit(1)
        with self.project.database.look() as session:
            if session.scalar(query) is None:
                return None
        with self.project.database.change() as session:
            job = session.scalar(query)
            if job is None:
                return None
            if job.tries >= TRIES:
                job.state, job.error = "failed", f"begun {TRIES} times, and the process or the server ended each time"
                return None
            job.state, job.tries = "running", job.tries + 1
            self._cancel = ""
            self.live = Live(job.id)
            return job

    def _do(self, job: Job) -> None:
        state, error, result = "done", None, None
        try:
            for part in order(self.project, job):
                state, error, result = self._part(job, part)
                if state != "done":
                    break
        except MadCLIPError as refused:
            state, error = "failed", str(refused)
        if state in ("paused", "lost"):
            with self.project.database.change() as session:
                kept = session.get_one(Job, job.id)
                kept.state = "queued"
                kept.tries -= state == "paused"
            return
        self._end(job.id, state, error, result)

    def _part(self, job: Job, part: Header) -> tuple[str, str | None, Any]:
        """Lets the learning process do one part of a job: how it ended, why, and what came of it."""
        watch = None
        with suppress(OSError, ValueError, FaultError):  # the pipe is broken or closed, or it ended before it was ready
            child = self._started()
            with Watch(child, self._memory) as watch:
                ended = self._followed(child, job, part)
            if ended is not None:
                return ended
        self._end_process()
        if watch is not None and watch.reason:
            return "failed", f"this job {watch.reason}: use fewer or smaller images, or a smaller backbone", None
        return self._cancel or ("paused" if self._stop.is_set() else "lost"), None, None

    def _followed(self, child: Child, job: Job, part: Header) -> tuple[str, str | None, Any] | None:
        """Hands a part over and keeps what is told of it; None where the process ends before it says how that ended."""
        send(child.to, part)
        if self._cancel:
            send(child.to, {"cancel": True})
        while (frame := receive(child.back)) is not None:
            said, body = frame
            if "progress" in said and self.live is not None:
                self.live.told(said)
            elif "fitted" in said:
                keep_detector(self.project, job, said["fitted"])
            elif "image" in said:
                keep_row(self.project, said, body, part.get("number"))
            elif "end" in said:
                ended = self._cancel if said["end"] == "cancelled" else said["end"]
                return ended or "cancelled", said.get("error"), said.get("result")
        return None

    def _started(self) -> Child:
        if self._child is None or self._child.process.poll() is not None:
            self._child = start("madclip.serve.learning")
        return self._child

    def _end_process(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()

    def _end(self, number: int, state: str, error: str | None, result: Any = None) -> None:
        live = self.live
        with self.project.database.change() as session:
            job = session.get_one(Job, number)
            job.state, job.error, job.result = state, error, result
            if live is not None:
                job.stage, job.done, job.total = live.stage, live.done, live.total
        self.project.places.state(number).unlink(missing_ok=True)
        self.finished += 1
        log("job ended", job=number, state=state)

    def shown(self, job: Job) -> dict[str, Any]:
        """A job as the API gives it."""
        live = self.live if self.live is not None and self.live.job == job.id and job.state == "running" else None
        return {
            "id": job.id,
            "kind": job.kind,
            "state": job.state,
            "stage": live.stage if live else job.stage,
            "done": live.done if live else job.done,
            "total": live.total if live else job.total,
            "loss": live.loss if live else None,
            "seconds_left": live.seconds_left if live else None,
            "error": job.error,
            "made": job.made,
            "detector": job.detector_id,
            "background": job.background,
            "result": job.result,
        }
