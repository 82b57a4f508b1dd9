"""Few-shot medical anomaly detection with a frozen CLIP."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from madclip.backbones import load_backbone
    from madclip.detector import MadCLIP
    from madclip.errors import MadCLIPError
    from madclip.prediction import Prediction
    from madclip.recipe import Recipe

__all__ = ["MadCLIP", "MadCLIPError", "Prediction", "Recipe", "load_backbone"]

_HOMES = {
    "MadCLIP": "madclip.detector",
    "MadCLIPError": "madclip.errors",
    "Prediction": "madclip.prediction",
    "Recipe": "madclip.recipe",
    "load_backbone": "madclip.backbones",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used, so that `import madclip` stays quick."""
    if name == "__version__":
        return version("madclip")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'madclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
