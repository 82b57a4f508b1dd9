"""Methods of comparison by name; each module is imported only when its method is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from madclip.errors import RecipeError

if TYPE_CHECKING:
    from madclip.methods.base import Baseline

BASELINES: dict[str, str] = {
    "patchcore": "madclip.methods.patchcore:PatchCore",
    "april-gan": "madclip.methods.april_gan:AprilGAN",
    "mvfa": "madclip.methods.mvfa:MVFA",
    "mediclip": "madclip.methods.mediclip:MediCLIP",
    "winclip": "madclip.methods.winclip:WinCLIP",
    "cflow": "madclip.methods.cflow:CFlow",
    "rd4ad": "madclip.methods.rd4ad:RD4AD",
    "mkd": "madclip.methods.mkd:MKD",
    "dra": "madclip.methods.dra:DRA",
    "bgad": "madclip.methods.bgad:BGAD",
    "nearest-mean": "madclip.methods.floors:NearestMean",
    "logistic": "madclip.methods.floors:Logistic",
}


def load_baseline(name: str) -> type[Baseline]:
    """The class of a method.

    Raises:
        RecipeError: No method has that name.
    """
    if name not in BASELINES:
        raise RecipeError(f"unknown method {name!r}: choose one of {', '.join(BASELINES)}")
    module, _, attribute = BASELINES[name].partition(":")
    found: type[Baseline] = getattr(import_module(module), attribute)
    return found
