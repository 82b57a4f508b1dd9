"""Tokens of the frozen backbone, computed once for every image variant, and the training set that they make."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

import torch

from madclip.data.augment import make_variants, move_masks
from madclip.memory import kept_memory
from madclip.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.backbones.spec import Backbone, Tower
    from madclip.head.scorer import Scorer
    from madclip.recipe import Recipe, View
    from madclip.training.cache import TokenCache
    from madclip.training.shots import Shot

FORMAT = 3
"""Version of the cache's keys: tokens of another version are not found."""
MEMORY_BUDGET = 2 * 2**30
"""Bytes of tokens that are copied into memory; what is beyond stays mapped from the disk."""


@dataclass(frozen=True)
class TrainingSet:
    """Everything that the loop reads; V variants of each of N shots.

    Attributes:
        tokens: N tensors [V, T, G, d] in the backbone's dtype, memory-mapped where they come from the disk.
        masks: [N, V, S, S] bool; false for normal images and for abnormal ones without a mask.
        labels: [N].
        masked: [N], whether a shot takes part in Dice and Focal.
        identity: Index of the variant that is the image as it is.
    """

    tokens: list[torch.Tensor]
    masks: torch.Tensor
    labels: torch.Tensor
    masked: torch.Tensor
    identity: int

    @property
    def plain(self) -> list[torch.Tensor]:
        """Tokens of the images as they are, N tensors [T, G, d]."""
        return [tokens[self.identity] for tokens in self.tokens]

    def subset(self, members: Sequence[int]) -> TrainingSet:
        """The training set of some of its shots."""
        chosen = list(members)
        return replace(
            self,
            tokens=[self.tokens[i] for i in chosen],
            masks=self.masks[chosen],
            labels=self.labels[chosen],
            masked=self.masked[chosen],
        )

    def without(self, members: Sequence[int]) -> TrainingSet:
        """The training set of all shots but these."""
        left_out = set(members)
        return self.subset([i for i in range(len(self.labels)) if i not in left_out])

    def every(self, stride: int) -> TrainingSet:
        """Every stride-th variant of each shot, the image as it is among them."""
        chosen = list(range(self.identity % stride, self.masks.shape[1], stride))
        return replace(
            self,
            tokens=[tokens[chosen[0] :: stride] for tokens in self.tokens],
            masks=self.masks[:, chosen],
            identity=chosen.index(self.identity),
        )


def encode_patches(backbone: Backbone, view: View, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Patch tokens at the taps, prefix tokens dropped: pixels [B, 3, S, S] in 0..1 -> T tensors [B, G, d]."""
    return backbone.combine([tower.patch_tokens(pixels, normalise=view.normalise) for tower in backbone.towers])


def encode_for(
    head: Scorer, backbone: Backbone, view: View, pixels: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Tokens as a head takes them, and the patch tokens among them: pixels [B, 3, S, S] -> each T tensors [B, G, d]."""
    if not head.keeps_prefix:
        patches = encode_patches(backbone, view, pixels)
        return patches, patches
    streams = backbone.encode_image(backbone_pixels(backbone, view, pixels))
    return streams, [stream[:, backbone.spec.prefix_tokens :] for stream in streams]


def backbone_pixels(backbone: Backbone, view: View, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [B, 3, S, S] in 0..1 as `encode_image` reads them: on its device, in its type, normalised."""
    return backbone.prepare(pixels, normalise=view.normalise)


@kept_memory()
def prepare(
    shots: Sequence[Shot],
    backbone: Backbone,
    recipe: Recipe,
    *,
    seed: int = 0,
    cache: TokenCache | None = None,
    progress: Progress = silent,
) -> TrainingSet:
    """Variants of all shots, their tokens and their masks.

    Args:
        shots: Images as the backbone will see them.
        backbone: Frozen towers.
        recipe: Its variants, jitter, normalisation.
        seed: Determines class-wise jitter; jitter per image depends on the image alone, so that tokens can be reused.
        cache: Where tokens are kept; None computes them anew and keeps them in memory.
        progress: Told of every image that is encoded.
    """
    tokens, masks = [], []
    total = 0
    for done, shot in enumerate(shots):
        jitter_seed = 2 * seed + shot.label if recipe.jitter == "per_class" else int(shot.digest[:15], 16)
        streams = [_tokens(tower, shot, recipe, jitter_seed, cache) for tower in backbone.towers]
        stream = streams[0]
        if len(streams) > 1:
            stream = torch.stack(backbone.combine([tokens.unbind(1) for tokens in streams]), 1)
        total += stream.numel() * stream.element_size()
        # What stays memory-mapped is paged by the kernel.
        tokens.append(stream.clone() if total <= MEMORY_BUDGET else stream)
        masks.append(_masks(shot, recipe))
        progress("encode", done + 1, len(shots))
    labels = torch.tensor([shot.label for shot in shots])
    any_mask = any(shot.mask is not None and shot.label for shot in shots)
    masked = torch.tensor([any_mask and (shot.label == 0 or shot.mask is not None) for shot in shots])
    return TrainingSet(tokens, torch.stack(masks), labels, masked, recipe.variants.index("identity"))


def _tokens(tower: Tower, shot: Shot, recipe: Recipe, jitter_seed: int, cache: TokenCache | None) -> torch.Tensor:
    """Tokens [V, T, G, d] of a tower, kept by tower: another partner costs only that partner."""
    key = _key(shot, jitter_seed, tower, recipe)
    stream = cache.load(key) if cache else None
    if stream is None:
        stream = encode_variants(tower, recipe.view, _pixels(shot, recipe, jitter_seed))
        if cache:
            cache.store(key, stream)
    return stream


def _pixels(shot: Shot, recipe: Recipe, jitter_seed: int) -> torch.Tensor:
    """Variants of a shot, [V, 3, S, S]."""
    pixels, _ = make_variants(
        shot.pixels[None],
        None,
        recipe.variants,
        labels=torch.tensor([shot.label]),
        jitter=recipe.jitter,
        generator=torch.Generator().manual_seed(jitter_seed),
    )
    return pixels[:, 0]


def _masks(shot: Shot, recipe: Recipe) -> torch.Tensor:
    """Masks of those variants, [V, S, S] bool; false without a mask."""
    if shot.mask is None:
        return torch.zeros(len(recipe.variants), *shot.pixels.shape[1:], dtype=torch.bool)
    return move_masks(shot.mask.float()[None, None], recipe.variants)[:, 0, 0] > 0.5


def encode_variants(tower: Tower, view: View, pixels: torch.Tensor, batch: int = 16) -> torch.Tensor:
    """A tower's tokens [V, T, G, d] of the variants of an image, on the CPU: pixels [V, 3, S, S] in 0..1."""
    with torch.inference_mode():
        parts = (tower.patch_tokens(chunk, normalise=view.normalise) for chunk in pixels.split(batch))
        return torch.cat([torch.stack(part, 1).cpu() for part in parts]).clone()


def _key(shot: Shot, jitter_seed: int, tower: Tower, recipe: Recipe) -> str:
    """Everything that the tokens of a shot depend on."""
    facts = {
        "format": FORMAT,
        "image": shot.digest,
        "corner": shot.corner,
        "size": tower.image_size,
        "grid": tower.grid,
        "view": asdict(recipe.view),
        "variants": recipe.variants,
        "jitter": [recipe.jitter, jitter_seed] if "jitter" in recipe.variants else None,
        "backbone": tower.fingerprint,
        "taps": tower.spec.taps,
        "dtype": str(tower.dtype),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
