"""A training step as the released code computes it against ours, in one run: python benchmarks/naive.py.

The naive step runs the vision tower inside the graph and differentiates it, materialises its attention weights, and
passes all 77 text positions; ours reads cached tokens. ViT-L/14's shape, random weights, batch 16 at 240 pixels: the
naive step takes 16 to 21 GB.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from madclip.backbones import load_backbone
from madclip.benchmark.speed import RANDOM, make_random, matmul_gflops, repeat
from madclip.head.head import Head
from madclip.recipe import Recipe
from madclip.training.fit import training_step
from madclip.training.tokens import TrainingSet, encode_patches

if TYPE_CHECKING:
    from madclip.backbones.spec import Backbone


def naive_text(head: Head, backbone: Backbone) -> torch.Tensor:
    """Text features [e, 2] from all positions of the tower."""
    embeddings = head.prompts.prompt_embeddings()
    padded = F.pad(embeddings, (0, 0, 0, backbone.spec.text_length - embeddings.shape[1]))
    encoded = backbone.encode_embeddings(padded.to(backbone.dtype), head.prompts.end)
    return F.normalize(encoded.float().view(2, -1, encoded.shape[-1]).mean(1), dim=-1).mT


def naive_loss(
    head: Head, backbone: Backbone, pixels: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor
) -> torch.Tensor:
    """The loss of a step with the backbone in its graph."""
    tokens = encode_patches(backbone, head.recipe, pixels)
    masked = torch.ones(len(labels), dtype=torch.bool)
    return head.loss(head(tokens, naive_text(head, backbone)), labels, masks, masked).total


def materialise(backbone: Backbone) -> None:
    """Let the vision tower compute attention weights as a matrix, and require gradients, as the released code does."""
    for block in backbone.vision_blocks:
        block.self_attn.config._attn_implementation = "eager"  # noqa: SLF001
    for parameter in backbone.vision_blocks.parameters():
        parameter.requires_grad_(requires_grad=True)


def main() -> None:
    """Both steps, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default=RANDOM)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--times", type=int, default=1, help="repetitions of the naive step, none warm")
    given = parser.parse_args()
    recipe, size = Recipe(), Recipe().image_size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(given.batch, 3, size, size, generator=generator)
    labels = torch.arange(given.batch) % 2
    masks = torch.zeros(given.batch, size, size, dtype=torch.bool)
    masks[1::2, size // 4 : size // 2, size // 4 : size // 2] = True
    pairs = torch.stack([torch.arange(given.batch), torch.zeros(given.batch, dtype=torch.long)], 1)
    found: dict[str, float] = {"matmul_gflops_fp32": matmul_gflops(torch.float32)}
    with tempfile.TemporaryDirectory() as folder:
        source = str(make_random(Path(folder) / RANDOM)) if given.backbone == RANDOM else given.backbone
        for dtype in ("float32", "bfloat16"):
            backbone = load_backbone(source, image_size=size, device="cpu", dtype=dtype)
            head = Head(recipe, backbone, "Brain")
            with torch.no_grad():
                tokens = torch.stack(encode_patches(backbone, recipe, pixels), 1)
            everywhere = torch.ones(given.batch, dtype=torch.bool)
            data = TrainingSet(list(tokens[:, None]), masks[:, None], labels, everywhere)
            optimiser = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate)
            seconds = repeat(lambda h=head, o=optimiser, d=data: training_step(h, o, d, pairs))
            found[f"ours_{dtype}"] = median(seconds)
        found["ours_peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
        backbone = load_backbone(source, image_size=size, device="cpu", dtype="float32")
    materialise(backbone)
    head = Head(recipe, backbone, "Brain")
    optimiser = torch.optim.AdamW(head.parameters(), lr=recipe.learning_rate)

    def step() -> None:
        optimiser.zero_grad()
        naive_loss(head, backbone, pixels, labels, masks).backward()
        optimiser.step()

    found["naive"] = median(repeat(step, times=given.times, warm=0))
    found |= {f"ratio_{dtype}": found["naive"] / found[f"ours_{dtype}"] for dtype in ("float32", "bfloat16")}
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps({"backbone": given.backbone, "threads": torch.get_num_threads(), **found}, indent=1))


if __name__ == "__main__":
    main()
