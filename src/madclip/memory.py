"""Memory that is freed and taken again at once, kept by the process in between (mallopt(3))."""

from __future__ import annotations

import ctypes
import platform
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _MMAP_MAX: 65536}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Large blocks that are freed stay with the process until the end of the block, then go back to the system.

    glibc gives each large block back at once, and the system zeroes its pages anew at the next step: a tenth of a fit
    step's time. Nothing is done where there is no glibc.
    """
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(_TRIM_THRESHOLD, -1)
    library.mallopt(_MMAP_MAX, 0)
    try:
        yield
    finally:
        for option, value in _DEFAULTS.items():
            library.mallopt(option, value)
        library.malloc_trim(0)


@cache
def keep_small_blocks() -> None:
    """From here on glibc keeps freed blocks of less than 32 MiB, as it does once it has seen one of that size freed.

    The block is never written, so it takes no memory itself.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
