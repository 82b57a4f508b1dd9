"""CLIP in OpenAI's naming: OpenAI's own files and those of open_clip, renamed to Hugging Face's."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from madclip.backbones.checkpoints import (
    OPENAI_MEAN,
    OPENAI_STD,
    Checkpoint,
    check_shapes,
    read_json,
    read_tensors,
    triple,
)
from madclip.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

log = logging.getLogger(__name__)

CONFIG = "open_clip_config.json"
FOLDER_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask", "text.attn_mask")
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
"""Vision widths of ViT-H, ViT-g and ViT-bigG, whose heads are wider than CLIP's usual 64."""

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


@dataclass(frozen=True)
class Tower:
    """Sizes of one tower: width, blocks, width inside its MLPs, positions."""

    width: int
    depth: int
    inner: int
    positions: int


@dataclass(frozen=True)
class Geometry:
    """Sizes of a CLIP, read off the shapes of its tensors."""

    vision: Tower
    text: Tower
    patch: int
    vocabulary: int
    embed: int


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
    state, plain = unwrap(content)
    geometry = infer_geometry(path, state)
    check_shapes(path, openai_shapes(geometry), state)
    config_file = path.parent / CONFIG
    config = read_json(config_file) if config_file.is_file() and not published else {}
    model, preprocess = _section(config_file, config, "model_cfg"), _section(config_file, config, "preprocess_cfg")
    quick = model.get("quick_gelu", False) if config else published or _guess_quick_gelu(path, plain=plain)
    return Checkpoint(
        path=path,
        config=_config(path, geometry, model, "quick_gelu" if quick else "gelu"),
        state=to_hugging_face(state),
        activation="quick_gelu" if quick else "gelu",
        mean=triple(config_file, "mean", preprocess.get("mean"), OPENAI_MEAN),
        std=triple(config_file, "std", preprocess.get("std"), OPENAI_STD),
        folder=path.parent if config else None,
        published=published,
    )


def unwrap(content: dict[str, Any]) -> tuple[dict[str, torch.Tensor], bool]:
    """The tensors by OpenAI's names, and whether they already were (open_clip wraps, prefixes or nests them)."""
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        state = content
    plain = state is content
    for prefix in ("module.", "_orig_mod."):
        if state and all(str(name).startswith(prefix) for name in state):
            state, plain = {name.removeprefix(prefix): value for name, value in state.items()}, False
    if any(str(name).startswith("text.") for name in state):
        state, plain = {str(name).removeprefix("text."): value for name, value in state.items()}, False
    tensors = {str(n): v for n, v in state.items() if isinstance(v, torch.Tensor) and n not in NOT_WEIGHTS}
    return tensors, plain


def infer_geometry(path: Path, state: dict[str, torch.Tensor]) -> Geometry:
    """Sizes from the shapes of a few tensors; `check_shapes` then holds all others against them.

    Raises:
        CheckpointError: A ResNet or timm tower, or no CLIP at all.
    """
    if any(name.startswith(("visual.layer1.", "visual.trunk.")) for name in state):
        raise CheckpointError(f"{path} has a ResNet or timm vision tower: give a CLIP with a plain ViT")
    wanted = {
        "visual.conv1.weight": 4,
        "visual.positional_embedding": 2,
        "visual.proj": 2,
        "positional_embedding": 2,
        "token_embedding.weight": 2,
        "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
        "transformer.resblocks.0.mlp.c_fc.weight": 2,
    }
    missing = [name for name in wanted if name not in state]
    if missing:
        shown = f"{', '.join(missing[:3])}{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}"
        raise CheckpointError(f"{path} is not a CLIP in OpenAI's or open_clip's naming; missing: {shown}")
    for name, dimensions in wanted.items():
        if state[name].ndim != dimensions or 0 in state[name].shape:
            raise CheckpointError(f"{path}: {name} has the impossible shape {list(state[name].shape)}")
    width, _, patch, _ = state["visual.conv1.weight"].shape
    positions = len(state["visual.positional_embedding"])
    if round((positions - 1) ** 0.5) ** 2 != positions - 1 or positions < 2:
        raise CheckpointError(f"{path}: {positions} vision positions are no class position and a square of patches")
    text_positions, text_width = state["positional_embedding"].shape
    inner = {tower: len(state[f"{tower}transformer.resblocks.0.mlp.c_fc.weight"]) for tower in ("visual.", "")}
    return Geometry(
        vision=Tower(width, _depth(state, "visual."), inner["visual."], positions),
        text=Tower(text_width, _depth(state, ""), inner[""], text_positions),
        patch=patch,
        vocabulary=len(state["token_embedding.weight"]),
        embed=state["visual.proj"].shape[1],
    )


def _depth(state: dict[str, torch.Tensor], tower: Literal["visual.", ""]) -> int:
    found = (BLOCK.fullmatch(name) for name in state)
    return 1 + max(int(m[2]) for m in found if m and (m[1] or "") == tower)


def openai_shapes(geometry: Geometry) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a CLIP of these sizes, in OpenAI's naming."""
    v, t, patch, embed = geometry.vision, geometry.text, geometry.patch, geometry.embed
    shapes: dict[str, tuple[int, ...]] = {
        "visual.class_embedding": (v.width,),
        "visual.conv1.weight": (v.width, 3, patch, patch),
        "visual.positional_embedding": (v.positions, v.width),
        "visual.ln_pre.weight": (v.width,),
        "visual.ln_pre.bias": (v.width,),
        "visual.ln_post.weight": (v.width,),
        "visual.ln_post.bias": (v.width,),
        "visual.proj": (v.width, embed),
        "token_embedding.weight": (geometry.vocabulary, t.width),
        "positional_embedding": (t.positions, t.width),
        "ln_final.weight": (t.width,),
        "ln_final.bias": (t.width,),
        "text_projection": (t.width, embed),
        "logit_scale": (),
    }
    for prefix, tower in (("visual.", v), ("", t)):
        for i in range(tower.depth):
            block, w = f"{prefix}transformer.resblocks.{i}.", tower.width
            shapes |= {
                f"{block}ln_1.weight": (w,),
                f"{block}ln_1.bias": (w,),
                f"{block}attn.in_proj_weight": (3 * w, w),
                f"{block}attn.in_proj_bias": (3 * w,),
                f"{block}attn.out_proj.weight": (w, w),
                f"{block}attn.out_proj.bias": (w,),
                f"{block}ln_2.weight": (w,),
                f"{block}ln_2.bias": (w,),
                f"{block}mlp.c_fc.weight": (tower.inner, w),
                f"{block}mlp.c_fc.bias": (tower.inner,),
                f"{block}mlp.c_proj.weight": (w, tower.inner),
                f"{block}mlp.c_proj.bias": (w,),
            }
    return shapes


def to_hugging_face(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights in Hugging Face's naming: projections transposed, packed attention weights taken apart."""
    renamed = {}
    for name, tensor in state.items():
        match = BLOCK.fullmatch(name)
        if not match:
            renamed[TOP[name]] = tensor.T if name in ("visual.proj", "text_projection") else tensor
            continue
        tower, index, part, kind = match.groups()
        block = f"{'vision' if tower else 'text'}_model.encoder.layers.{index}"
        if part == "attn.in_proj":
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                renamed[f"{block}.self_attn.{letter}_proj.{kind}"] = third
        else:
            renamed[f"{block}.{IN_BLOCK[part]}.{kind}"] = tensor
    return renamed


def _guess_quick_gelu(path: Path, *, plain: bool) -> bool:
    """Whether weights without configuration were trained with QuickGELU, from how open_clip and OpenAI name things."""
    name = f"{path.parent.name}/{path.name}".lower()
    if re.search(r"quick_?gelu", name) or "openai" in path.name.lower():
        return True
    if plain and path.suffix in (".pt", ".pth"):
        return True
    log.warning("%s says no activation: exact GELU is taken; give activation='quick_gelu' if that is wrong", path)
    return False


def _section(path: Path, config: dict[str, Any], name: str) -> dict[str, Any]:
    section = config.get(name, {})
    if not isinstance(section, dict):
        raise CheckpointError(f"{path}: {name} should be an object, not {section!r}")
    return section


def _config(path: Path, geometry: Geometry, model: dict[str, Any], activation: str) -> dict[str, Any]:
    config_file, g = path.parent / CONFIG, geometry
    vision, text = (_section(config_file, model, name) for name in ("vision_cfg", "text_cfg"))
    default = min(HEAD_WIDTHS.get(g.vision.width, 64), g.vision.width)
    head_width = _count(config_file, "head_width", vision.get("head_width", default))
    heads = max(g.vision.width // head_width, 1)
    text_heads = _count(config_file, "heads", text.get("heads", max(g.text.width // 64, 1)))
    for width, count in ((g.vision.width, heads), (g.text.width, text_heads)):
        if width % count:
            raise CheckpointError(f"{path}: {count} attention heads do not fit a width of {width}")

    def tower(sizes: Tower, count: int) -> dict[str, Any]:
        return {
            "hidden_size": sizes.width,
            "intermediate_size": sizes.inner,
            "num_hidden_layers": sizes.depth,
            "num_attention_heads": count,
            "hidden_act": activation,
            "projection_dim": g.embed,
        }

    side = round((g.vision.positions - 1) ** 0.5)
    return {
        "model_type": "clip",
        "projection_dim": g.embed,
        "vision_config": tower(g.vision, heads) | {"patch_size": g.patch, "image_size": side * g.patch},
        "text_config": tower(g.text, text_heads)
        | {"vocab_size": g.vocabulary, "max_position_embeddings": g.text.positions},
    }


def _count(path: Path, name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{path}: {name} should be a count, not {value!r}")
    return value
