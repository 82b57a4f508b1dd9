"""Frozen towers behind one protocol; torch is imported at the first use of a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from madclip.backbones.load import load_backbone
    from madclip.backbones.spec import Backbone, BackboneSpec

__all__ = ["Backbone", "BackboneSpec", "load_backbone"]

_HOMES = {"Backbone": "spec", "BackboneSpec": "spec", "load_backbone": "load"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
