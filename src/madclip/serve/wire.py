"""Frames between the server and its processes: a JSON header and raw bytes, over pipes; nothing is unpickled."""

from __future__ import annotations

import json
import os
import struct
import sys
import traceback
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from madclip.errors import MadCLIPError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Header = dict[str, Any]
Answer = tuple[Header, bytes]
_LENGTHS = struct.Struct("<IQ")


def send(file: IO[bytes], header: Header, body: bytes = b"") -> None:
    """Writes one frame.

    Raises:
        OSError: The other side has ended.
        ValueError: The header holds NaN or infinity, which are no JSON.
    """
    text = json.dumps(header, allow_nan=False).encode()
    file.write(_LENGTHS.pack(len(text), len(body)) + text)
    file.write(body)
    file.flush()


def receive(file: IO[bytes]) -> Answer | None:
    """The next frame, or None where the other side has ended."""
    lengths = file.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    header, body = _LENGTHS.unpack(lengths)
    text, content = file.read(header), file.read(body)
    if len(text) < header or len(content) < body:
        return None
    return json.loads(text), content


def pipes() -> tuple[IO[bytes], IO[bytes]]:
    """What a worker reads from and writes to; what libraries print goes to standard error from now on."""
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return source, target


def limit_memory(size: int) -> None:
    """Lets this process have no more memory than so many bytes, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if most == resource.RLIM_INFINITY else min(size, most), most))


def said_of(error: BaseException) -> Header:
    """An error as a frame: what a user can mend in its own words, a fault of ours by its kind and place alone."""
    if isinstance(error, MadCLIPError):
        return {"error": str(error), "kind": type(error).__name__}
    if isinstance(error, MemoryError):
        return {"error": "it takes more memory than one image may", "kind": "DataError"}
    last = traceback.extract_tb(error.__traceback__)[-1]
    # The words of an unforeseen error may quote a file or its header.
    print(f"madclip serve: {type(error).__name__} in {last.name}, line {last.lineno}", file=sys.stderr)
    return {"error": f"an unforeseen error ({type(error).__name__} in {last.name})", "kind": "fault"}


def answer(commands: Mapping[str, Callable[..., Answer]]) -> None:
    """What a worker does until the server ends: each frame names a command and its arguments.

    A command that takes a `body` is given the bytes of the frame.
    """
    source, target = pipes()
    with suppress(BrokenPipeError):  # the server has ended
        send(target, {"ready": True})
        while (frame := receive(source)) is not None:
            header, body = frame
            try:
                reply, content = commands[header.pop("do")](**header, **({"body": body} if body else {}))
            except Exception as error:  # noqa: BLE001  (whatever a decoder raises ends a request and not the process)
                reply, content = said_of(error), b""
            send(target, reply, content)
