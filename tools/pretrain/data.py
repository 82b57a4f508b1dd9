"""Phantoms as they are trained on: drawn ahead by workers, kept in a pool, read several times in fresh views.

Everything is a pure function of (seed, number): chunk c of the stream, the pool's content at step s and the views of
step s. So a run that is killed and resumed reads what the undisturbed run reads, however fast the workers are.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import multiprocessing.connection
import os
import signal
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tools.pretrain.model import TowerConfig, patchify

from madclip.phantoms import MODALITIES, captions, generate

GROUP = 8
"""Images of one modality in a chunk."""

UPRIGHT = frozenset(MODALITIES) - {"histology", "generic"}
"""Modalities whose top is always at the top: no vertical flip."""


@dataclass(frozen=True)
class Stream:
    """What is drawn, and how often it is read.

    Attributes:
        seed: Of everything random.
        modalities: Drawn in equal shares.
        size: Pixels of a side.
        patch: Pixels of a patch's side.
        batch: Views per step, in equal shares of the modalities.
        reuse: Times that an image is read on average.
        pool: Chunks that are kept.
        fill: Chunks before the first step.
        hardest: Difficulty is drawn from 0 to this.
    """

    seed: int
    modalities: tuple[str, ...] = MODALITIES
    size: int = 240
    patch: int = 12
    batch: int = 64
    reuse: int = 4
    pool: int = 32
    fill: int = 4
    hardest: float = 0.9

    def available(self, step: int) -> int:
        """Chunks that have been read before this step's batch is drawn."""
        chunk = GROUP * len(self.modalities)
        return self.fill + step * self.share * len(self.modalities) // (self.reuse * chunk)

    @property
    def share(self) -> int:
        """Views of each modality in a batch."""
        return max(1, self.batch // len(self.modalities))


@dataclass(frozen=True)
class Chunk:
    """GROUP images of each modality, modality by modality.

    Attributes:
        pixels: [n, 3, S, S] uint8.
        areas: [n, G] uint8, the share of each patch that the mask covers, in 255ths (never rounded down to none).
        attributes: As the phantoms give them.
    """

    pixels: np.ndarray
    areas: np.ndarray
    attributes: list[dict[str, Any]]


@dataclass(frozen=True)
class Batch:
    """One step's views.

    Attributes:
        patches: [B, K, 3 p p] float32, normalised.
        kept: [B, K] places of the patches in the grid.
        areas: [B, K] float32, share of the patch that is lesion.
        labels: [B], 0 normal, 1 abnormal.
        modality: [B], index into the stream's modalities.
        captions: One for each image.
        pixels: [B, 3, S, S] uint8, the whole images before their tone curves.
        tones: [B, 3, 256] float32, the tone curves.
    """

    patches: torch.Tensor
    kept: torch.Tensor
    areas: torch.Tensor
    labels: torch.Tensor
    modality: torch.Tensor
    captions: list[str]
    pixels: torch.Tensor
    tones: torch.Tensor


def derived_seed(*parts: object) -> int:
    """63 bits that differ for every purpose, run and number."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "little") >> 1


def draw_chunk(stream: Stream, number: int) -> Chunk:
    """Chunk `number` of the stream. Its seeds are 2**62 and above: no user's phantoms are met by chance."""
    pixels, areas, attributes = [], [], []
    for modality in stream.modalities:
        seed = derived_seed("phantoms", stream.seed, number, modality) | 1 << 62
        difficulty = stream.hardest * (seed % 1000) / 999
        drawn = generate(modality, GROUP, seed, size=stream.size, difficulty=difficulty)
        share = F.avg_pool2d(drawn.masks[:, None].float(), stream.patch).flatten(1)
        pixels.append(drawn.pixels.numpy())
        areas.append(share.mul(255).ceil().to(torch.uint8).numpy())
        attributes += drawn.attributes
    return Chunk(np.concatenate(pixels), np.concatenate(areas), attributes)


class Pool:
    """The last chunks of the stream, drawn by worker processes that stay one chunk ahead."""

    def __init__(self, stream: Stream, *, workers: int = 1, step: int = 0) -> None:
        self.stream = stream
        self.chunks: list[Chunk] = []
        self.first = max(0, stream.available(step) - stream.pool)
        self._next = self.first
        context = multiprocessing.get_context("spawn")
        self._readers: list[multiprocessing.connection.Connection] = []
        self._workers = []
        for worker in range(workers):
            reader, writer = context.Pipe(duplex=False)
            task = (stream, self.first + worker, workers, writer)
            process = context.Process(target=_work, args=task, daemon=True)
            process.start()
            writer.close()
            self._readers.append(reader)
            self._workers.append(process)

    def close(self) -> None:
        """Ends the workers."""
        for process in self._workers:
            process.terminate()
            process.join()

    def batch(self, step: int, config: TowerConfig, keep: int) -> Batch:
        """The views of a step: flips, tone curves and the patches that are kept."""
        while self._next < self.stream.available(step):
            reader = self._readers[(self._next - self.first) % len(self._readers)]
            self.chunks.append(reader.recv())
            self.chunks = self.chunks[-self.stream.pool :]
            self._next += 1
        return view(self.stream, self.chunks, step, config, keep)


def _work(stream: Stream, first: int, stride: int, writer: multiprocessing.connection.Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.nice(1)
    number = first
    while True:
        chunk = draw_chunk(stream, number)
        try:
            writer.send(chunk)
        except (BrokenPipeError, ConnectionResetError):
            return
        number += stride


def view(stream: Stream, chunks: list[Chunk], step: int, config: TowerConfig, keep: int) -> Batch:
    """Images of each modality from the pool, as this step sees them."""
    random = torch.Generator().manual_seed(derived_seed("views", stream.seed, step))
    kinds = len(stream.modalities)
    places = [torch.randperm(len(chunks) * GROUP, generator=random)[: stream.share].tolist() for _ in range(kinds)]
    chosen = [(chunks[p // GROUP], k * GROUP + p % GROUP) for k, row in enumerate(places) for p in row]
    pixels = torch.from_numpy(np.stack([chunk.pixels[i] for chunk, i in chosen]))
    areas = torch.from_numpy(np.stack([chunk.areas[i] for chunk, i in chosen])).view(len(chosen), config.grid, -1)
    attributes = [dict(chunk.attributes[i]) for chunk, i in chosen]
    mirrored, turned = (torch.rand(2, len(chosen), generator=random) < 0.5).tolist()
    for i, of in enumerate(attributes):
        if mirrored[i]:
            pixels[i], areas[i] = pixels[i].flip(-1), areas[i].flip(-1)
            _swap(of, "side", "left", "right")
        if turned[i] and of["modality"] not in UPRIGHT:
            pixels[i], areas[i] = pixels[i].flip(-2), areas[i].flip(-2)
            _swap(of, "height", "upper", "lower")
    share = areas.flatten(1).float() / 255
    kept = choose_patches(share, keep, random)
    raw = patchify(pixels, config.patch_size)
    raw = raw.gather(1, kept[..., None].expand(-1, -1, raw.shape[-1]))
    tones = _tones(len(chosen), random)
    shown = toned(raw.unflatten(-1, (3, -1)), tones[:, None]).flatten(2)
    return Batch(
        patches=(shown - config.mean) / config.std,
        kept=kept,
        areas=share.gather(1, kept),
        labels=torch.tensor([int(of["label"]) for of in attributes]),
        modality=torch.arange(kinds).repeat_interleave(stream.share),
        captions=[sentences[0] for sentences in captions(attributes, random, 1)],
        pixels=pixels,
        tones=tones,
    )


def choose_patches(share: torch.Tensor, keep: int, random: torch.Generator) -> torch.Tensor:
    """Random patches [B, keep], with more of those on a lesion.

    Small lesions would mostly be dropped. So that a crowd of kept patches does not give the lesion away, those of
    another image's lesion are preferred in the same measure.

    Args:
        share: [B, G], share of each patch that is lesion.
        keep: Patches per image; all of them, in order, where it is the whole grid.
        random: Draws the order.
    """
    count, grid = share.shape
    if keep >= grid:
        return torch.arange(grid).expand(count, -1).contiguous()
    preferred = (share > 0) | (share.roll(int(torch.randint(1, count, (), generator=random)), 0) > 0)
    draw = torch.rand(count, grid, generator=random)
    return (draw + 0.5 * preferred).topk(keep, dim=1).indices


def _swap(of: dict[str, Any], key: str, one: str, other: str) -> None:
    of[key] = {one: other, other: one}.get(of.get(key, ""), of.get(key))


def _tones(count: int, random: torch.Generator) -> torch.Tensor:
    """A tone curve for each image, a slight one for each channel of some: [B, 3, 256], 0..1."""
    unit = torch.linspace(0, 1, 256)
    gamma = torch.exp(0.3 * torch.randn(count, 1, 1, generator=random))
    contrast = torch.exp(0.15 * torch.randn(count, 1, 1, generator=random))
    lift = 0.06 * torch.randn(count, 1, 1, generator=random)
    tinted = torch.rand(count, 1, 1, generator=random) < 0.25
    gain = torch.exp(0.1 * torch.randn(count, 3, 1, generator=random) * tinted)
    return ((unit**gamma - 0.5) * contrast * gain + 0.5 + lift).clamp(0, 1)


def toned(pixels: torch.Tensor, tones: torch.Tensor) -> torch.Tensor:
    """Pixels [..., 3, q] uint8 as the tone curves [..., 3, 256] show them: float32 0..1."""
    return tones.expand(*pixels.shape[:-1], -1).gather(-1, pixels.long())
