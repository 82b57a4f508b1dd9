"""`load_backbone`: from a name or a path to a frozen backbone on a device."""

from __future__ import annotations

import hashlib
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from madclip.backbones.catalogue import BackboneEntry, catalogue
from madclip.backbones.checkpoints import Checkpoint, check_shapes
from madclip.backbones.clip import ClipBackbone, ClipModel
from madclip.backbones.modules import load_weights, weight_shapes
from madclip.backbones.siglip import SiglipBackbone, SiglipModel
from madclip.backbones.sources import find_checkpoint
from madclip.backbones.spec import Activation, Backbone, BackboneSpec
from madclip.backbones.tokenizer import Tokenizer, clip_tokenizer, siglip_tokenizer
from madclip.backbones.towers import resize_positions
from madclip.errors import CheckpointError, MadCLIPWarning, RecipeError
from madclip.files import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from madclip.backbones.configuration import Family
    from madclip.backbones.modules import TwoTowers
    from madclip.recipe import Recipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FAMILIES: dict[Family, tuple[Callable[..., Backbone], Callable[..., TwoTowers], Callable[..., Tokenizer]]] = {
    "clip": (ClipBackbone, ClipModel, clip_tokenizer),
    "siglip": (SiglipBackbone, SiglipModel, siglip_tokenizer),
}
POSITIONS = "vision_model.embeddings.position_embedding.weight"


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
        source: A path, `organisation/name` of a hub, or an id of `catalogue()`.
        image_size: Side, or height and width, in pixels of what `encode_image` will be given.
        activation: What the MLPs use in place of the activation that the weights were trained with.
        device: `auto` takes CUDA, then MPS, then the CPU.
        dtype: What the towers compute in: float32, bfloat16, float16, or `auto`: bfloat16 where the device computes
            in it, else float32.

    Raises:
        CheckpointError: The weights are missing, damaged, unsafe or of another kind of model.
        RecipeError: Another argument makes no sense.
    """
    if activation not in (None, "gelu", "quick_gelu"):
        raise RecipeError(f"unknown activation {activation!r}: choose 'gelu', 'quick_gelu' or leave it out")
    chosen_device = _device(device)
    chosen_dtype = _dtype(dtype, chosen_device)
    checkpoint, entry, name = find_checkpoint(source)
    _say_what_is_assumed(checkpoint, activation)
    return build(
        replace(checkpoint, config=checkpoint.config.with_activation(activation)) if activation else checkpoint,
        name=name,
        entry=entry or next((e for e in catalogue() if e.id == checkpoint.published), None),
        image_size=image_size,
        device=chosen_device,
        dtype=chosen_dtype,
    )


def _say_what_is_assumed(checkpoint: Checkpoint, activation: Activation | None) -> None:
    """Warn of what the files leave open and the user does not settle."""
    path, config = checkpoint.path, checkpoint.config
    if checkpoint.guessed_activation and activation is None:
        taken = config.vision.hidden_act
        other = "gelu" if taken == "quick_gelu" else "quick_gelu"
        warnings.warn(
            f"{path} does not say its activation, and {taken} was guessed: weights that were trained with {other} give "
            f"wrong tokens so; say which with --set backbone_activation={other} (or {taken}), in Python activation=",
            MadCLIPWarning,
            stacklevel=3,
        )
    if checkpoint.assumed_normalisation:
        mean, std = (tuple(round(value, 3) for value in values) for values in (checkpoint.mean, checkpoint.std))
        warnings.warn(
            f"{path} does not say how its pixels were normalised: mean {mean} and std {std} are assumed, as usual for "
            f"{config.family}; put the model's preprocessor_config.json into its folder if it was trained otherwise",
            MadCLIPWarning,
            stacklevel=3,
        )


def build(
    checkpoint: Checkpoint,
    *,
    name: str,
    entry: BackboneEntry | None,
    image_size: int | tuple[int, int],
    device: torch.device,
    dtype: torch.dtype,
) -> Backbone:
    """A backbone of a checkpoint's weights.

    Raises:
        CheckpointError: The weights do not fit the configuration.
        RecipeError: The image is smaller than a patch.
    """
    config = checkpoint.config
    backbone, empty_model, make_tokenizer = FAMILIES[config.family]
    try:
        with torch.device("meta"):
            model = empty_model(config)
    except RuntimeError as error:  # torch's, where the sizes together are beyond any memory
        raise CheckpointError(f"the configuration in {checkpoint.path} makes no model: {first_line(error)}") from None
    check_shapes(checkpoint.path, weight_shapes(model), checkpoint.state)
    spec = _spec(checkpoint, name, entry)
    size = _size(image_size, spec.patch_size)
    grid = size[0] // spec.patch_size, size[1] // spec.patch_size
    positions = resize_positions(checkpoint.state[POSITIONS], config.prefix_tokens, grid)
    fingerprint = _fingerprint(checkpoint.path, checkpoint.state, spec.activation)
    load_weights(model, checkpoint.state, device, dtype)
    return backbone(
        model,
        spec,
        image_size=size,
        positions=positions.to(device),
        fingerprint=fingerprint,
        tokenizer=partial(make_tokenizer, checkpoint.folder),
    )


def _spec(checkpoint: Checkpoint, name: str, entry: BackboneEntry | None) -> BackboneSpec:
    config, vision, text = checkpoint.config, checkpoint.config.vision, checkpoint.config.text
    return BackboneSpec(
        id=name,
        depth=vision.num_hidden_layers,
        width=vision.hidden_size,
        patch_size=vision.patch_size,
        prefix_tokens=config.prefix_tokens,
        embed_dim=config.embed_dim,
        text_width=text.hidden_size,
        text_length=text.max_position_embeddings,
        causal_text=config.family == "clip",
        mean=checkpoint.mean,
        std=checkpoint.std,
        activation=vision.hidden_act,
        native_image_size=vision.image_size,
        licence=entry.licence if entry else "unknown",
        commercial=entry.commercial if entry else None,
        source=(entry.hub or entry.id) if entry else str(checkpoint.path),
    )


def _fingerprint(path: Path, state: Mapping[str, torch.Tensor], activation: str) -> str:
    """See `Backbone.fingerprint`; tensors are hashed side by side, since hashing leaves the interpreter's lock.

    Raises:
        CheckpointError: A weight is not finite.
    """

    def digest(item: tuple[str, torch.Tensor]) -> bytes:
        name, tensor = item
        values = tensor.detach().float().contiguous()
        if not bool(torch.isfinite(values).all()):
            raise CheckpointError(f"{path}: {name} holds values that are not finite: download the weights again")
        head = f"{name} {list(tensor.shape)}\n".encode()
        return hashlib.sha256(head + hashlib.sha256(values.numpy().data).digest()).digest()

    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(digest, sorted(state.items())))
    return hashlib.sha256(b"".join([*digests, activation.encode()])).hexdigest()


def _size(image_size: int | tuple[int, int], patch: int) -> tuple[int, int]:
    sides = image_size if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    whole = all(isinstance(side, int) and not isinstance(side, bool) for side in sides)
    if len(sides) != 2 or not whole or not all(patch <= side <= 8192 for side in sides):
        raise RecipeError(f"image_size {image_size!r}: give one side or (height, width), {patch} to 8192 pixels")
    return sides[0], sides[1]


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        found = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(found)
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = first_line(error)
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
