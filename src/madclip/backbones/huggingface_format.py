"""Folders of a hub: config.json, weights in one file or in shards, a tokenizer; most as transformers saves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from madclip.backbones.checkpoints import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    OPENAI_MEAN,
    OPENAI_STD,
    Checkpoint,
    read_json,
    read_tensors,
    triple,
)
from madclip.backbones.configuration import DEFAULTS, Family, ModelConfig, read_config
from madclip.backbones.spec import Activation
from madclip.backbones.timm_format import read_timm
from madclip.backbones.vit_format import KINDS, read_vit_config, rename
from madclip.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

PREPROCESSING = ("processor_config.json", "preprocessor_config.json")
"""Where transformers looks for the image settings; since version 5 the first holds them, under `image_processor`."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
DEPTH_LIMIT = 256
NORMALISATION = {"clip": (OPENAI_MEAN, OPENAI_STD), "siglip": (HALF, HALF), "dino": (IMAGENET_MEAN, IMAGENET_STD)}
"""Mean and standard deviation that are usual for a kind of model."""


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, safetensors before pickles; empty where this is no such folder.

    Raises:
        CheckpointError: An index names shards that are not there, or lie elsewhere.
    """
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return [folder / name]
        if index.is_file():
            return _shards(index)
    return []


def _shards(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index} has no weight_map")
    shards = sorted({index.parent / name for name in names.values()})
    for shard in shards:
        if shard.parent != index.parent or not shard.is_file():
            raise CheckpointError(f"{index} names {shard.name!r}, which is not beside it: download the folder again")
    return shards


def read_folder(folder: Path) -> Checkpoint:
    """A folder that transformers' `save_pretrained` wrote, or an image-only one of timm.

    Raises:
        CheckpointError: No config.json, another kind of model, or weights that cannot be read.
    """
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{folder} has weights but no config.json: put the model's config.json there")
    said = read_json(config_file)
    if "architecture" in said:
        return read_timm(folder, config_file, said, _tensors(folder))
    image_only = said.get("model_type") in KINDS
    config = read_vit_config(config_file, said) if image_only else _model(config_file, said)
    settings_file, settings = _image_settings(folder)
    mean, std = NORMALISATION[config.family if isinstance(config, ModelConfig) else "dino"]
    state = _tensors(folder)
    return Checkpoint(
        path=folder,
        config=config,
        state=rename(state) if image_only else _weights(state),
        mean=triple(settings_file, "image_mean", settings.get("image_mean"), mean),
        std=triple(settings_file, "image_std", settings.get("image_std"), std),
        folder=folder,
        assumed_normalisation=None in (settings.get("image_mean"), settings.get("image_std")),
    )


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        state |= read_tensors(file)[0]
    return state


def _weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without the indices that older versions of transformers saved, which are no weights."""
    return {name: value for name, value in state.items() if not name.endswith(".position_ids")}


def _image_settings(folder: Path) -> tuple[Path, dict[str, Any]]:
    """What a folder says of its images, and the file that says it; nothing where it says nothing."""
    for file in (folder / name for name in PREPROCESSING):
        content = read_json(file) if file.is_file() else {}
        settings = content if file.name == PREPROCESSING[1] else content.get("image_processor", {})
        if not isinstance(settings, dict):
            raise CheckpointError(f"{file}: image_processor should be an object, not {settings!r}")
        if settings:
            return file, settings
    return folder / PREPROCESSING[1], {}


def _model(path: Path, config: dict[str, Any]) -> ModelConfig:
    family = _family(path, config)
    _check_activation(path, config, DEFAULTS[family]["vision_config"]["hidden_act"])
    try:
        return read_config(family, config)
    except ValueError as error:
        raise CheckpointError(f"the configuration in {path} makes no model: {error}") from None


def _family(path: Path, config: dict[str, Any]) -> Family:
    kind = config.get("model_type")
    for name in ("vision_config", "text_config"):
        if not isinstance(config.get(name), dict):
            raise CheckpointError(f"{path} has no {name}: expected a CLIP or SigLIP with both towers, not {kind!r}")
        depth = config[name].get("num_hidden_layers", 12)
        if not isinstance(depth, int) or not 1 <= depth <= DEPTH_LIMIT:  # before anything is built of that many blocks
            raise CheckpointError(f"{path}: {name} asks for {depth!r} blocks, a tower has 1 to {DEPTH_LIMIT}")
    if kind == "siglip2" and "num_patches" not in config["vision_config"]:
        return "siglip"
    if kind == "siglip2":
        raise CheckpointError(f"{path} is a SigLIP 2 NaFlex model: use one of fixed resolution, such as patch16-256")
    family = "clip" if kind == "metaclip_2" else next((name for name in DEFAULTS if name == kind), None)
    if family is None:
        raise CheckpointError(
            f"{path} is of type {kind!r}: only CLIP, SigLIP, ViT, DINOv2 and DINOv3 models can be read"
        )
    return family


def _check_activation(path: Path, config: dict[str, Any], default: str) -> None:
    vision, text = (config[name].get("hidden_act", default) for name in ("vision_config", "text_config"))
    if vision != text or vision not in get_args(Activation):
        raise CheckpointError(f"{path}: activations {vision!r} and {text!r}, expected one of {get_args(Activation)}")
