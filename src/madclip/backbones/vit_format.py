"""ViT, DINOv2 and DINOv3 as transformers saves them, in the names of its versions 4 and 5."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, get_args

from madclip.backbones.spec import Activation
from madclip.backbones.vit import VitConfig
from madclip.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

DEPTH_LIMIT = 256
NOT_READ = re.compile(r"(embeddings\.mask_token|(layernorm|norm|pooler\.dense|classifier)\.(weight|bias))")
"""What masks patches in pre-training, and what stands behind the last block."""
RENAMED = (
    (re.compile(r"^(vit|dinov2|dinov2_with_registers|dinov3_vit)\."), ""),
    (re.compile(r"^(encoder|model)\.layer\."), "layer."),
    (re.compile(r"^embeddings\."), ""),
    (re.compile(r"^patch_embeddings\.projection\."), "patch_embeddings."),
    (re.compile(r"\.attention\.attention\.(q|k|v)(uery|ey|alue)\."), r".attention.\1_proj."),
    (re.compile(r"\.attention\.output\.dense\."), ".attention.o_proj."),
    (re.compile(r"\.layernorm_before\."), ".norm1."),
    (re.compile(r"\.layernorm_after\."), ".norm2."),
    (re.compile(r"(\d)\.intermediate\.dense\."), r"\1.mlp.up_proj."),
    (re.compile(r"(\d)\.output\.dense\."), r"\1.mlp.down_proj."),
    (re.compile(r"\.mlp\.(fc1)\."), ".mlp.up_proj."),
    (re.compile(r"\.mlp\.(fc2|weights_out)\."), ".mlp.down_proj."),
)


def _vit(config: dict[str, Any]) -> VitConfig:
    return VitConfig(
        hidden_size=config.get("hidden_size", 768),
        intermediate_size=config.get("intermediate_size", 3072),
        num_hidden_layers=config.get("num_hidden_layers", 12),
        num_attention_heads=config.get("num_attention_heads", 12),
        hidden_act=config.get("hidden_act", "gelu"),
        layer_norm_eps=config.get("layer_norm_eps", 1e-12),
        image_size=config.get("image_size", 224),
        patch_size=config.get("patch_size", 16),
        layer_scale=False,
        antialias=False,  # as transformers does
        biases=("q", "k", "v", "o", "mlp", "patch") if config.get("qkv_bias", True) else ("o", "mlp", "patch"),
    )


def _dinov2(config: dict[str, Any]) -> VitConfig:
    width, gated = config.get("hidden_size", 768), config.get("use_swiglu_ffn", False)
    inner = width * config.get("mlp_ratio", 4)
    with_registers = config["model_type"] == "dinov2_with_registers"
    return VitConfig(
        hidden_size=width,
        intermediate_size=(int(inner * 2 / 3) + 7) // 8 * 8 if gated else inner,
        num_hidden_layers=config.get("num_hidden_layers", 12),
        num_attention_heads=config.get("num_attention_heads", 12),
        hidden_act="silu" if gated else config.get("hidden_act", "gelu"),
        layer_norm_eps=config.get("layer_norm_eps", 1e-6),
        image_size=config.get("image_size", 224),
        patch_size=config.get("patch_size", 16 if with_registers else 14),
        registers=config.get("num_register_tokens", 4) if with_registers else 0,
        gated=gated,
        antialias=with_registers,  # as published: the first DINOv2 was trained and is used without
        biases=("q", "k", "v", "o", "mlp", "patch") if config.get("qkv_bias", True) else ("o", "mlp", "patch"),
    )


def _dinov3(config: dict[str, Any]) -> VitConfig:
    has = {"q": "query_bias", "k": "key_bias", "v": "value_bias", "o": "proj_bias", "mlp": "mlp_bias"}
    nested = config.get("rope_parameters")
    theta = (nested if isinstance(nested, dict) else config).get("rope_theta", 100.0)
    return VitConfig(
        hidden_size=config.get("hidden_size", 384),
        intermediate_size=config.get("intermediate_size", 1536),
        num_hidden_layers=config.get("num_hidden_layers", 12),
        num_attention_heads=config.get("num_attention_heads", 6),
        hidden_act=config.get("hidden_act", "gelu"),
        layer_norm_eps=config.get("layer_norm_eps", 1e-5),
        image_size=config.get("image_size", 224),
        patch_size=config.get("patch_size", 16),
        registers=config.get("num_register_tokens", 0),
        gated=config.get("use_gated_mlp", False),
        rope_theta=float(theta),
        biases=("patch", *(part for part, name in has.items() if config.get(name, part != "k"))),
    )


KINDS: dict[str, Callable[[dict[str, Any]], VitConfig]] = {
    "vit": _vit,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "dinov3_vit": _dinov3,
}


def read_vit_config(path: Path, config: dict[str, Any]) -> VitConfig:
    """The tower that a config.json describes.

    Raises:
        CheckpointError: No such tower can be.
    """
    depth = config.get("num_hidden_layers", 12)
    if not isinstance(depth, int) or not 1 <= depth <= DEPTH_LIMIT:
        raise CheckpointError(f"{path} asks for {depth!r} blocks, a tower has 1 to {DEPTH_LIMIT}")
    try:
        found = KINDS[config["model_type"]](config)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"the configuration in {path} makes no model: {error}") from None
    if found.hidden_act not in get_args(Activation):
        raise CheckpointError(f"{path}: activation {found.hidden_act!r}, expected one of {get_args(Activation)}")
    return found


def rename(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights in one naming, without what is not read; a packed gate is taken apart."""
    renamed = {}
    for name, tensor in state.items():
        short = RENAMED[0][0].sub("", name)
        if NOT_READ.fullmatch(short):
            continue
        for pattern, new in RENAMED[1:]:
            short = pattern.sub(new, short)
        if ".mlp.weights_in." in short:
            for part, half in zip(("gate_proj", "up_proj"), tensor.tensor_split(2), strict=True):
                renamed[short.replace("weights_in", part)] = half
        elif tensor.numel():  # no register tokens are saved as an empty tensor
            renamed[short] = tensor
    return renamed
