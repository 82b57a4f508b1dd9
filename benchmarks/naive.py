"""A training step as the released code computes it against ours, in one run: python benchmarks/naive.py.

The naive step runs the vision tower inside the graph and differentiates it, materialises its attention weights, and
passes all 77 text positions; ours reads cached tokens. ViT-L/14's shape, random weights, batch 16 at 240 pixels: the
naive step takes 16 to 21 GB.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from madclip.backbones import load_backbone
from madclip.benchmark.timing import SHAPES, make_random, matmul_gflops, peak_mb, repeat
from madclip.head.head import Head
from madclip.recipe import Recipe
from madclip.training.encode import TrainingSet, encode_patches
from madclip.training.fit import new_optimiser, training_step

if TYPE_CHECKING:
    from madclip.backbones.spec import Backbone


def naive_text(head: Head, backbone: Backbone) -> torch.Tensor:
    """Text features [e, 2] from all positions of the tower."""
    assert head.prompts is not None
    embeddings = head.prompts.prompt_embeddings()
    padded = F.pad(embeddings, (0, 0, 0, backbone.spec.text_length - embeddings.shape[1]))
    encoded = backbone.encode_embeddings(padded.to(backbone.dtype), head.prompts.end)
    return F.normalize(encoded.float().view(2, -1, encoded.shape[-1]).mean(1), dim=-1).mT


def naive_loss(
    head: Head, backbone: Backbone, pixels: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor
) -> torch.Tensor:
    """The loss of a step with the backbone in its graph, its attention weights as matrices, as in the released code."""
    with sdpa_kernel(SDPBackend.MATH):
        tokens = encode_patches(backbone, head.recipe.view, pixels)
    return head.loss(head(tokens, naive_text(head, backbone)), labels, masks).total


def materialise(backbone: Backbone) -> None:
    """Let the vision tower require gradients, as the released code does."""
    assert isinstance(backbone.vision_blocks, torch.nn.Module)
    for parameter in backbone.vision_blocks.parameters():
        parameter.requires_grad = True


def batch_of(size: int, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels [B, 3, S, S], labels [B] and masks [B, S, S] of a batch, half of it abnormal."""
    pixels = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    masks[1::2, size // 4 : size // 2, size // 4 : size // 2] = True
    return pixels, torch.arange(count) % 2, masks


def naive_seconds(source: str, *, batch: int = 16, times: int = 1) -> list[float]:
    """Seconds of naive steps in float32, none of them warm."""
    recipe = Recipe()
    backbone = load_backbone(source, image_size=recipe.image_size, device="cpu", dtype="float32")
    materialise(backbone)
    head = Head(recipe, backbone, "Brain")
    optimiser = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate)
    images = batch_of(recipe.image_size, batch)

    def step() -> None:
        optimiser.zero_grad()
        naive_loss(head, backbone, *images).backward()
        optimiser.step()

    return repeat(step, times=times, warm=0)


def our_seconds(source: str, dtype: str, *, batch: int = 16) -> list[float]:
    """Seconds of our steps on the tokens of the same batch."""
    recipe = Recipe()
    backbone = load_backbone(source, image_size=recipe.image_size, device="cpu", dtype=dtype)
    head = Head(recipe, backbone, "Brain")
    pixels, labels, masks = batch_of(recipe.image_size, batch)
    with torch.no_grad():
        tokens = torch.stack(encode_patches(backbone, recipe.view, pixels), 1)
    data = TrainingSet(list(tokens[:, None]), masks[:, None], labels, torch.ones(batch, dtype=torch.bool), 0)
    pairs = torch.stack([torch.arange(batch), torch.zeros(batch, dtype=torch.long)], 1)
    optimiser = new_optimiser(head, recipe)
    return repeat(lambda: training_step(head, optimiser, data, pairs))


def main() -> None:
    """Both steps, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="random-vit-l-14")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--times", type=int, default=1, help="repetitions of the naive step, none warm")
    given = parser.parse_args()
    found: dict[str, float] = {"matmul_gflops_fp32": matmul_gflops(torch.float32)}
    with tempfile.TemporaryDirectory() as folder:
        source = given.backbone
        if source in SHAPES:
            source = str(make_random(Path(folder) / source, SHAPES[source]))
        for dtype in ("float32", "bfloat16"):
            found[f"ours_{dtype}"] = median(our_seconds(source, dtype, batch=given.batch))
        found["ours_peak_mb"] = peak_mb()
        found["naive"] = median(naive_seconds(source, batch=given.batch, times=given.times))
    found |= {f"ratio_{dtype}": found["naive"] / found[f"ours_{dtype}"] for dtype in ("float32", "bfloat16")}
    found["peak_mb"] = peak_mb()
    print(json.dumps({"backbone": given.backbone, "threads": torch.get_num_threads(), **found}, indent=1))


if __name__ == "__main__":
    main()
