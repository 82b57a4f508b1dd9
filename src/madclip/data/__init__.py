"""From files to tensors: data sets, readers, geometry, shots, augmentation. Names are imported at first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from madclip.data.augment import make_variants as make_variants
    from madclip.data.check import CheckReport as CheckReport
    from madclip.data.check import check_dataset as check_dataset
    from madclip.data.check import errors_of as errors_of
    from madclip.data.geometry import fit_mask as fit_mask
    from madclip.data.geometry import fit_pixels as fit_pixels
    from madclip.data.geometry import restore_map as restore_map
    from madclip.data.inputs import Inputs as Inputs
    from madclip.data.inputs import expand_inputs as expand_inputs
    from madclip.data.load import load_dataset as load_dataset
    from madclip.data.load import read_sample as read_sample
    from madclip.data.load import read_sample_mask as read_sample_mask
    from madclip.data.load import scan_dataset as scan_dataset
    from madclip.data.readers import Image as Image
    from madclip.data.readers import read_image as read_image
    from madclip.data.readers import read_many as read_many
    from madclip.data.readers import read_mask as read_mask
    from madclip.data.samples import Dataset as Dataset
    from madclip.data.samples import Reading as Reading
    from madclip.data.samples import Sample as Sample
    from madclip.data.shots import draw_shots as draw_shots
    from madclip.data.shots import folds as folds
    from madclip.data.shots import published_shots as published_shots

_MODULES = {
    "augment": ("make_variants",),
    "check": ("CheckReport", "check_dataset", "errors_of"),
    "geometry": ("fit_mask", "fit_pixels", "restore_map"),
    "inputs": ("Inputs", "expand_inputs"),
    "load": ("load_dataset", "read_sample", "read_sample_mask", "scan_dataset"),
    "readers": ("Image", "read_image", "read_many", "read_mask"),
    "samples": ("Dataset", "Reading", "Sample"),
    "shots": ("draw_shots", "folds", "published_shots"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
