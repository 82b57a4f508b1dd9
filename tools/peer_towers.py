"""Weights as timm, open_clip and transformers write them, random, with what these libraries compute from them.

    PEERS/python tools/peer_towers.py small tests/backbones/peers
    PEERS/python tools/peer_towers.py full FOLDER [NAME ...]

`small` makes the fixtures of the tests: tens of kilobytes each, weights rounded to half precision. `full` makes the
published configurations at their full sizes, for `benchmarks/towers.py`. It runs where timm 1.0, open_clip 3.3 and
transformers are; the package itself needs none of them.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import open_clip
import timm
import torch
import transformers
from open_clip.push_to_hf_hub import save_for_hf
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import save_file
from timm.models._hub import save_for_hf as save_timm
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

TEXTS = ["A photo of a brain.", "damaged retinal_OCT, with flaw", "x"]
WORDS = ["a", "photo", "of", "brain", "damaged", "retinal", "oct", "with", "flaw", "x", ".", ",", "_", "##s", "##al"]
TINY = {"embed_dim": 24, "depth": 4, "mlp_ratio": 1.0, "img_size": 16, "patch_size": 4}
create_model = timm.create_model

TIMM = {
    "vit": ("vit_base_patch16_224", {}),
    "vit-clip": ("vit_base_patch16_clip_quickgelu_224", {}),
    "vit-dinov2-reg": ("vit_small_patch14_reg4_dinov2", {}),
    "vit-gated": ("vit_giant_patch14_dinov2", {"mlp_ratio": 2.0}),
    "vit-reg-heads": ("vit_base_patch16_224", {"reg_tokens": 2, "num_heads": 4, "init_values": 1e-5}),
    "vit-siglip": ("vit_base_patch32_siglip_256", {}),
}
TEXT = {"width": 16, "heads": 4, "layers": 2, "mlp_ratio": 2, "context_length": 12, "vocab_size": 24}


def main() -> None:
    """Make what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=("small", "full"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    makers = small_makers() if given.size == "small" else full_makers()
    for name in given.names or makers:
        torch.manual_seed(0)
        folder = given.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        makers[name](folder)
        print(name, sum(f.stat().st_size for f in folder.iterdir()) // 1024, "KiB", flush=True)


def small_makers() -> dict:
    """A maker for each fixture."""
    made = {name: partial(timm_folder, architecture, TINY | extra) for name, (architecture, extra) in TIMM.items()}
    siglip = open_clip.get_model_config("ViT-B-16-SigLIP")
    siglip2 = open_clip.get_model_config("ViT-B-16-SigLIP2")
    for name, config in (("open-clip-siglip", siglip), ("open-clip-siglip2", siglip2), ("open-clip-biomed", BIOMED)):
        made[name] = partial(clip_folder, shrunk(config), TINY)
    worldwide = open_clip.get_model_config("ViT-H-14-worldwide-quickgelu")
    worldwide["vision_cfg"] |= {"width": 24, "head_width": 8, "layers": 4, "patch_size": 4, "image_size": 16}
    worldwide["vision_cfg"]["mlp_ratio"] = 1
    worldwide["text_cfg"] |= TEXT
    made["open-clip-metaclip2"] = partial(clip_folder, worldwide | {"embed_dim": 24}, {})
    return made


BIOMED = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "text_cfg": {
        "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    },
}
"""As in the open_clip_config.json of microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224."""


def full_makers() -> dict:
    """A maker for each published configuration."""
    names = {"siglip": "ViT-B-16-SigLIP", "siglip2": "ViT-B-16-SigLIP2"}
    made = {name: partial(clip_folder, open_clip.get_model_config(of), {}) for name, of in names.items()}
    made["biomed"] = partial(clip_folder, BIOMED, {})
    made["vit-b-16"] = partial(timm_folder, "vit_base_patch16_224", {})
    made["dinov2-b-14-reg"] = partial(timm_folder, "vit_base_patch14_reg4_dinov2", {})
    return made


def shrunk(config: dict) -> dict:
    """A configuration with a text tower of a few thousand weights."""
    small = json.loads(json.dumps(config)) | {"embed_dim": 24}
    small["vision_cfg"]["image_size"] = 16
    small["text_cfg"] |= {"context_length": 12} if "hf_model_name" in small["text_cfg"] else TEXT
    return small


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Weights far from their initial scale, so that no term is lost in the others, that half precision holds."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.1 if parameter.ndim < 2 or "norm" in name else parameter.shape[-1] ** -0.5
            kept = parameter if parameter.ndim < 2 else 0
            parameter.copy_((kept + spread * torch.randn_like(parameter)).half().float())
    return model.eval()


def pixels(model: torch.nn.Module) -> torch.Tensor:
    """Two images at a model's size, that half precision holds."""
    size = model.patch_embed.img_size if hasattr(model, "patch_embed") else model.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1)).half().float()


def taps(depth: int) -> list[int]:
    """The blocks, from 0, after which tokens are taken."""
    return [max(1, round(depth * quarter / 4)) - 1 for quarter in (1, 2, 3, 4)]


def streams(blocks: torch.nn.Module, run) -> list[np.ndarray]:  # noqa: ANN001
    """What the blocks at the taps give while a model runs."""
    found: dict[int, torch.Tensor] = {}
    for at in set(taps(len(blocks))):
        blocks[at].register_forward_hook(lambda _m, _i, out, at=at: found.__setitem__(at, out))
    with torch.no_grad():
        run()
    return [found[at].numpy() for at in taps(len(blocks))]


def write(folder: Path, x: torch.Tensor, tokens: list[np.ndarray], **more: np.ndarray) -> None:
    """The expected values beside the weights."""
    named = {f"tokens{i}": stream for i, stream in enumerate(tokens)}
    np.savez_compressed(folder / "expected.npz", pixels=x.numpy().astype(np.float16), **named, **more)


def halve(folder: Path) -> None:
    """Weights in half precision, which holds those of `shaken` exactly."""
    for file in folder.glob("*.safetensors"):
        from safetensors.torch import load_file

        save_file({n: t.half() if t.is_floating_point() else t for n, t in load_file(file).items()}, file)


def timm_folder(architecture: str, arguments: dict, folder: Path) -> None:
    """A tower of timm; arguments that a published model would have been made with are written with it."""
    model = shaken(timm.create_model(architecture, num_classes=3, **arguments))
    save_timm(model, folder, model_args=arguments, safe_serialization=True)
    halve(folder)
    x = pixels(model)
    write(folder, x, streams(model.blocks, lambda: model(x)))


def clip_folder(config: dict, arguments: dict, folder: Path) -> None:
    """A model of open_clip, as `save_for_hf` writes it, with a small tokenizer of its kind."""
    bert = transformers.BertConfig()
    if arguments:
        sizes = {"vocab_size": 24, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 1}
        bert = transformers.BertConfig(**sizes, intermediate_size=32, max_position_embeddings=20)
    small = partial(create_model, **arguments)
    loading = (
        mock.patch("timm.create_model", small),
        mock.patch.object(transformers.AutoConfig, "from_pretrained", return_value=bert),
    )
    with loading[0], loading[1]:
        text = config["text_cfg"] | ({"hf_model_pretrained": False} if "hf_model_name" in config["text_cfg"] else {})
        kind = open_clip.model.CustomTextCLIP
        if not ({"timm_model_name"} & set(config["vision_cfg"])):
            kind = open_clip.model.CLIP
        known = {k: v for k, v in config.items() if k != "custom_text"}
        model = shaken(kind(**known | {"text_cfg": text}))
    clean = {"clean": config["text_cfg"].get("tokenizer_kwargs", {}).get("clean", "whitespace")}
    family = "bert" if "hf_model_name" in text else "roberta" if kind is open_clip.model.CLIP else "t5"
    family = "gemma" if text.get("act_kwargs") else family
    inner = words(family, folder)
    with mock.patch.object(transformers.AutoTokenizer, "from_pretrained", return_value=inner):
        tokenizer = HFTokenizer("none", context_length=text["context_length"], **clean)
    half = 0.5, 0.5, 0.5
    model.visual.image_mean, model.visual.image_std = half, half
    save_for_hf(model, tokenizer, config, str(folder), safe_serialization=True)
    if arguments or config["embed_dim"] == TINY["embed_dim"]:
        halve(folder)
    trunk = getattr(model.visual, "trunk", None)
    x, ids = pixels(model.visual), tokenizer(TEXTS)
    blocks = model.visual.transformer.resblocks if trunk is None else trunk.blocks
    tokens = streams(blocks, lambda: model.encode_image(x))
    with torch.no_grad():
        features = model.encode_text(ids).numpy()
        image = model.encode_image(x).numpy()
    write(folder, x, tokens, ids=ids.numpy(), text=features, image=image)


SPECIAL = {
    "t5": ("</s>", "</s>", None, "<unk>"),
    "gemma": ("<pad>", "<eos>", None, "<unk>"),
    "bert": ("[PAD]", "[SEP]", "[CLS]", "[UNK]"),
    "roberta": ("<pad>", "</s>", "<s>", "<unk>"),
}
"""Padding, end, start and unknown."""


def words(kind: str, folder: Path) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer of a few words with the special tokens, and their numbers, of a published kind."""
    pad, end, start, unknown = SPECIAL[kind]
    order = {"t5": (unknown, end), "gemma": (pad, end, "<bos>", unknown), "roberta": (start, pad, end, unknown)}
    first = order.get(kind, (pad, unknown, start, end))
    vocabulary = {word: i for i, word in enumerate([*first, *WORDS])}
    model = models.WordPiece if kind == "bert" else models.WordLevel
    inner = Tokenizer(model(vocabulary, unk_token=unknown))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer() if kind == "bert" else pre_tokenizers.Whitespace()
    if kind == "bert":
        inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    pieces = [(end, vocabulary[end])] + ([(start, vocabulary[start])] if start else [])
    inner.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}" if start else f"$A {end}", special_tokens=pieces
    )
    folder.mkdir(parents=True, exist_ok=True)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad, eos_token=end, unk_token=unknown, padding_side="right"
    )
    fast.save_pretrained(folder)
    return fast


if __name__ == "__main__":
    main()
