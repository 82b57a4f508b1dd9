"""MVFA (Huang et al., Adapting Visual-Language Models for Generalizable Anomaly Detection, CVPR 2024)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F

from madclip.head.memory import far_from_memory
from madclip.head.prompts import fixed_text_features
from madclip.head.scoring import abnormal_share, patch_logits, text_scores
from madclip.methods.base import Baseline
from madclip.methods.learning import Adam, Learning, optimise
from madclip.methods.text import linear_weights, map_loss, shot_masks
from madclip.training.encode import backbone_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.training.shots import Shot

EPOCHS = 20
KEPT = 0.8
"""Share of the stream that stays at a tap; the adapters of both tasks give the rest in equal parts."""


class Features(NamedTuple):
    """What the adapters of both tasks make of the patches, each [T, B, G, e]."""

    detection: torch.Tensor
    segmentation: torch.Tensor


class MVFA(Baseline):
    """Adapters that change the stream as it goes on through the frozen tower; texts and a memory of normal patches.

    The paper trains 50 epochs on the shots and their augmented copies; here 20, since each goes through the tower, and,
    as every method of comparison, on the shots as they are. Its loss takes the mean probability of the patches as a
    logit; here it is taken as it is.
    """

    name: ClassVar[str] = "mvfa"
    title: ClassVar[str] = "MVFA (Huang et al., CVPR 2024)"
    learns_from: ClassVar[Literal["nothing", "normal", "both"]] = "both"
    image_score: ClassVar[str] = "detection patches against texts and memory, means"

    def _learn(self, shots: Sequence[Shot], run: Learning) -> None:
        spec = self.backbone.spec
        generator = run.generator()
        # Task (detection, segmentation), tap: down to the joint space, and up again.
        self.down = linear_weights(2, len(spec.taps), spec.embed_dim, spec.width, generator=generator)
        self.up = linear_weights(2, len(spec.taps), spec.width, spec.embed_dim, generator=generator)
        self.text = fixed_text_features(self.backbone, self.objective).float().cpu()
        pixels = torch.stack([shot.pixels for shot in shots])
        labels = torch.tensor([shot.label for shot in shots])
        masks, masked = shot_masks(shots)
        grid = self.backbone.grid

        def loss_of(rows: torch.Tensor) -> torch.Tensor:
            features = self.features(pixels[rows])
            share = abnormal_share(text_scores(features.detection, self.text)).mean(-1).clamp(1e-6, 1 - 1e-6)
            image = F.binary_cross_entropy(share, labels[rows].float().expand_as(share), reduction="none").mean(1)
            maps = patch_logits(text_scores(features.segmentation, self.text), grid)
            return image.sum() + map_loss(maps, masks[rows], masked[rows])

        optimise([self.down, self.up], len(shots), loss_of, Adam(EPOCHS), run)
        self.down.requires_grad_(False)
        self.up.requires_grad_(False)
        self.has_masks = bool(masked.any())
        with torch.inference_mode():
            normal = [self.features(image[None]) for image in pixels[labels == 0]]
        self.memory = Features(*(torch.cat(task, 1).flatten(1, 2) for task in zip(*normal, strict=True)))

    def features(self, pixels: torch.Tensor) -> Features:
        """Adapter features of images [B, 3, S, S] in 0..1; each tap's feed-back changes the taps after it."""
        found: list[torch.Tensor] = []

        def after_tap(tap: int, stream: torch.Tensor) -> torch.Tensor:
            down, up = (weights[:, tap].to(stream) for weights in (self.down, self.up))
            middle = F.leaky_relu(stream @ down[:, None].mT)  # [2, B, prefix + G, e]
            found.append(middle[:, :, self.backbone.spec.prefix_tokens :].float().cpu())
            return feed_back(stream, *F.leaky_relu(middle @ up[:, None].mT))

        self.backbone.encode_image(backbone_pixels(self.backbone, self.recipe.view, pixels), after_tap=after_tap)
        return Features(*torch.stack(found, 1))

    @torch.inference_mode()
    def score(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Baseline.score`; the map is that of the detection adapters where there were no masks."""
        features = self.features(pixels)
        told, unusual = zip(*(self._branches(*pair) for pair in zip(features, self.memory, strict=True)), strict=True)
        scores = (told[0].mean(1) + unusual[0].mean(1)) / 2
        task = int(self.has_masks)
        return scores.clamp(0, 1), self.upsample((told[task] + unusual[task]) / 2).clamp(0, 1)

    def _branches(self, features: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Patches [T, B, G, e] against the texts, and against the memory [T, M, e]: [B, G] each, means over taps."""
        told = abnormal_share(text_scores(features, self.text)).mean(0)
        unusual = torch.stack([far_from_memory(f, m) for f, m in zip(features, memory, strict=True)]).mean(0)
        return told, unusual


def feed_back(stream: torch.Tensor, detection: torch.Tensor, segmentation: torch.Tensor) -> torch.Tensor:
    """What goes on from a tap: 0.8 of the stream, 0.1 of what the adapters of each task say."""
    share = (1 - KEPT) / 2
    return KEPT * stream + share * detection + share * segmentation
