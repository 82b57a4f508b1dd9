"""Reading with a few threads ahead of what is asked for."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future

T = TypeVar("T")
S = TypeVar("S")


def read_many(
    sources: Iterable[S], read: Callable[[S], T], *, workers: int | None = None, ahead: int | None = None
) -> Iterator[tuple[S, T | DataError]]:
    """Reads with a few threads, in the given order and in constant memory.

    Args:
        sources: What to read.
        read: `read_image`, or another function of one source.
        workers: Threads; as many as cores, at most 8, when None.
        ahead: Sources that may be read before they are asked for; twice the threads when None.

    Yields:
        Each source with what was read, or with the DataError that it met: the rest goes on.
    """
    workers = workers or min(8, os.cpu_count() or 1)
    ahead = 2 * workers if ahead is None else ahead
    pending: deque[tuple[S, Future[T | DataError]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        try:
            for source in sources:
                pending.append((source, pool.submit(_guarded, read, source)))
                if len(pending) > ahead:
                    first, future = pending.popleft()
                    yield first, future.result()
            for last, future in pending:
                yield last, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _guarded(read: Callable[[S], T], source: S) -> T | DataError:
    try:
        return read(source)
    except DataError as error:
        return error
