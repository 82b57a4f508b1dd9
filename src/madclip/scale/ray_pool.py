"""Work on many items by actors on a Ray cluster, behind the interface of local processes.

Plain actors, not Ray Data: it tries a block again for ever where its worker dies, so that one file that no worker
outlives would hold up an archive; and who writes what, each chunk one file, is decided here already.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from collections import deque
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from madclip import __version__
from madclip.errors import DataError, MadCLIPError, MissingExtraError, RecipeError
from madclip.files import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Item = TypeVar("Item")
Result = TypeVar("Result")

TRIES = 3
"""How often an item is worked on whose worker dies."""
PATIENCE = 300.0
"""Seconds for which no worker may be there before the run is given up."""
REACHED = 5.0
"""Seconds in which a cluster must answer."""
_PREFACE, _SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), bytes([4])
"""What a client of HTTP/2 begins with, and the kind of frame that a server answers with first."""
STORE = 100 * 2**20
"""Bytes of shared memory of a Ray that is started here; nothing large goes through it."""


@dataclass(frozen=True)
class RayExecutor:
    """Actors on a Ray cluster; see `Executor`.

    Args:
        address: HOST:PORT of a cluster of which this machine is a node, or `auto` for the one that runs here; None
            takes the cluster of the job that this is (`RAY_ADDRESS`), else starts Ray on this machine, for this run.
        workers: How many actors work; None takes as many as the cluster has room for.
        threads: CPUs, and threads of torch, of each.
        gpus: GPUs of each; a fraction lets several share one.
    """

    address: str | None = None
    workers: int | None = None
    threads: int = 1
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if min(1 if self.workers is None else self.workers, self.threads) < 1 or self.gpus < 0:
            raise RecipeError(f"{self.workers} workers with {self.threads} threads and {self.gpus} GPUs: give more")
        if self.address and "://" in self.address:
            raise RecipeError(
                f"--address {self.address}: give auto or HOST:PORT, on a node of the cluster; from outside of it, "
                "`ray job submit` runs the command there"
            )

    def run(
        self,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        lost: Callable[[Item], Result] | None = None,
    ) -> Iterator[Result]:
        """Yield the result of each item, in the order of the items; see `Executor.run`."""
        left = enumerate(items)
        first = next(left, None)
        if first is None:
            return
        with self._cluster() as ray:
            pool = _Pool(ray, self._actor(ray, work), self._count(ray), lost)
            try:
                yield from pool.run(chain([first], left))
            finally:
                pool.close()

    @contextmanager
    def _cluster(self) -> Iterator[Any]:
        """Ray, connected to a cluster; it is left at the end, unless whoever calls was connected before."""
        local = self.address is None and not os.environ.get("RAY_ADDRESS")
        # Ray prints what it has to say of workers to standard output, which is for results.
        with _token() if local else nullcontext(), redirect_stdout(sys.stderr):
            ray = _ray()
            if ray.is_initialized():
                self._check_connected(ray)
                yield ray
                return
            try:
                self._connect(ray, local=local)
                yield ray
            finally:
                ray.shutdown()

    def _check_connected(self, ray: Any) -> None:
        """See that whoever calls is connected to the cluster that is asked for.

        Raises:
            RecipeError: It is another.
        """
        connected = ray.get_runtime_context().gcs_address
        if self.address not in (None, "auto", connected):
            raise RecipeError(
                f"--address {self.address}: this process is connected to the Ray cluster at {connected}; leave that "
                "one first (ray.shutdown()), or give its address"
            )

    def _connect(self, ray: Any, *, local: bool) -> None:
        """Connect to the cluster, or start one here.

        Raises:
            DataError: It cannot be reached, or has another version of Ray or Python.
        """
        given: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if local:
            cores = max((self.workers or 0) * self.threads, os.cpu_count() or 1)
            given |= {"address": "local", "num_cpus": cores, "object_store_memory": STORE, "include_dashboard": False}
        else:
            given |= {"address": self.address or "auto"}
            if place := _known(self.address):
                _check_reached(place)
        try:
            ray.init(**given)
        except (OSError, RuntimeError, ValueError) as error:
            where = self.address or os.environ.get("RAY_ADDRESS") or "this machine"
            raise DataError(f"Ray at {where}: {' '.join(str(error).split())}") from error

    def _count(self, ray: Any) -> int:
        """How many workers there are to be.

        Raises:
            DataError: No node has room for one.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        room = [
            int(min(node.get("CPU", 0) // self.threads, node.get("GPU", 0) / self.gpus if self.gpus else float("inf")))
            for node in nodes
        ]
        if not any(room):
            raise DataError(
                f"no node of the Ray cluster has the {self.threads} CPUs and {self.gpus:g} GPUs of a worker: ask for "
                "fewer (--threads, --gpus-per-worker)"
            )
        return self.workers or sum(room)

    def _actor(self, ray: Any, work: Callable[[Item], Result]) -> Callable[[], Any]:
        """What starts an actor; one that dies is replaced by the pool, which knows what it was working on."""
        options = {"num_cpus": self.threads, "num_gpus": self.gpus, "max_restarts": 0, "max_task_retries": 0}
        kind = ray.remote(**options)(Worker)
        held, folder = ray.put(work), str(Path.cwd())
        return lambda: kind.remote(held, self.threads, __version__, folder)


class Worker:
    """One worker: it holds its copy of the work, like a local process.

    Args:
        work: See `Executor.run`.
        threads: Threads of torch.
        version: The version of the package where the run was started.
        folder: The folder in which it was: paths mean the same here, on a node that sees that folder.
    """

    def __init__(self, work: Callable[[Any], Any], threads: int, version: str, folder: str) -> None:
        import torch

        torch.set_num_threads(threads)
        with suppress(OSError):
            os.chdir(folder)
        self.work, self.version = work, version

    def check(self) -> None:
        """See that this node has the same package.

        Raises:
            DataError: It has another.
        """
        if self.version != __version__:
            host = socket.gethostname()
            raise DataError(f"node {host} of the Ray cluster has madclip {__version__}, this one {self.version}")

    def run(self, item: Any) -> Any:
        """The result of an item."""
        return self.work(item)


@dataclass
class _Task(Generic[Item]):
    place: int
    item: Item
    tries: int = 0


class _Pool(Generic[Item, Result]):
    """Actors, and what each of them is at.

    Args:
        ray: The module.
        start: Starts an actor.
        count: How many there are to be.
        lost: As for `Executor.run`.
    """

    def __init__(self, ray: Any, start: Callable[[], Any], count: int, lost: Callable[[Item], Result] | None) -> None:
        self._ray, self._start, self._lost = ray, start, lost
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}
        self._running: dict[Any, tuple[Any, _Task[Item]]] = {}
        self._again: deque[_Task[Item]] = deque()
        self._count, self._failed = count, 0

    def run(self, items: Iterable[tuple[int, Item]]) -> Iterator[Result]:
        """Results in the order of the items, which are numbered; a worker never waits for the result of another."""
        left = (_Task(place, item) for place, item in items)
        for _ in range(self._count):
            self._add()
        results: dict[int, Result] = {}
        due = 0
        while self._hand_out(left):
            for task, result in self._wait():
                results[task.place] = result
            while due in results:
                yield results.pop(due)
                due += 1

    def close(self) -> None:
        """End all actors, and hear that they are gone: Ray may crash where that comes while it is being left."""
        actors = [*self._idle, *self._starting.values(), *(actor for actor, _ in self._running.values())]
        for actor in actors:
            self._ray.kill(actor)
        if actors:
            gone = [actor.check.remote() for actor in actors]
            self._ray.wait(gone, num_returns=len(gone), timeout=REACHED)

    def _add(self) -> None:
        actor = self._start()
        self._starting[actor.check.remote()] = actor

    def _hand_out(self, left: Iterator[_Task[Item]]) -> bool:
        """Give what is left to those who have nothing to do; says whether anything is under way or left."""
        while self._idle:
            task = self._again.popleft() if self._again else next(left, None)
            if task is None:
                return bool(self._running)
            actor = self._idle.pop()
            self._running[actor.run.remote(task.item)] = actor, task
        return True

    def _wait(self) -> Iterator[tuple[_Task[Item], Result]]:
        """What is done, as soon as anything is."""
        done, _ = self._ray.wait([*self._running, *self._starting], timeout=None if self._running else PATIENCE)
        if not done:
            raise DataError(f"the Ray cluster started no worker in {PATIENCE:.0f} s: are its nodes alive and free?")
        for ref in done:
            if ref in self._starting:
                self._started(ref)
                continue
            actor, task = self._running.pop(ref)
            try:
                result = self._got(ref)
            except _DiedError as error:
                task.tries += 1
                self._add()
                if task.tries < TRIES:
                    self._again.append(task)
                elif self._lost:
                    yield task, self._lost(task.item)
                else:
                    raise DataError(f"a worker was ended {TRIES} times by the same work ({error})") from error
            else:
                self._idle.append(actor)
                yield task, result

    def _started(self, ref: Any) -> None:
        actor = self._starting.pop(ref)
        try:
            self._got(ref)
        except _DiedError as error:
            self._failed += 1
            if self._failed >= TRIES * self._count:
                raise DataError(f"workers on the Ray cluster end as they start ({error})") from error
            self._add()
        else:
            self._idle.append(actor)

    def _got(self, ref: Any) -> Any:
        """A result; an error of the work is raised as it was there, without a second traceback."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as error:
            if isinstance(error.cause, MadCLIPError):
                raise error.cause from None
            raise
        except (errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError) as error:
            raise _DiedError(str(error).strip().splitlines()[-1][:200]) from error  # the cause comes last


class _DiedError(Exception):
    """A worker, or its node, is gone."""


@cache
def _secret() -> str:
    """The token of every Ray that this process starts: Ray reads it once and keeps it."""
    return secrets.token_hex(32)


@contextmanager
def _token() -> Iterator[None]:
    """Within it, a Ray that is started listens to nobody but this run: its ports are open to the network."""
    before = os.environ.copy()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", _secret())
    try:
        yield
    finally:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            if name not in before:
                del os.environ[name]


def _ray() -> Any:
    """The module `ray`, which tells nobody that it is used.

    Raises:
        MissingExtraError: It is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError.of("a cluster needs Ray", "ray", first_line(error)) from error
    return ray


def _check_reached(address: str) -> None:
    """See that gRPC is spoken at an address: Ray itself tries for minutes, and says a lot meanwhile.

    Raises:
        DataError: It is not.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), REACHED) as line:
            if os.environ.get("RAY_USE_TLS", "0") in ("0", ""):
                line.settimeout(REACHED)
                line.sendall(_PREFACE)
                answer = line.recv(4)
                if answer[3:] != _SETTINGS:
                    raise DataError(f"no Ray cluster at {address} (something else answers)")
    except (OSError, ValueError, OverflowError) as error:
        raise DataError(f"no Ray cluster at {address} ({error})") from error


def _known(address: str | None) -> str | None:
    """The address that Ray will take for `auto` or for that of the job; None where it knows none."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        found: str | None = canonicalize_bootstrap_address(address or "auto")
    except (OSError, ValueError) as error:
        raise DataError(f"--address {address}: {first_line(error)}") from error
    return found
