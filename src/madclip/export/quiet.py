"""Engines' libraries without their telemetry, and without their remarks on a user's screen."""

from __future__ import annotations

import io
import logging
import sys
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from typing import TYPE_CHECKING, Any

from madclip.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator


def load_library(name: str, extra: str) -> Any:
    """Import a module of an extra; OpenVINO's and NNCF's telemetry is out of their reach.

    Raises:
        MissingExtraError: It is not installed.
    """
    # Both fall back to a stub that sends nothing where this package cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        with quiet():
            return import_module(name)
    except ImportError as error:
        raise MissingExtraError(f"this needs {name}: pip install 'madclip[{extra}]' ({error})") from None


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing on standard output and error, no warnings, and no log records below an error."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
