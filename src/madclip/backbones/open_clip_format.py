"""open_clip's models with a vision tower of timm: SigLIP, SigLIP 2, and those with a BERT, such as BiomedCLIP.

Their file says neither heads nor activations: open_clip_config.json has to lie beside it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch

from madclip.backbones.checkpoints import HALF, OPENAI_MEAN, OPENAI_STD, Checkpoint, is_backed, triple
from madclip.backbones.configuration import ModelConfig, TextConfig, VisionConfig
from madclip.backbones.timm_format import BEHIND, not_plain, vit_config
from madclip.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from madclip.backbones.configuration import Family

TRUNK = "visual.trunk."
USUAL = {"siglip": (HALF, HALF), "bert": (OPENAI_MEAN, OPENAI_STD)}
"""Mean and standard deviation where the configuration is silent."""

VISION = (
    (re.compile(r"patch_embed\.proj\.(weight|bias)"), r"embeddings.patch_embedding.\1"),
    (re.compile(r"norm\.(weight|bias)"), r"post_layernorm.\1"),
    (re.compile(r"blocks\.(\d{1,3})\.norm([12])\.(weight|bias)"), r"encoder.layers.\1.layer_norm\2.\3"),
    (re.compile(r"blocks\.(\d{1,3})\.attn\.proj\.(weight|bias)"), r"encoder.layers.\1.self_attn.out_proj.\2"),
    (re.compile(r"blocks\.(\d{1,3})\.mlp\.(fc[12])\.(weight|bias)"), r"encoder.layers.\1.mlp.\2.\3"),
    (re.compile(r"attn_pool\.latent"), "head.probe"),
    (re.compile(r"attn_pool\.proj\.(weight|bias)"), r"head.attention.out_proj.\1"),
    (re.compile(r"attn_pool\.norm\.(weight|bias)"), r"head.layernorm.\1"),
    (re.compile(r"attn_pool\.mlp\.(fc[12])\.(weight|bias)"), r"head.mlp.\1.\2"),
)
BERT = (
    (re.compile(r"transformer\.embeddings\.word_embeddings\.weight"), "embeddings.token_embedding.weight"),
    (re.compile(r"transformer\.embeddings\.position_embeddings\.weight"), "embeddings.position_embedding.weight"),
    (re.compile(r"transformer\.embeddings\.token_type_embeddings\.weight"), "embeddings.token_type_embedding.weight"),
    (re.compile(r"transformer\.embeddings\.LayerNorm\.(weight|bias)"), r"embeddings.layer_norm.\1"),
    *(
        (re.compile(rf"transformer\.encoder\.layer\.(\d{{1,3}})\.{old}\.(weight|bias)"), rf"encoder.layers.\1.{new}.\2")
        for old, new in (
            (r"attention\.self\.query", "self_attn.q_proj"),
            (r"attention\.self\.key", "self_attn.k_proj"),
            (r"attention\.self\.value", "self_attn.v_proj"),
            (r"attention\.output\.dense", "self_attn.out_proj"),
            (r"attention\.output\.LayerNorm", "layer_norm1"),
            (r"intermediate\.dense", "mlp.fc1"),
            (r"output\.dense", "mlp.fc2"),
            (r"output\.LayerNorm", "layer_norm2"),
        )
    ),
)
UNUSED = ("transformer.embeddings.position_ids", "transformer.pooler.dense.weight", "transformer.pooler.dense.bias")
"""What some files hold of BERT that is no weight, or is not read."""

BERT_NEEDED = {
    "transformer.embeddings.word_embeddings.weight": 2,
    "transformer.embeddings.position_embeddings.weight": 2,
    "transformer.encoder.layer.0.intermediate.dense.weight": 2,
    "visual.head.proj.weight": 2,
}
SIGLIP_NEEDED = {
    "token_embedding.weight": 2,
    "positional_embedding": 2,
    "transformer.resblocks.0.mlp.c_fc.weight": 2,
    "text_projection.weight": 2,
    "visual.trunk.attn_pool.q.weight": 2,
    "visual.trunk.attn_pool.kv.weight": 2,
}


def read_timm_towers(
    path: Path, config_file: Path, state: dict[str, torch.Tensor], model: dict[str, Any], preprocess: dict[str, Any]
) -> Checkpoint:
    """A model of open_clip whose vision tower is one of timm.

    Args:
        path: The file, for messages.
        config_file: Where open_clip_config.json is, or has to be.
        state: Its tensors, those of a nested text tower without their prefix.
        model: The `model_cfg` of the configuration; empty where there is none.
        preprocess: Its `preprocess_cfg`.

    Raises:
        CheckpointError: No configuration, other towers than plain ones, or weights that are not what it says.
    """
    vision, text = (model.get(name) for name in ("vision_cfg", "text_cfg"))
    if not isinstance(vision, dict) or not isinstance(text, dict):
        raise CheckpointError(f"{path} has a tower of timm: put the model's {config_file.name} beside it")
    family: Family = "bert" if "hf_model_name" in text else "siglip"
    _check(path, state, BERT_NEEDED if family == "bert" else SIGLIP_NEEDED)
    trunk = {name.removeprefix(TRUNK): value for name, value in state.items() if name.startswith(TRUNK)}
    rest = {name: value for name, value in state.items() if not name.startswith(TRUNK) and name not in UNUSED}
    try:
        image = _vision(path, vision.get("timm_model_name"), trunk, class_token=family == "bert")
        words = _bert(config_file, text, rest) if family == "bert" else _siglip(config_file, model, text, rest)
        size = rest["visual.head.proj.weight" if family == "bert" else "text_projection.weight"].shape[0]
        config = ModelConfig(family, image, words, size)
    except ValueError as error:
        raise CheckpointError(f"the configuration in {config_file} makes no model: {error}") from None
    renamed = _renamed_bert(rest, words) if family == "bert" else _renamed_siglip(rest)
    mean, std = USUAL[family]
    clean = text.get("tokenizer_kwargs")
    return Checkpoint(
        path=path,
        config=config,
        state=_renamed_trunk(trunk) | renamed,
        mean=triple(config_file, "mean", preprocess.get("mean"), mean),
        std=triple(config_file, "std", preprocess.get("std"), std),
        folder=path.parent,
        assumed_normalisation=None in (preprocess.get("mean"), preprocess.get("std")),
        plain_texts=isinstance(clean, dict) and clean.get("clean") == "canonicalize",
    )


def _check(path: Path, state: dict[str, torch.Tensor], needed: dict[str, int]) -> None:
    for name, dimensions in needed.items():
        if name not in state or state[name].ndim != dimensions or 0 in state[name].shape:
            raise CheckpointError(
                f"{path} has a tower of timm and no usable {name}: SigLIPs, and a ViT beside a BERT, can be read"
            )


def _vision(path: Path, name: Any, trunk: dict[str, torch.Tensor], *, class_token: bool) -> VisionConfig:
    found = vit_config(path, name, {n: v for n, v in trunk.items() if not BEHIND.fullmatch(n)}, {})
    more = {
        "gated MLPs": found.gated,
        "layer scale": found.layer_scale,
        "a norm before its blocks": found.pre_norm,
        "registers": found.registers,
        "no class token": class_token and not found.class_token,
        "a class token": found.class_token and not class_token,
        "a class token without position": found.placed < found.prefix_tokens,
    }
    odd = next((what for what, has in more.items() if has), None)
    if odd:
        raise not_plain(path, name, f"with {odd} beside this text tower")
    return VisionConfig(
        hidden_size=found.hidden_size,
        intermediate_size=found.intermediate_size,
        num_hidden_layers=found.num_hidden_layers,
        num_attention_heads=found.num_attention_heads,
        hidden_act=found.hidden_act,
        layer_norm_eps=found.layer_norm_eps,
        image_size=found.image_size,
        patch_size=found.patch_size,
    )


def _expect(config_file: Path, text: dict[str, Any], wanted: dict[str, Any]) -> None:
    for name, value in wanted.items():
        if text.get(name) != value:
            raise CheckpointError(
                f"{config_file}: text_cfg has {name} {text.get(name)!r}, and only {value!r} can be read beside a tower "
                "of timm"
            )


def _siglip(config_file: Path, model: dict[str, Any], text: dict[str, Any], state: dict[str, Any]) -> TextConfig:
    _expect(config_file, text, {"no_causal_mask": True, "pool_type": "last", "proj_bias": True})
    norm, act = text.get("norm_kwargs") or {}, text.get("act_kwargs") or {}
    words, width = state["token_embedding.weight"].shape
    tanh = isinstance(act, dict) and act.get("approximate") == "tanh"
    return TextConfig(
        hidden_size=width,
        intermediate_size=len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
        num_hidden_layers=_depth(state, r"transformer\.resblocks\.(\d{1,3})\."),
        num_attention_heads=text.get("heads", 8),
        hidden_act="quick_gelu" if model.get("quick_gelu") else "gelu_pytorch_tanh" if tanh else "gelu",
        layer_norm_eps=norm.get("eps", 1e-5) if isinstance(norm, dict) else 1e-5,
        vocab_size=words,
        max_position_embeddings=len(state["positional_embedding"]),
    )


def _bert(config_file: Path, text: dict[str, Any], state: dict[str, Any]) -> TextConfig:
    """BERT as it was published in all sizes: heads of 64 channels, GELU; the context is open_clip's."""
    _expect(config_file, text, {"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler"})
    words, width = state["transformer.embeddings.word_embeddings.weight"].shape
    positions = len(state["transformer.embeddings.position_embeddings.weight"])
    length = text.get("context_length", 77)
    if not isinstance(length, int) or not 2 <= length <= positions:
        raise CheckpointError(f"{config_file}: context_length should be 2 to {positions}, not {length!r}")
    return TextConfig(
        hidden_size=width,
        intermediate_size=len(state["transformer.encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_depth(state, r"transformer\.encoder\.layer\.(\d{1,3})\."),
        num_attention_heads=max(width // 64, 1),
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        vocab_size=words,
        max_position_embeddings=length,
    )


def _depth(state: dict[str, Any], pattern: str) -> int:
    return 1 + max(int(match[1]) for match in (re.match(pattern, name) for name in state) if match)


def _first(name: str, patterns: Sequence[tuple[re.Pattern[str], str]]) -> str | None:
    """The new name of the first pattern that fits the whole of one."""
    return next((match.expand(new) for p, new in patterns if (match := p.fullmatch(name))), None)


def _renamed_trunk(trunk: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The vision tower in transformers' names: packed weights apart in blocks, together in the pooling.

    What is no part of a plain tower keeps its name, and is refused with it.
    """
    renamed = {}
    for name, tensor in trunk.items():
        if match := re.fullmatch(r"blocks\.(\d{1,3})\.attn\.qkv\.(weight|bias)", name):
            for letter, third in zip("qkv", tensor.tensor_split(3) if tensor.ndim else [tensor] * 3, strict=True):
                renamed[f"vision_model.encoder.layers.{match[1]}.self_attn.{letter}_proj.{match[2]}"] = third
        elif name == "cls_token":
            renamed["vision_model.embeddings.class_embedding"] = tensor.reshape(-1)
        elif name == "pos_embed":
            renamed["vision_model.embeddings.position_embedding.weight"] = tensor[0]
        else:
            new = _first(name, VISION)
            renamed[f"vision_model.{new}" if new else TRUNK + name] = tensor
    for kind in ("weight", "bias"):
        names = [f"{TRUNK}attn_pool.{part}.{kind}" for part in ("q", "kv")]
        parts = [renamed[name] for name in names if name in renamed and is_backed(renamed[name])]
        if len(parts) == len(names) and all(p.ndim and p.shape[1:] == parts[0].shape[1:] for p in parts):
            renamed[f"vision_model.head.attention.in_proj_{kind}"] = torch.cat(parts)
            for name in names:
                del renamed[name]
    return renamed


def _renamed_siglip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from madclip.backbones.openai_format import to_hugging_face

    renamed = {}
    for name, tensor in to_hugging_face(state).items():
        scalar = name in ("logit_scale", "logit_bias")
        renamed[name.replace("text_projection.", "text_model.head.")] = tensor.reshape(-1) if scalar else tensor
    return renamed


def _renamed_bert(state: dict[str, torch.Tensor], config: TextConfig) -> dict[str, torch.Tensor]:
    renamed = {}
    for name, tensor in state.items():
        new = _first(name, BERT)
        if name == "visual.head.proj.weight":
            renamed["visual_projection.weight"] = tensor
        elif new == "embeddings.position_embedding.weight":
            renamed[f"text_model.{new}"] = tensor[: config.max_position_embeddings]  # further ones are never read
        elif new:
            renamed[f"text_model.{new}"] = tensor
        else:
            renamed[re.sub(r"^proj\.([02])\.weight$", r"text_projection.\1.weight", name)] = tensor
    return renamed
