"""CLIP in OpenAI's naming: OpenAI's own files and those of open_clip, renamed to Hugging Face's."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from madclip.backbones.checkpoints import (
    OPENAI_MEAN,
    OPENAI_STD,
    Checkpoint,
    read_json,
    read_tensors,
    triple,
)
from madclip.backbones.configuration import ModelConfig, read_config
from madclip.backbones.open_clip_format import TRUNK, read_timm_towers
from madclip.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from madclip.backbones.spec import Activation

CONFIG = "open_clip_config.json"
FOLDER_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask")
COCA = ("text_decoder.", "visual.attn_pool_contrast.")
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
"""Vision widths of ViT-H, ViT-g and ViT-bigG, whose heads are wider than CLIP's usual 64."""

SIZES = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "visual.proj": 2,
    "positional_embedding": 2,
    "token_embedding.weight": 2,
    "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
    "transformer.resblocks.0.mlp.c_fc.weight": 2,
}
"""The tensors whose shapes give a CLIP's sizes, and their numbers of dimensions."""

TOP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
IN_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d{1,3})\.(.+?)[._](weight|bias)")


def is_folder(folder: Path) -> bool:
    """Whether a folder holds a model of open_clip and its configuration; one of timm's may lie beside it."""
    return (folder / CONFIG).is_file() and any((folder / name).is_file() for name in FOLDER_FILES)


def read_folder(folder: Path) -> Checkpoint:
    """An open_clip folder, as on a hub.

    Raises:
        CheckpointError: No weights in it, or they cannot be used.
    """
    file = next((folder / name for name in FOLDER_FILES if (folder / name).is_file()), None)
    if file is None:
        raise CheckpointError(
            f"{folder} holds no weights: expected config.json with model.safetensors or pytorch_model.bin, "
            f"or one of {', '.join(FOLDER_FILES)}"
        )
    return read_file(file)


def read_file(path: Path) -> Checkpoint:
    """A file of OpenAI or open_clip, with the open_clip_config.json beside it where there is one.

    Raises:
        CheckpointError: Damaged, unsafe, or not a CLIP with two transformer towers.
    """
    content, published = read_tensors(path)
    state = unwrap(content)
    config_file = path.parent / CONFIG
    said = read_json(config_file) if config_file.is_file() and not published else {}
    model, preprocess = _section(config_file, said, "model_cfg"), _section(config_file, said, "preprocess_cfg")
    if any(name.startswith(COCA) for name in state):
        raise CheckpointError(f"{path} is a CoCa, as CONCH is, which cannot be read: give a CLIP, SigLIP or BiomedCLIP")
    if any(name.startswith(TRUNK) for name in state):
        return read_timm_towers(path, config_file, state, model, preprocess)
    guessed = not said and not published
    quick = _guess_quick_gelu(path, content) if guessed else model.get("quick_gelu", False) or published
    return Checkpoint(
        path=path,
        config=_config(path, state, model, "quick_gelu" if quick else "gelu"),
        state=to_hugging_face(state),
        mean=triple(config_file, "mean", preprocess.get("mean"), OPENAI_MEAN),
        std=triple(config_file, "std", preprocess.get("std"), OPENAI_STD),
        folder=path.parent if said else None,
        published=published,
        guessed_activation=guessed,
        assumed_normalisation=bool(said) and None in (preprocess.get("mean"), preprocess.get("std")),
    )


def unwrap(content: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors by OpenAI's names, which open_clip wraps, prefixes or nests."""
    nested = content.get("state_dict")
    state = nested if isinstance(nested, dict) else content
    for prefix in ("module.", "_orig_mod."):
        if state and all(str(name).startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    if any(str(name).startswith("text.") for name in state):
        state = {str(name).removeprefix("text."): value for name, value in state.items()}
    return {str(n): v for n, v in state.items() if isinstance(v, torch.Tensor) and n not in NOT_WEIGHTS}


def _config(path: Path, state: dict[str, torch.Tensor], model: dict[str, Any], activation: Activation) -> ModelConfig:
    """Sizes from the shapes of a few tensors, heads from open_clip's configuration or the width.

    Whether all the other tensors agree is checked where the weights are loaded.

    Raises:
        CheckpointError: A ResNet or timm tower, no CLIP at all, or sizes that make no model.
    """
    _check_kind(path, state)
    width, _, patch, _ = state["visual.conv1.weight"].shape
    positions, text_width = len(state["visual.positional_embedding"]), state["positional_embedding"].shape[1]
    side = round((positions - 1) ** 0.5)
    if side**2 != positions - 1 or positions < 2:
        raise CheckpointError(f"{path}: {positions} vision positions are no class position and a square of patches")
    config_file = path.parent / CONFIG
    vision, text = (_section(config_file, model, name) for name in ("vision_cfg", "text_cfg"))
    head_width = _count(config_file, "head_width", vision.get("head_width", min(HEAD_WIDTHS.get(width, 64), width)))
    text_heads = _count(config_file, "heads", text.get("heads", max(text_width // 64, 1)))

    def sizes(tower: str, width: int, heads: int) -> dict[str, Any]:
        inner = len(state[f"{tower}transformer.resblocks.0.mlp.c_fc.weight"])
        depth = _depth(state, tower)
        return {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": depth} | {
            "num_attention_heads": heads,
            "hidden_act": activation,
        }

    vision_sizes = sizes("visual.", width, max(width // head_width, 1)) | {"patch_size": patch}
    words, text_positions = len(state["token_embedding.weight"]), len(state["positional_embedding"])
    config = {
        "projection_dim": state["visual.proj"].shape[1],
        "vision_config": vision_sizes | {"image_size": side * patch},
        "text_config": sizes("", text_width, text_heads)
        | {"vocab_size": words, "max_position_embeddings": text_positions},
    }
    try:
        return read_config("clip", config)
    except ValueError as error:
        raise CheckpointError(f"{path} makes no model: {error}") from None


def _check_kind(path: Path, state: dict[str, torch.Tensor]) -> None:
    if any(name.startswith("visual.layer1.") for name in state):
        raise CheckpointError(f"{path} has a ResNet as vision tower: give a CLIP with a plain ViT")
    missing = [name for name in SIZES if name not in state]
    if missing:
        shown = f"{', '.join(missing[:3])}{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}"
        raise CheckpointError(f"{path} is not a CLIP in OpenAI's or open_clip's naming; missing: {shown}")
    for name, dimensions in SIZES.items():
        if state[name].ndim != dimensions or 0 in state[name].shape:
            raise CheckpointError(f"{path}: {name} has the impossible shape {list(state[name].shape)}")


def _depth(state: dict[str, torch.Tensor], tower: str) -> int:
    found = (BLOCK.fullmatch(name) for name in state)
    return 1 + max(int(m[2]) for m in found if m and (m[1] or "") == tower)


def to_hugging_face(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights in Hugging Face's naming: projections transposed, packed attention weights taken apart.

    What is no part of a CLIP keeps its name.
    """
    renamed = {}
    for name, tensor in state.items():
        match = BLOCK.fullmatch(name)
        if not match or match[3] not in (*IN_BLOCK, "attn.in_proj") or not tensor.ndim:
            turned = name in ("visual.proj", "text_projection") and tensor.ndim == 2
            renamed[TOP.get(name, name)] = tensor.T if turned else tensor
            continue
        tower, index, part, kind = match.groups()
        block = f"{'vision' if tower else 'text'}_model.encoder.layers.{index}"
        if part == "attn.in_proj":
            for letter, third in zip("qkv", tensor.tensor_split(3), strict=True):
                renamed[f"{block}.self_attn.{letter}_proj.{kind}"] = third
        else:
            renamed[f"{block}.{IN_BLOCK[part]}.{kind}"] = tensor
    return renamed


def _guess_quick_gelu(path: Path, content: dict[str, Any]) -> bool:
    """Whether weights without configuration were trained with QuickGELU, from how open_clip and OpenAI name things.

    The tensors cannot tell: OpenAI's own weights as a plain state dict look like any that open_clip exports.
    """
    name = f"{path.parent.name}/{path.name}".lower()
    plain = "visual.proj" in content and "positional_embedding" in content and path.suffix in (".pt", ".pth")
    return plain or bool(re.search(r"quick_?gelu", name)) or "openai" in path.name.lower()


def _section(path: Path, config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name, {})
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: {name} should be an object, not {section!r}")
    return section


def _count(path: Path, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{path}: {name} should be a count, not {value!r}")
    return value
