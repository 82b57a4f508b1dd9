"""CLIPs of random weights: for trying things out without any download, and for measuring time. They know nothing."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import torch

from madclip.backbones.checkpoints import OPENAI_MEAN, OPENAI_STD, Checkpoint
from madclip.backbones.clip import ClipModel
from madclip.backbones.configuration import ModelConfig, read_config
from madclip.backbones.modules import weight_shapes
from madclip.files import write_whole


def clip_config(
    width: int, depth: int, patch: int, image: int, embed: int, text_width: int, text_depth: int
) -> ModelConfig:
    """A CLIP of OpenAI's proportions: heads of 64, MLPs four times as wide, 77 positions of its vocabulary.

    Args:
        width: Width of the vision tower.
        depth: Blocks of the vision tower.
        patch: Side of a patch, pixels.
        image: Side of the images, pixels.
        embed: Size of the shared space.
        text_width: Width of the text tower.
        text_depth: Blocks of the text tower.
    """
    vision, text = (
        {"hidden_size": size, "intermediate_size": 4 * size, "num_hidden_layers": blocks, "hidden_act": "gelu"}
        | {"num_attention_heads": size // 64}
        for size, blocks in ((width, depth), (text_width, text_depth))
    )
    vision |= {"patch_size": patch, "image_size": image}
    return read_config("clip", {"projection_dim": embed, "vision_config": vision, "text_config": text})


def stand_in() -> Checkpoint:
    """The backbone `stand-in`: a small CLIP of random weights, the same everywhere."""
    config = clip_config(192, 12, 16, 240, 128, 128, 3)
    return Checkpoint(Path("stand-in"), config, random_state(config))


def write_random(folder: Path, config: ModelConfig) -> Path:
    """A folder in Hugging Face's format with random weights, the same everywhere."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(random_state(config), folder / "model.safetensors", metadata={"format": "pt"})
    write_whole(folder / "config.json", json.dumps(config.to_json()))
    write_whole(folder / "preprocessor_config.json", json.dumps({"image_mean": OPENAI_MEAN, "image_std": OPENAI_STD}))
    return folder


def random_state(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Random weights by the names of transformers' CLIPModel."""
    with torch.device("meta"):
        shapes = weight_shapes(ClipModel(config))
    return {name: _random(name, tuple(shape)) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Initial values by a tensor's name alone, so that they depend on no version of any library."""
    if name == "logit_scale":
        return torch.tensor(2.6592)
    if "norm" in name or name.endswith(".bias"):
        return torch.full(shape, float(name.endswith(".weight")))
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    spread = 0.1 if "embedding" in name and "patch" not in name else (torch.Size(shape[1:]).numel()) ** -0.5
    return torch.randn(shape, generator=generator) * spread
