"""Memory that is freed and taken again at once, kept by the process in between (mallopt(3))."""

from __future__ import annotations

import ctypes
import platform
from contextlib import contextmanager
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_lock = Lock()
_holders: set[object] = set()


@contextmanager
def kept_memory() -> Iterator[None]:
    """Blocks that are freed stay with the process until the end of this one, whatever their size.

    glibc gives a large block back at once, and the system zeroes its pages anew at the next step: a tenth of a fit
    step's time. Afterwards memory goes back to the system, and glibc is as `keep_small_blocks` leaves it. May be
    nested, and entered by several threads. Nothing is done where there is no glibc.
    """
    library, holder = _glibc(), object()
    if library is None:
        yield
        return
    with _lock:
        _holders.add(holder)
        library.mallopt(_TRIM_THRESHOLD, -1)
        library.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        with _lock:
            _holders.discard(holder)
            if not _holders:
                _keep_small(library)
                library.malloc_trim(0)


@cache
def keep_small_blocks() -> None:
    """From here on glibc keeps freed blocks of less than 32 MiB, as it does once it has seen one of that size freed."""
    library = _glibc()
    with _lock:
        if library is not None and not _holders:
            _keep_small(library)


def _keep_small(library: ctypes.CDLL) -> None:
    library.mallopt(_MMAP_THRESHOLD, 32 << 20)
    library.mallopt(_TRIM_THRESHOLD, 64 << 20)
    library.mallopt(_MMAP_MAX, 65536)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
