"""Plain vision transformers as timm saves them: sizes from the weights, the rest from the name of the architecture.

The names are those of timm 1.0: its size words fix the number of heads, other words the activation and the norms.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from madclip.backbones.checkpoints import IMAGENET_MEAN, IMAGENET_STD, Checkpoint, triple
from madclip.backbones.vit import VitConfig
from madclip.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from madclip.backbones.spec import Activation

PLAIN = re.compile(r"(vit|deit|deit3|flexivit|eva)_([a-z0-9]+)(_\w+)?")
OTHER_BLOCKS = ("_rpn_", "_xp_", "_18x2_")
"""Words of architectures whose blocks are other ones under the same names, or are not one behind another."""

HEADS = {
    **dict.fromkeys(("large", "huge", "giant", "giantopt", "gigantic", "so400m", "intern300m"), 16),
    "tiny": 3,
    "small": 6,
    "base": 12,
    "wee": 4,
    "xsmall": 4,
    "little": 5,
    "medium": 8,
    "mediumd": 8,
    "betwixt": 10,
    "so150m": 14,
    "so150m2": 13,
}
ODD_HEADS = ((r"vit_base_patch16_gap_", 16), (r"vit_base_patch\d+_plus_", 14), (r"vit_giant_.*(dinov2|tips|radio)", 24))

TANH = re.compile(r"giantopt|vit_(base_patch32|so400m_patch16)_siglip|vit_large_patch16_siglip_(gap_)?512")
ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}
"""By timm's names; those that no architecture's weights were trained with are left out."""

NEEDED = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight")
DIMENSIONS = dict(zip(NEEDED, (4, 3, 2, 2), strict=True)) | {"cls_token": 3, "reg_token": 3}
"""What the sizes are taken from, and the numbers of dimensions."""

BEHIND = re.compile(r"(norm|fc_norm|head|head_drop|attn_pool)\..+")
"""What stands behind the last block, and is not read."""

TOP = {"cls_token": "cls_token", "reg_token": "register_tokens", "pos_embed": "position_embeddings"}
LAYERS = (
    (re.compile(r"^patch_embed\.proj\.(weight|bias)$"), r"patch_embeddings.\1"),
    (re.compile(r"^norm_pre\.(weight|bias)$"), r"norm_pre.\1"),
    (re.compile(r"^blocks\.(\d{1,3})\.(norm[12])\.(weight|bias)$"), r"layer.\1.\2.\3"),
    (re.compile(r"^blocks\.(\d{1,3})\.attn\.proj\.(weight|bias)$"), r"layer.\1.attention.o_proj.\2"),
    (re.compile(r"^blocks\.(\d{1,3})\.mlp\.fc1\.(weight|bias)$"), r"layer.\1.mlp.up_proj.\2"),
    (re.compile(r"^blocks\.(\d{1,3})\.mlp\.fc2\.(weight|bias)$"), r"layer.\1.mlp.down_proj.\2"),
    (re.compile(r"^blocks\.(\d{1,3})\.ls([12])\.gamma$"), r"layer.\1.layer_scale\2.lambda1"),
)
PACKED = re.compile(r"^blocks\.(\d{1,3})\.attn\.qkv\.(weight|bias)$")


def read_timm(path: Path, config_file: Path, config: dict[str, Any], state: dict[str, torch.Tensor]) -> Checkpoint:
    """An image-only tower with the config.json that timm writes beside its weights.

    Raises:
        CheckpointError: The architecture is no plain vision transformer, or the weights are not what it says.
    """
    architecture, said = config["architecture"], config.get("pretrained_cfg") or {}
    arguments = config.get("model_args") or {}
    if not isinstance(said, dict) or not isinstance(arguments, dict):
        raise CheckpointError(f"{config_file}: pretrained_cfg and model_args should be objects")
    state = {n: tensor for n, tensor in state.items() if isinstance(tensor, torch.Tensor) and not BEHIND.fullmatch(n)}
    found = vit_config(path, architecture, state, arguments)
    return Checkpoint(
        path=path,
        config=found,
        state=rename(path, architecture, state, gated=found.gated),
        mean=triple(config_file, "mean", said.get("mean"), IMAGENET_MEAN),
        std=triple(config_file, "std", said.get("std"), IMAGENET_STD),
        assumed_normalisation=None in (said.get("mean"), said.get("std")),
    )


def vit_config(path: Path, architecture: Any, state: dict[str, torch.Tensor], arguments: dict[str, Any]) -> VitConfig:
    """The tower that an architecture's name, the arguments it was made with and its weights describe.

    Raises:
        CheckpointError: It is no plain vision transformer.
    """
    known = heads(path, architecture)
    wrong = next((n for n in NEEDED if n not in state), None)
    wrong = wrong or next((n for n in DIMENSIONS if n in state and state[n].ndim != DIMENSIONS[n]), None)
    if wrong:
        raise not_plain(path, architecture, f"without a usable {wrong}")
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    up, inner = len(state["blocks.0.mlp.fc1.weight"]), state["blocks.0.mlp.fc2.weight"].shape[1]
    before = ("cls_token" in state) + (state["reg_token"].shape[1] if "reg_token" in state else 0)
    placed, side = _places(path, architecture, state["pos_embed"].shape[1], before)
    gated = up == 2 * inner
    biases = ("q", "k", "v") if "blocks.0.attn.qkv.bias" in state else ()
    named = {"o": "blocks.0.attn.proj", "mlp": "blocks.0.mlp.fc1", "patch": "patch_embed.proj"}
    try:
        return VitConfig(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=1 + max(int(n.split(".")[1]) for n in state if re.match(r"blocks\.\d{1,3}\.", n)),
            num_attention_heads=arguments.get("num_heads") or known,
            hidden_act=activation(path, architecture, arguments, gated=gated),
            layer_norm_eps=1e-5 if "_clip_" in architecture else 1e-6,
            image_size=side * patch,
            patch_size=patch,
            class_token="cls_token" in state,
            registers=before - ("cls_token" in state),
            placed=placed,
            gated=gated,
            layer_scale="blocks.0.ls1.gamma" in state,
            pre_norm="norm_pre.weight" in state,
            biases=(*biases, *(part for part, layer in named.items() if f"{layer}.bias" in state)),
        )
    except ValueError as error:
        raise CheckpointError(f"{path} makes no model: {error}") from None


def heads(path: Path, architecture: Any) -> int:
    """The attention heads that timm gives an architecture.

    Raises:
        CheckpointError: No plain vision transformer is called so.
    """
    match = PLAIN.fullmatch(architecture) if isinstance(architecture, str) else None
    if match is None or match[2] not in HEADS or any(word in architecture for word in OTHER_BLOCKS):
        raise not_plain(path, architecture)
    return next((count for pattern, count in ODD_HEADS if re.match(pattern, architecture)), HEADS[match[2]])


def activation(path: Path, architecture: str, arguments: dict[str, Any], *, gated: bool) -> Activation:
    """The activation of an architecture's MLPs; a gated one has SiLU in all of timm's.

    Raises:
        CheckpointError: It was made with one that is not known.
    """
    usual = "quick_gelu" if "quickgelu" in architecture else "gelu_tanh" if TANH.search(architecture) else "gelu"
    name = str(arguments.get("act_layer") or ("silu" if gated else usual))
    if name not in ACTIVATIONS:
        raise CheckpointError(f"{path}: activation {name!r}, expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def rename(path: Path, architecture: str, state: dict[str, torch.Tensor], *, gated: bool) -> dict[str, torch.Tensor]:
    """The same weights in the names of `VisionTransformer`, packed ones taken apart.

    Raises:
        CheckpointError: A weight is part of no plain vision transformer.
    """
    renamed = {}
    for name, tensor in state.items():
        new = TOP.get(name) or next((p.sub(to, name) for p, to in LAYERS if p.match(name)), None)
        packed = PACKED.match(name) if tensor.ndim else None
        if packed:
            for letter, third in zip("qkv", tensor.tensor_split(3), strict=True):
                renamed[f"layer.{packed[1]}.attention.{letter}_proj.{packed[2]}"] = third
        elif new is None:
            raise not_plain(path, architecture, f"with {name}")
        elif gated and ".up_proj." in new:
            renamed[new.replace("up_proj", "gate_proj")], renamed[new] = tensor.tensor_split(2)
        else:
            renamed[new] = tensor
    return renamed


def not_plain(path: Path, architecture: Any, what: str = "") -> CheckpointError:
    """The one line for a model of timm that cannot be read."""
    named = f"timm's {str(architecture)[:60]!r}{f', {what},' if what else ''}"
    return CheckpointError(
        f"{path}: {named} is no plain vision transformer: give one (DINOv3 as transformers saves it), or another tower"
    )


def _places(path: Path, architecture: Any, count: int, before: int) -> tuple[int, int]:
    """How many tokens before the patches have a position, all or none, and the side of the patches' square."""
    for placed in (before, 0):
        side = round(max(count - placed, 0) ** 0.5)
        if side and side**2 == count - placed:
            return placed, side
    raise not_plain(path, architecture, f"with {count} positions, no square of patches")
