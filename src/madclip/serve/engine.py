"""An engine that computes as the detector does, from tokens that it has kept, and remembers what each image is like."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import asdict
from hashlib import sha256
from typing import TYPE_CHECKING

import torch

from madclip.head.scorer import pool
from madclip.training.encode import backbone_pixels, encode_patches

if TYPE_CHECKING:
    from collections.abc import Callable

    from madclip.backbones.spec import Backbone
    from madclip.recipe import View
    from madclip.training.cache import TokenCache


def space_of(backbone: Backbone, view: View) -> str:
    """What pooled tokens of two images must share to be compared: the backbone, and how images come before it."""
    facts = [backbone.fingerprint, str(backbone.dtype), asdict(view)]
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


class RememberingEngine:
    """Scores [B], maps [B, S, S] and pooled tokens [B, features] of pixels [B, 3, S, S], as `MadCLIP.engine` does.

    Args:
        backbone: Frozen towers.
        view: How images are brought before them.
        cache: Where tokens are kept.
        read: Scores and maps of tokens [B, T, G, d]; None gives zeros, where only tokens are wanted.
        keeps_prefix: Whether `read` takes tokens [B, T, prefix + G, d], as `Scorer.keeps_prefix` says.

    Attributes:
        found: Key in the cache and pooled tokens of each image whose scores are finite, in order; whoever reads them
            takes them away.
    """

    def __init__(
        self,
        backbone: Backbone,
        view: View,
        cache: TokenCache,
        read: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
        *,
        keeps_prefix: bool = False,
    ) -> None:
        self._backbone, self._view, self._cache, self._read = backbone, view, cache, read
        self._prefix = backbone.spec.prefix_tokens if keeps_prefix else 0
        self._space = f"{space_of(backbone, view)}{' with prefix' * keeps_prefix}".encode()
        self.found: deque[tuple[str, torch.Tensor]] = deque()

    def __call__(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute a batch."""
        keys = [sha256(self._space + image.numpy().tobytes()).hexdigest() for image in pixels]
        known = [self._cache.load(key) for key in keys]
        missing = [number for number, tokens in enumerate(known) if tokens is None]
        if missing:
            made = torch.stack(self._encode(pixels[missing]), 1).cpu()
            for number, tokens in zip(missing, made, strict=True):
                self._cache.store(keys[number], tokens.clone())
                known[number] = tokens
        tokens = torch.stack([one for one in known if one is not None])
        pooled = pool(tokens[:, :, self._prefix :])
        if self._read is None:
            scores, maps = torch.zeros(len(pixels)), torch.zeros(len(pixels), *pixels.shape[-2:])
        else:
            scores, maps = self._read(tokens.to(self._backbone.device))
        finite = torch.isfinite(scores.cpu()) & torch.isfinite(maps.cpu()).flatten(1).all(1)
        self.found += [(keys[i], pooled[i]) for i in range(len(keys)) if finite[i]]
        return scores.cpu(), maps.cpu(), pooled

    def _encode(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        if self._prefix:
            return self._backbone.encode_image(backbone_pixels(self._backbone, self._view, pixels))
        return encode_patches(self._backbone, self._view, pixels)
