"""Processes that answer the server: each is bounded in memory and time, and is replaced where it dies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
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


EVERY = 0.2
"""Seconds between two looks at how much memory a process has."""


class Watch:
    """Ends a process that takes too long, or has more memory than it may, while the context lasts.

    Memory is what lies in the machine's, as Linux tells it, and not what is reserved: CUDA reserves hundreds of GB.

    Args:
        child: The process.
        memory: Bytes that it may have; None is all there are.
        seconds: How long it may take; None is for ever.

    Attributes:
        reason: Why it was ended; empty where it was not.
    """

    def __init__(self, child: Child, memory: int | None, seconds: float | None = None) -> None:
        self._child, self._memory, self._seconds = child, memory, seconds
        self._over = threading.Event()
        self.reason = ""

    def __enter__(self) -> Self:
        if self._looked():  # also where what is asked for is done before the next look
            threading.Thread(target=self._run, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()

    def _run(self) -> None:
        end = time.monotonic() + (threading.TIMEOUT_MAX if self._seconds is None else self._seconds)
        while not self._over.wait(max(0.0, min(EVERY, end - time.monotonic()))):
            if not self._looked(late=time.monotonic() >= end):
                return

    def _looked(self, *, late: bool = False) -> bool:
        """Whether the process goes on."""
        if self._memory is not None and resident(self._child.process.pid) > self._memory:
            self.reason = f"took more than {self._memory / 1e9:.1f} GB of memory"
        elif late:
            self.reason = f"took longer than {self._seconds:.0f} s"
        if self.reason:
            self._child.process.kill()
        return not self.reason


def resident(process: int) -> int:
    """Bytes of the machine's memory that a process has; 0 where nobody tells."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def memory_of_machine() -> int:
    """Bytes of memory that this machine has, or the container that this runs in may have."""
    if not hasattr(os, "sysconf"):  # Windows
        return 2**62
    found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # no control group, or one that says "max"
            found = min(found, int(Path(file).read_text(encoding="ascii")))
    return found


class Worker:
    """One process, which does one thing at a time.

    Args:
        module: What it runs.
        memory: Bytes of memory that it may have; None where it sees to that itself.
    """

    def __init__(self, module: str, memory: int | None) -> None:
        self._module, self._memory = module, memory
        self._child: Child | None = None

    def call(self, do: str, body: bytes, seconds: float, arguments: dict[str, Any]) -> Answer:
        """Asks for one thing and waits for it.

        Raises:
            DataError: It took longer than `seconds`, or ended the process; or what the command raises.
        """
        child = self._running()
        with Watch(child, self._memory, seconds) as watch:
            try:
                send(child.to, {"do": do, **arguments}, body)
                found = receive(child.back)
            except OSError:
                found = None
        if found is None:
            self.end()
            raise DataError(f"this image {watch.reason or 'ended the process that was to read it'}, so it is not used")
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
        memory: Bytes of memory that each may have; None where they see to that themselves.
    """

    def __init__(self, module: str, count: int, waiting: int, memory: int | None = None) -> None:
        self._idle: LifoQueue[Worker] = LifoQueue()
        self._all = [Worker(module, memory) for _ in range(count)]
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
