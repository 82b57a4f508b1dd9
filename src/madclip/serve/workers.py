"""Processes that answer the server: each is bounded in memory and time, and is replaced where it dies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from queue import LifoQueue
from typing import IO, TYPE_CHECKING, Any, Self

from madclip.errors import CheckpointError, DataError, MadCLIPError, MissingExtraError, RecipeError
from madclip.serve.wire import Answer, receive, send

if TYPE_CHECKING:
    from types import TracebackType

_KINDS: dict[str, type[MadCLIPError]] = {
    kind.__name__: kind for kind in (DataError, RecipeError, CheckpointError, MissingExtraError)
}


class BusyError(MadCLIPError):
    """More is asked for than is taken in: come again."""


class FaultError(MadCLIPError):
    """A fault of this program; its words are safe to show."""


@dataclass(frozen=True)
class Child:
    """A process of ours, and the pipes to it and from it."""

    process: subprocess.Popen[bytes]
    to: IO[bytes]
    back: IO[bytes]

    def end(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.to, self.back):
            with suppress(OSError):  # what was still to be written to it
                pipe.close()


def start(module: str) -> Child:
    """Starts a module of this package, which ends when its input does; it is ready when this returns.

    Raises:
        FaultError: It cannot be started.
    """
    # -P: a worker imports nothing from the folder that the server happens to stand in.
    command = [sys.executable, "-P", "-m", module]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603  (our own)
    if process.stdin is None or process.stdout is None:  # never, as pipes were asked for
        raise FaultError(f"{module} cannot be started")
    child = Child(process, process.stdin, process.stdout)
    if receive(child.back) is None:
        child.end()
        raise FaultError(f"{module} cannot be started")
    return child


class Worker:
    """One process, which does one thing at a time.

    Args:
        module: What it runs.
    """

    def __init__(self, module: str) -> None:
        self._module = module
        self._child: Child | None = None

    def call(self, do: str, body: bytes, seconds: float, arguments: dict[str, Any]) -> Answer:
        """Asks for one thing and waits for it.

        Raises:
            DataError: It took longer than `seconds`, or ended the process; or what the command raises.
        """
        child = self._running()
        late = threading.Event()

        def end() -> None:
            late.set()
            child.process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            send(child.to, {"do": do, **arguments}, body)
            found = receive(child.back)
        except OSError:
            found = None
        finally:
            timer.cancel()
        if found is None:
            self.end()
            reason = f"took longer than {seconds:.0f} s" if late.is_set() else "ended the process that was to read it"
            raise DataError(f"this image {reason}, so it is not used")
        if "error" in found[0]:
            raise _KINDS.get(found[0]["kind"], FaultError)(found[0]["error"])
        return found

    def _running(self) -> Child:
        if self._child is None or self._child.process.poll() is not None:
            self.end()
            self._child = start(self._module)
        return self._child

    def end(self) -> None:
        """Ends the process, whatever it does."""
        if self._child is not None:
            self._child.end()
            self._child = None


class Pool:
    """Several workers of one kind, and those who wait for one.

    Args:
        module: What they run.
        count: How many there are.
        waiting: How many calls may wait; more are refused.
    """

    def __init__(self, module: str, count: int, waiting: int) -> None:
        self._idle: LifoQueue[Worker] = LifoQueue()
        self._all = [Worker(module) for _ in range(count)]
        for worker in self._all:
            self._idle.put(worker)
        self._room = threading.Semaphore(count + waiting)
        self.calls = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for worker in self._all:
            worker.end()

    def call(self, do: str, *, body: bytes = b"", seconds: float = 30.0, **arguments: Any) -> Answer:
        """Asks whichever worker is free; errors as in `Worker.call`.

        Raises:
            BusyError: Too many wait already.
        """
        if not self._room.acquire(blocking=False):
            raise BusyError("too many requests at once: come again in a second")
        try:
            worker = self._idle.get()
            try:
                self.calls += 1
                return worker.call(do, body, seconds, arguments)
            finally:
                self._idle.put(worker)
        finally:
            self._room.release()


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
