"""`load_backbone`: from a name or a path to a frozen backbone on a device."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from madclip.backbones.build import build
from madclip.backbones.catalogue import catalogue
from madclip.backbones.configuration import ModelConfig
from madclip.backbones.fused import FusedBackbone
from madclip.backbones.names import split_names
from madclip.backbones.sources import find_checkpoint
from madclip.backbones.spec import Activation, Backbone, Tower
from madclip.errors import MadCLIPWarning, RecipeError

if TYPE_CHECKING:
    from madclip.backbones.checkpoints import Checkpoint
    from madclip.recipe import Recipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_backbone(
    source: str | Path,
    *,
    image_size: int | tuple[int, int] = 240,
    activation: Literal["gelu", "quick_gelu"] | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
) -> Backbone:
    """A frozen backbone from a file, a folder, a hub name or a name of the catalogue.

    Args:
        source: A path, `organisation/name` of a hub, or an id of `catalogue()`; or several joined by `+`, the first
            with texts (see `FusedBackbone`).
        image_size: Side, or height and width, in pixels of what `encode_image` will be given.
        activation: Activation of the MLPs in place of the one the (first) weights were trained with.
        device: `auto` takes CUDA, then MPS, then the CPU.
        dtype: What the towers compute in: float32, bfloat16, float16, or `auto`: bfloat16 where the device computes
            in it, else float32.

    Raises:
        CheckpointError: The weights are missing, damaged, unsafe or of another kind of model.
        RecipeError: Another argument makes no sense.
    """
    if activation not in (None, "gelu", "quick_gelu"):
        raise RecipeError(f"unknown activation {activation!r}: choose 'gelu', 'quick_gelu' or leave it out")
    chosen = _device(device)
    place = {"device": chosen, "dtype": _dtype(dtype, chosen)}
    first, *others = split_names(source)
    backbone = _load(first, activation, image_size=image_size, **place)
    if not isinstance(backbone, Backbone):
        raise RecipeError(f"{first} has no texts: name a CLIP before it, for example tiny+{first}")
    partners = [_load(name, None, image_size=backbone.image_size, grid=backbone.grid, **place) for name in others]
    return FusedBackbone(backbone, partners) if partners else backbone


def _load(source: str | Path, activation: Activation | None, **options: Any) -> Tower:
    """One tower, or pair of towers; see `build`."""
    checkpoint, entry, name = find_checkpoint(source)
    if isinstance(checkpoint.config, ModelConfig):
        if checkpoint.guessed_activation and not activation:
            _warn_of_activation(checkpoint.path, checkpoint.config.vision.hidden_act)
        if activation:
            checkpoint = replace(checkpoint, config=checkpoint.config.with_activation(activation))
    if checkpoint.assumed_normalisation:
        _warn_of_normalisation(checkpoint)
    entry = entry or next((e for e in catalogue() if e.id == checkpoint.published), None)
    return build(checkpoint, name=name, entry=entry, **options)


def _warn_of_activation(path: Path, taken: Activation) -> None:
    other = "gelu" if taken == "quick_gelu" else "quick_gelu"
    warnings.warn(
        f"{path} does not say its activation, and {taken} was guessed: weights that were trained with {other} give "
        f"wrong tokens so; say which with --set backbone_activation={other} (or {taken}), in Python activation=",
        MadCLIPWarning,
        stacklevel=4,
    )


def _warn_of_normalisation(checkpoint: Checkpoint) -> None:
    mean, std = (tuple(round(value, 3) for value in values) for values in (checkpoint.mean, checkpoint.std))
    warnings.warn(
        f"{checkpoint.path} does not say how its pixels were normalised: mean {mean} and std {std} are assumed, as "
        "usual for its kind; put the model's preprocessor_config.json into its folder if it was trained otherwise",
        MadCLIPWarning,
        stacklevel=4,
    )


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = (str(error).splitlines() or ["unknown"])[0]
        raise RecipeError(f"device {str(device)!r} cannot be used here ({reason}): try 'auto' or 'cpu'") from None


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    if dtype == "auto":
        return torch.bfloat16 if computes_in_bfloat16(device) else torch.float32
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise RecipeError(f"unknown dtype {dtype!r}: choose one of auto, {', '.join(DTYPES)}")
    return chosen


@cache
def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16; without them they are slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cpuinfo = Path("/proc/cpuinfo")
    if device.type != "cpu" or not cpuinfo.exists():
        return False
    flags = set(cpuinfo.read_text().split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def open_backbone(recipe: Recipe, backbone: str | Path | Backbone, device: str, dtype: str) -> Backbone:
    """The backbone as a recipe wants it; one that is loaded already must agree with the recipe.

    Raises:
        RecipeError: It was loaded for another size or with another activation.
    """
    wanted = None if recipe.backbone_activation == "weights" else recipe.backbone_activation
    if not isinstance(backbone, Backbone):
        return load_backbone(backbone, image_size=recipe.image_size, activation=wanted, device=device, dtype=dtype)
    if backbone.image_size != (recipe.image_size, recipe.image_size):
        raise RecipeError(
            f"the backbone was loaded for {backbone.image_size} pixels, the recipe wants {recipe.image_size}: "
            f"load_backbone(..., image_size={recipe.image_size})"
        )
    if wanted and backbone.spec.activation != wanted:
        raise RecipeError(
            f"the backbone was loaded with activation {backbone.spec.activation}, the recipe wants {wanted}: "
            f"load_backbone(..., activation={wanted!r})"
        )
    return backbone
