"""Tokens of the frozen backbone: computed once for every image variant, kept on disk, read through memory maps."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from madclip.data.augment import make_variants, move_masks
from madclip.errors import CheckpointError, DataError
from madclip.memory import kept_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from madclip.backbones.spec import Backbone
    from madclip.recipe import Recipe, View
    from madclip.training.shots import Shot

FORMAT = 1
DEFAULT_LIMIT = 20 * 2**30
MEMORY_BUDGET = 2 * 2**30
_LIMIT_FILE = "limit.json"


@dataclass(frozen=True)
class TrainingSet:
    """Everything that the loop reads; V variants of each of N shots.

    Attributes:
        tokens: N tensors [V, T, G, d] in the backbone's dtype, memory-mapped where they come from the disk.
        masks: [N, V, S, S] bool; false for normal images and for abnormal ones without a mask.
        labels: [N].
        masked: [N], whether a shot takes part in Dice and Focal.
    """

    tokens: list[torch.Tensor]
    masks: torch.Tensor
    labels: torch.Tensor
    masked: torch.Tensor

    def every(self, stride: int) -> TrainingSet:
        """Every stride-th variant of each shot, the first among them."""
        return replace(self, tokens=[tokens[::stride] for tokens in self.tokens], masks=self.masks[:, ::stride])


def default_folder() -> Path:
    """Where tokens are kept: MADCLIP_CACHE, or `tokens` in the user's cache folder."""
    return Path(os.environ.get("MADCLIP_CACHE") or Path(platformdirs.user_cache_dir("madclip")) / "tokens")


class TokenCache:
    """Tensors by key in a folder that only its owner may read, least recently used first to go.

    Tokens derive from patients' images; treat the folder as you treat the images.

    Args:
        folder: Where; None for `default_folder()`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    @property
    def limit(self) -> int:
        """Bytes that the cache may take."""
        path = self.folder / _LIMIT_FILE
        if not path.exists():
            return DEFAULT_LIMIT
        try:
            return int(json.loads(path.read_text())["bytes"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: not a limit that madclip wrote; delete the file") from error

    @limit.setter
    def limit(self, size: int) -> None:
        self._make_folder()
        partial = self.folder / f"{_LIMIT_FILE}.{os.getpid()}"
        partial.write_text(json.dumps({"bytes": size}))
        partial.replace(self.folder / _LIMIT_FILE)
        self._evict(size)

    def entries(self) -> list[Path]:
        """Files of the cache, least recently used first."""
        return sorted(self.folder.glob("*.safetensors"), key=lambda path: (path.stat().st_mtime_ns, path.name))

    def size(self) -> int:
        """Bytes that it takes."""
        return sum(path.stat().st_size for path in self.entries())

    def clear(self) -> int:
        """Delete all tokens; returns the bytes set free."""
        freed = self.size()
        for path in [*self.entries(), *self.folder.glob("*.partial")]:
            path.unlink(missing_ok=True)
        return freed

    def load(self, key: str) -> torch.Tensor | None:
        """The tensor stored under a key, memory-mapped, or None. A file that cannot be read counts as absent."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor("tokens")
        except (SafetensorError, OSError):
            path.unlink(missing_ok=True)  # cut off by a full disk or a crash: it is computed anew
            return None
        os.utime(path)
        return tensor

    def store(self, key: str, tensor: torch.Tensor) -> None:
        """Keep a tensor: written under a temporary name, then renamed; old ones go where the limit asks for it."""
        size = tensor.numel() * tensor.element_size()
        limit = self.limit
        if size > limit:
            return
        self._make_folder()
        self._evict(limit - size)
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".partial")
        os.close(handle)
        try:
            save_file({"tokens": tensor.contiguous()}, name, metadata={"format": str(FORMAT)})
            Path(name).replace(self._path(key))
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{self.folder}: cannot keep tokens there ({error}); free some space, set MADCLIP_CACHE to "
                "another folder, or lower the limit with `madclip cache --limit`"
            ) from error
        finally:
            Path(name).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)

    def _evict(self, limit: int) -> None:
        files = [(path, path.stat().st_size) for path in self.entries()]
        total = sum(size for _, size in files)
        for path, size in files:
            if total <= limit:
                return
            path.unlink(missing_ok=True)
            total -= size


def encode_patches(backbone: Backbone, view: View, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Patch tokens at the taps, prefix tokens dropped: pixels [B, 3, S, S] in 0..1 -> T tensors [B, G, d]."""
    streams = backbone.encode_image(backbone_pixels(backbone, view, pixels))
    return [stream[:, backbone.spec.prefix_tokens :] for stream in streams]


def backbone_pixels(backbone: Backbone, view: View, pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [B, 3, S, S] in 0..1 as the vision tower reads them: on its device, in its type, normalised."""
    pixels = pixels.to(backbone.device)
    if view.normalise:
        mean, std = (
            torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (backbone.spec.mean, backbone.spec.std)
        )
        pixels = (pixels - mean) / std
    return pixels.to(backbone.dtype)


@kept_memory()
def prepare(
    shots: Sequence[Shot],
    backbone: Backbone,
    recipe: Recipe,
    *,
    seed: int = 0,
    cache: TokenCache | None = None,
    on_image: Callable[[int, int], None] | None = None,
) -> TrainingSet:
    """Variants of all shots, their tokens and their masks.

    Args:
        shots: Images as the backbone will see them.
        backbone: Frozen towers.
        recipe: Its variants, jitter, normalisation.
        seed: Of the class-wise jitter; jitter per image depends on the image alone, so that tokens can be reused.
        cache: Where tokens are kept; None computes them anew and keeps them in memory.
        on_image: Called with (images done, images).
    """
    tokens, masks = [], []
    total = 0
    for done, shot in enumerate(shots):
        jitter_seed = 2 * seed + shot.label if recipe.jitter == "per_class" else int(shot.digest[:15], 16)
        key = _key(shot.digest, jitter_seed, backbone, recipe)
        stream = cache.load(key) if cache else None
        if stream is None:
            stream = encode_variants(backbone, recipe.view, _pixels(shot, recipe, jitter_seed))
            if cache:
                cache.store(key, stream)
        total += stream.numel() * stream.element_size()
        # Small sets are copied into memory; past the budget they stay memory-mapped and the kernel pages them.
        tokens.append(stream.clone() if total <= MEMORY_BUDGET else stream)
        masks.append(_masks(shot, recipe))
        if on_image:
            on_image(done + 1, len(shots))
    labels = torch.tensor([shot.label for shot in shots])
    any_mask = any(shot.mask is not None and shot.label for shot in shots)
    masked = torch.tensor([any_mask and (shot.label == 0 or shot.mask is not None) for shot in shots])
    return TrainingSet(tokens, torch.stack(masks), labels, masked)


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


def encode_variants(backbone: Backbone, view: View, pixels: torch.Tensor, batch: int = 16) -> torch.Tensor:
    """Tokens [V, T, G, d] of the variants of an image, on the CPU: pixels [V, 3, S, S] in 0..1."""
    with torch.inference_mode():
        parts = [torch.stack(encode_patches(backbone, view, chunk), 1).cpu() for chunk in pixels.split(batch)]
        return torch.cat(parts).clone()


def _key(digest: str, jitter_seed: int, backbone: Backbone, recipe: Recipe) -> str:
    """Everything that the tokens of a shot depend on."""
    facts = {
        "format": FORMAT,
        "image": digest,
        "size": backbone.image_size,
        "aspect": recipe.aspect,
        "normalise": recipe.normalise,
        "variants": recipe.variants,
        "jitter": [recipe.jitter, jitter_seed] if "jitter" in recipe.variants else None,
        "backbone": backbone.fingerprint,
        "taps": backbone.spec.taps,
        "dtype": str(backbone.dtype),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
