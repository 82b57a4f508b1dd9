"""From a checkpoint to a frozen tower on a device: the modules of its kind, every tensor held against them."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from madclip.backbones.bert import BertBackbone, BertModel
from madclip.backbones.checkpoints import Checkpoint, check_shapes
from madclip.backbones.clip import ClipBackbone, ClipModel
from madclip.backbones.configuration import ModelConfig
from madclip.backbones.efficientnet import TAPS, EfficientNet, EfficientNetConfig, EfficientNetTower
from madclip.backbones.modules import load_weights, weight_shapes
from madclip.backbones.siglip import SiglipBackbone, SiglipModel
from madclip.backbones.spec import BackboneSpec, Tower
from madclip.backbones.tokenizer import Tokenizer, bert_tokenizer, clip_tokenizer, siglip_tokenizer
from madclip.backbones.towers import resize_positions
from madclip.backbones.vit import VisionTransformer, VitConfig, VitTower, rotation_of
from madclip.errors import CheckpointError, RecipeError
from madclip.files import first_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from madclip.backbones.catalogue import BackboneEntry
    from madclip.backbones.configuration import Family
    from madclip.backbones.modules import TwoTowers
    from madclip.backbones.spec import Backbone

FAMILIES: dict[Family, tuple[Callable[..., Backbone], Callable[..., TwoTowers], Callable[..., Tokenizer]]] = {
    "clip": (ClipBackbone, ClipModel, clip_tokenizer),
    "siglip": (SiglipBackbone, SiglipModel, siglip_tokenizer),
    "bert": (BertBackbone, BertModel, bert_tokenizer),
}
Model = TypeVar("Model", bound=nn.Module)
PARTNER_SIDE = 2 / 3
"""Part of the image's side at which a convolutional partner sees it: as good on valid/, for half of the cost."""
POSITIONS = "vision_model.embeddings.position_embedding.weight"


def build(
    checkpoint: Checkpoint,
    *,
    name: str,
    entry: BackboneEntry | None,
    image_size: int | tuple[int, int],
    grid: tuple[int, int] | None = None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tower:
    """A tower of a checkpoint's weights; a `Backbone` where it has texts.

    Args:
        checkpoint: Its weights.
        name: Its id.
        entry: Its row of the catalogue, where it has one.
        image_size: Side, or height and width, in pixels of what it will be given.
        grid: Rows and columns of tokens that it has to give instead; a transformer then gets the pixels of that many
            patches, a convolutional tower PARTNER_SIDE of the side.
        device: Where it goes.
        dtype: What it computes in.

    Raises:
        CheckpointError: The weights do not fit the configuration.
        RecipeError: The image is smaller than a patch.
    """
    config = checkpoint.config
    spec = _spec(checkpoint, name, entry)
    if grid and not isinstance(config, EfficientNetConfig):
        image_size = grid[0] * spec.patch_size, grid[1] * spec.patch_size
    size = _size(image_size, spec.patch_size)
    own = size[0] // spec.patch_size, size[1] // spec.patch_size
    fill = partial(_filled, checkpoint, activation=_activations(config), device=device, dtype=dtype)
    if isinstance(config, EfficientNetConfig):
        if grid:
            size = round(size[0] * PARTNER_SIDE), round(size[1] * PARTNER_SIDE)
        net, fingerprint = fill(lambda: EfficientNet(config), dtype=torch.float32)
        net = net.fold().to(dtype)  # rounded once, after folding
        return EfficientNetTower(net, spec, image_size=size, grid=grid or own, fingerprint=fingerprint)
    if isinstance(config, VitConfig):
        vit, fingerprint = fill(lambda: VisionTransformer(config))
        positions = _vit_positions(checkpoint.state, config, own)
        return VitTower(vit, spec, image_size=size, fingerprint=fingerprint, **positions)
    backbone, empty_model, make_tokenizer = FAMILIES[config.family]
    pair, fingerprint = fill(lambda: empty_model(config))
    return backbone(
        pair,
        spec,
        image_size=size,
        positions=resize_positions(checkpoint.state[POSITIONS], config.prefix_tokens, own).to(device),
        tokenizer=partial(make_tokenizer, checkpoint.folder, **({"plain": True} if checkpoint.plain_texts else {})),
        fingerprint=fingerprint,
    )


def _filled(
    checkpoint: Checkpoint, make: Callable[[], Model], *, activation: str, device: torch.device, dtype: torch.dtype
) -> tuple[Model, str]:
    """A model with a checkpoint's weights, and their fingerprint.

    Raises:
        CheckpointError: The weights do not fit it, or it is beyond any memory.
    """
    try:
        with torch.device("meta"):
            model = make()
    except RuntimeError as error:
        raise CheckpointError(f"the configuration in {checkpoint.path} makes no model: {first_line(error)}") from None
    check_shapes(checkpoint.path, weight_shapes(model), checkpoint.state)
    fingerprint = _fingerprint(checkpoint.path, checkpoint.state, activation)
    load_weights(model, checkpoint.state, device, dtype)
    return model, fingerprint


def _vit_positions(state: Mapping[str, torch.Tensor], config: VitConfig, grid: tuple[int, int]) -> dict[str, Any]:
    """What stands before the patches, and the positions that are added to the patches or turn them."""
    before = [state[name][0].float() for name in ("cls_token", "register_tokens") if name in state]
    prefix, positions = torch.cat([torch.zeros(0, config.hidden_size), *before]), None
    if "position_embeddings" in state:
        count = config.placed
        table = resize_positions(state["position_embeddings"][0], count, grid, antialias=config.antialias)
        prefix, positions = torch.cat([prefix[:count] + table[:count], prefix[count:]]), table[count:]
    rotation = None if config.rope_theta is None else rotation_of(config, grid)
    return {"prefix": prefix, "positions": positions, "rotation": rotation}


def _spec(checkpoint: Checkpoint, name: str, entry: BackboneEntry | None) -> BackboneSpec:
    config = checkpoint.config
    spec = BackboneSpec(
        id=name,
        depth=len(TAPS),
        width=0,
        patch_size=8,
        prefix_tokens=0,
        embed_dim=0,
        text_width=0,
        text_length=0,
        reads_padding=False,
        mean=checkpoint.mean,
        std=checkpoint.std,
        activation=None,
        native_image_size=224,
        licence=entry.licence if entry else "unknown",
        commercial=entry.commercial if entry else None,
        source=(entry.hub or entry.id) if entry else str(checkpoint.path),
    )
    if isinstance(config, EfficientNetConfig):
        return replace(
            spec, width=max(config.stages[tap].channels for tap in TAPS), native_image_size=config.image_size
        )
    vision = config.vision if isinstance(config, ModelConfig) else config
    spec = replace(
        spec,
        depth=vision.num_hidden_layers,
        width=vision.hidden_size,
        patch_size=vision.patch_size,
        prefix_tokens=config.prefix_tokens,
        activation=vision.hidden_act,
        native_image_size=vision.image_size,
    )
    if isinstance(config, VitConfig):
        return spec
    return replace(
        spec,
        embed_dim=config.embed_dim,
        text_width=config.text.hidden_size,
        text_length=config.text.max_position_embeddings,
        reads_padding=config.family == "siglip",
    )


def _activations(config: ModelConfig | VitConfig | EfficientNetConfig) -> str:
    """What the fingerprint says of activations: that of both towers once where it is the same."""
    if isinstance(config, EfficientNetConfig):
        return ""
    towers = (config.vision, config.text) if isinstance(config, ModelConfig) else (config,)
    return " ".join(dict.fromkeys(tower.hidden_act for tower in towers))


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
