"""Small backbones on disk, one maker a format; every one of them must pass the tests in test_backbones.py."""

from __future__ import annotations

import json

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    MetaClip2Config,
    MetaClip2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

TOWER = {"num_hidden_layers": 4, "hidden_act": "quick_gelu", "projection_dim": 40}
VISION = TOWER | {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
}
TEXT = TOWER | {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 1, "num_hidden_layers": 3}
TEXTS = ["a photo of a brain", "damaged retinal OCT with flaw.", "x"]


def clip_model(activation="quick_gelu", seed=0):
    """A random CLIPModel whose weights are far from their initial scale, so that no term is lost in the others."""
    torch.manual_seed(seed)
    act = {"hidden_act": activation}
    config = CLIPConfig(vision_config=VISION | act, text_config=TEXT | act | {"eos_token_id": 49407}, projection_dim=40)
    return _shaken(CLIPModel(config))


def siglip_model(seed=0):
    torch.manual_seed(seed)
    size = {"num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
    text = size | {"vocab_size": 60, "max_position_embeddings": 12, "projection_size": 64}
    return _shaken(
        SiglipModel(SiglipConfig(vision_config=size | {"image_size": 64, "patch_size": 16}, text_config=text))
    )


def _shaken(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim and "norm" not in name:
                parameter.copy_(
                    torch.randn_like(parameter) * (0.5 if "embedding" in name else parameter.shape[-1] ** -0.5)
                )
            elif parameter.ndim:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def openai_state(model):
    """The same weights in OpenAI's naming, written independently of the reader."""
    ours, theirs = model.state_dict(), {}
    for prefix, tower, layers in (("visual.", "vision_model", 4), ("", "text_model", 3)):
        for i in range(layers):
            old, new = f"{tower}.encoder.layers.{i}.", f"{prefix}transformer.resblocks.{i}."
            for kind in ("weight", "bias"):
                packed = torch.cat([ours[f"{old}self_attn.{x}_proj.{kind}"] for x in "qkv"])
                theirs[f"{new}attn.in_proj_{kind}"] = packed
                theirs[f"{new}attn.out_proj.{kind}"] = ours[f"{old}self_attn.out_proj.{kind}"]
                theirs[f"{new}ln_1.{kind}"] = ours[f"{old}layer_norm1.{kind}"]
                theirs[f"{new}ln_2.{kind}"] = ours[f"{old}layer_norm2.{kind}"]
                theirs[f"{new}mlp.c_fc.{kind}"] = ours[f"{old}mlp.fc1.{kind}"]
                theirs[f"{new}mlp.c_proj.{kind}"] = ours[f"{old}mlp.fc2.{kind}"]
    for kind in ("weight", "bias"):
        theirs[f"visual.ln_pre.{kind}"] = ours[f"vision_model.pre_layrnorm.{kind}"]
        theirs[f"visual.ln_post.{kind}"] = ours[f"vision_model.post_layernorm.{kind}"]
        theirs[f"ln_final.{kind}"] = ours[f"text_model.final_layer_norm.{kind}"]
    theirs["visual.class_embedding"] = ours["vision_model.embeddings.class_embedding"]
    theirs["visual.conv1.weight"] = ours["vision_model.embeddings.patch_embedding.weight"]
    theirs["visual.positional_embedding"] = ours["vision_model.embeddings.position_embedding.weight"]
    theirs["positional_embedding"] = ours["text_model.embeddings.position_embedding.weight"]
    theirs["token_embedding.weight"] = ours["text_model.embeddings.token_embedding.weight"]
    theirs["visual.proj"] = ours["visual_projection.weight"].T.contiguous()
    theirs["text_projection"] = ours["text_projection.weight"].T.contiguous()
    theirs["logit_scale"] = ours["logit_scale"]
    return {name: tensor.clone() for name, tensor in theirs.items()}


def image_settings(folder, name="preprocessor_config.json"):
    """The image settings as transformers 4 and 5 write them."""
    settings = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "do_normalize": True}
    whole = settings if name.startswith("pre") else {"image_processor": settings, "processor_class": "CLIPProcessor"}
    (folder / name).write_text(json.dumps(whole))


def clip_folder(folder):
    clip_model().save_pretrained(folder)
    image_settings(folder)
    return folder, clip_model()


def clip_bin_folder(folder):
    folder.mkdir(exist_ok=True)
    model = clip_model()
    model.config.save_pretrained(folder)
    indices = {
        "vision_model.embeddings.position_ids": torch.arange(17)[None]
    }  # as older versions of transformers wrote
    torch.save(model.state_dict() | indices, folder / "pytorch_model.bin")
    image_settings(folder)
    return folder, model


def clip_sharded(folder):
    clip_model().save_pretrained(folder, max_shard_size="2MB")
    assert (folder / "model.safetensors.index.json").is_file()
    image_settings(folder, "processor_config.json")
    return folder, clip_model()


def openai_file(folder):
    folder.mkdir(exist_ok=True)
    extra = {
        "input_resolution": torch.tensor(64),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    torch.save(openai_state(clip_model()) | extra, folder / "clip.pt")
    return folder / "clip.pt", clip_model()


def open_clip_safetensors(folder):
    folder.mkdir(exist_ok=True)
    save_file(openai_state(clip_model("gelu")), folder / "open_clip_model.safetensors")
    model = {"embed_dim": 40, "vision_cfg": {"head_width": 64, "layers": 4}, "text_cfg": {"heads": 1}}
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    return folder, clip_model("gelu")


def open_clip_training(folder):
    """As open_clip's training writes it: wrapped, prefixed, the text tower nested, the causal mask beside."""
    folder.mkdir(exist_ok=True)
    state = {
        f"module.{'' if name.startswith('visual.') or name == 'logit_scale' else 'text.'}{name}": tensor
        for name, tensor in openai_state(clip_model()).items()
    }
    state["module.text.attn_mask"] = torch.zeros(77, 77)
    torch.save({"epoch": 3, "name": "run", "state_dict": state}, folder / "ViT-toy-quickgelu.pt")
    return folder / "ViT-toy-quickgelu.pt", clip_model()


def siglip_folder(folder):
    siglip_model().save_pretrained(folder)
    image_settings(folder, "processor_config.json")
    words = ["<pad>", "<eos>", "<unk>", *" ".join(TEXTS).lower().replace(".", " .").split()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, siglip_model()


def metaclip2_model():
    torch.manual_seed(0)
    text = TEXT | {"vocab_size": 60, "eos_token_id": 2, "bos_token_id": 0}
    return _shaken(MetaClip2Model(MetaClip2Config(vision_config=VISION, text_config=text, projection_dim=40)))


def metaclip2_folder(folder):
    metaclip2_model().save_pretrained(folder)
    image_settings(folder)
    words = ["<s>", "<pad>", "</s>", "<unk>", *" ".join(TEXTS).replace(".", " .").split(), "brain"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, metaclip2_model()


DINO = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}
DINOS = {
    "vit": lambda: ViTModel(ViTConfig(**DINO, intermediate_size=96)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**DINO)),
    "dinov2_swiglu": lambda: Dinov2Model(Dinov2Config(**DINO, use_swiglu_ffn=True, qkv_bias=False)),
    "dinov2_registers": lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**DINO, num_register_tokens=3)),
    "dinov3": lambda: DINOv3ViTModel(DINOv3ViTConfig(**DINO, intermediate_size=96, num_register_tokens=4)),
    "dinov3_gated": lambda: DINOv3ViTModel(
        DINOv3ViTConfig(
            **DINO, intermediate_size=96, use_gated_mlp=True, hidden_act="silu", mlp_bias=False, rope_theta=50.0
        )
    ),
}
"""Image-only towers of transformers, with random weights."""


def dino_model(name):
    torch.manual_seed(0)
    model = DINOS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def dino_folder(folder, name):
    model = dino_model(name)
    model.save_pretrained(folder)
    image_settings(folder)
    return folder, model


def stand_in(folder):
    return "stand-in", None


MAKERS = {
    maker.__name__: maker
    for maker in (
        clip_folder,
        clip_bin_folder,
        clip_sharded,
        openai_file,
        open_clip_safetensors,
        open_clip_training,
        siglip_folder,
        metaclip2_folder,
        stand_in,
    )
}
