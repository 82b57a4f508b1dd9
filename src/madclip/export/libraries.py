"""Engines' libraries without their telemetry, and without remarks on a user's screen that a user can do nothing about.

Only settings of these libraries are changed, by name: output, logging and warnings of the process stay as they are,
since a server or a worker shares them with others.
"""

from __future__ import annotations

import logging
import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from madclip.errors import MissingExtraError

_LOGGERS = ("torch.onnx._internal.exporter._registration", "onnxscript", "onnx_ir", "openvino")
_REMARKS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # of PyTorch about itself
    r"No complete tensor found in the group",  # of weights that share memory, which are on the CPU
)


def load_library(name: str, extra: str) -> Any:
    """Import a module of an extra; OpenVINO's telemetry is out of its reach.

    Raises:
        MissingExtraError: It is not installed.
    """
    quieten()
    try:
        return import_module(name)
    except ImportError as error:
        raise _missing(name, extra, str(error)) from None


def need_library(name: str, extra: str) -> None:
    """Say early that a module of an extra is missing, without importing it.

    Raises:
        MissingExtraError: It is not installed.
    """
    if find_spec(name) is None:
        raise _missing(name, extra, "not installed")


def quieten() -> None:
    """Turn off telemetry, and remarks below an error."""
    # OpenVINO and NNCF fall back to a stub that sends nothing where this package cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in _REMARKS:
        warnings.filterwarnings("ignore", message)


def _missing(name: str, extra: str, reason: str) -> MissingExtraError:
    return MissingExtraError.of(f"this needs {name}", extra, reason)
