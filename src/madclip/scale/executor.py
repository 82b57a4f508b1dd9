"""Work on many items by processes of this machine; the results do not depend on how many there are."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection, get_context, parent_process
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from madclip.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

AHEAD = 4
"""Items for each worker that are handed over before the first of them is done."""
Item = TypeVar("Item")
Result = TypeVar("Result")


class Executor(Protocol):
    """Whatever can work on many items: processes of this machine, or a cluster."""

    @property
    def threads(self) -> int:
        """Threads of torch in each worker, on which the last digits of results depend."""
        ...

    def run(
        self,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        lost: Callable[[Item], Result] | None = None,
    ) -> Iterator[Result]:
        """Yield the result of each item, in the order of the items.

        Args:
            work: Called with one item at a time. Each process has one copy of it, which stays there: what it keeps of
                an item (weights it has loaded, tokens) is at hand for the items that follow. It can be pickled.
            items: What is worked on, asked for as workers are free. They can be pickled, like the results.
            lost: Gives what stands for the result of an item that ended its worker as often as it was tried, where
                the executor replaces workers; None has that raised.

        Raises:
            DataError: A process was ended from outside.
        """


@dataclass(frozen=True)
class LocalProcesses:
    """Processes of this machine; one worker is this process itself.

    Args:
        workers: How many processes work, from 1.
        threads: Threads of torch in each, on which the last digits of results depend.
    """

    workers: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        if min(self.workers, self.threads) < 1:
            raise RecipeError(f"{self.workers} workers with {self.threads} threads: give at least 1 of each")

    def run(
        self,
        work: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        lost: Callable[[Item], Result] | None = None,  # noqa: ARG002  (no worker is replaced here)
    ) -> Iterator[Result]:
        """Yield the result of each item, in the order of the items; see `Executor.run`."""
        if self.workers == 1:
            for item in items:
                with _threads(self.threads):
                    result = work(item)
                yield result
            return
        with ProcessPoolExecutor(self.workers, get_context("spawn"), _start, (work, self.threads)) as pool:
            try:
                pending: deque[Future[Result]] = deque()
                for item in items:
                    pending.append(pool.submit(_work, item))
                    if len(pending) > AHEAD * self.workers:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            except BrokenProcessPool as error:
                raise DataError(
                    "a worker was ended from outside, perhaps for want of memory: try again with fewer workers"
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def run_alone(function: Callable[..., Result], *arguments: Any) -> Result:
    """The result of a function in a new process that ends with it, so that its memory is its own.

    What it prints goes to standard error.

    Raises:
        DataError: The process was ended from outside.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), _start_alone) as pool:
        try:
            return pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            raise DataError("the process was ended from outside, perhaps for want of memory") from error


_here: list[Callable[[Any], Any]] = []
"""In a worker: the copy of the work that it holds; a pool can hand it over in no other way."""


def _start(work: Callable[[Any], Any], threads: int) -> None:
    """Make a new process a worker."""
    import torch

    _end_with_parent()
    torch.set_num_threads(threads)
    _here.append(work)


def _work(item: Any) -> Any:
    return _here[0](item)


def _start_alone() -> None:
    _end_with_parent()
    os.dup2(2, 1)


def _end_with_parent() -> None:
    """End this process when its parent ends: it would wait for its next item for ever."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    Thread(target=watch, daemon=True).start()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Within it, torch has this many threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
