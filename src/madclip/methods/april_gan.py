"""APRIL-GAN (Chen et al., zero-/few-shot tracks of the VAND challenge, CVPR 2023): linear maps, texts, a memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F

from madclip.head.memory import far_from_memory
from madclip.head.prompts import fixed_text_features
from madclip.head.scoring import abnormal_share, map_logits, patch_logits, text_scores
from madclip.methods.base import Baseline
from madclip.methods.learning import Adam, Learning, optimise
from madclip.methods.text import linear_weights, map_loss, shot_masks
from madclip.training.encode import backbone_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.training.shots import Shot

EPOCHS = 40


class AprilGAN(Baseline):
    """Linear layers bring each tap's patches to the texts; a memory of normal patches says how unusual they are.

    The authors train the layers on another data set with masks, for 3 epochs; here they learn from the shots. Where no
    shot has a mask, the image's label is compared with the mean over its patches: an addition, for the loss of the
    paper needs masks.
    """

    name: ClassVar[str] = "april-gan"
    title: ClassVar[str] = "APRIL-GAN (Chen et al., VAND at CVPR 2023)"
    learns_from: ClassVar[Literal["nothing", "normal", "both"]] = "both"
    image_score: ClassVar[str] = "text score of the image plus largest distance to the memory"

    def _learn(self, shots: Sequence[Shot], run: Learning) -> None:
        tokens = self.shot_tokens(shots, run)
        labels = torch.tensor([shot.label for shot in shots])
        masks, masked = shot_masks(shots)
        self.text = fixed_text_features(self.backbone, self.objective).float().cpu()
        generator = run.generator()
        self.weights = linear_weights(
            tokens.shape[1], self.backbone.spec.embed_dim, tokens.shape[3], generator=generator
        )
        grid = self.backbone.grid

        def loss_of(rows: torch.Tensor) -> torch.Tensor:
            scores = text_scores(project(tokens[rows], self.weights), self.text)
            if bool(masked.any()):
                return map_loss(patch_logits(scores, grid), masks[rows], masked[rows])
            share = abnormal_share(scores).mean(-1).clamp(1e-6, 1 - 1e-6)
            return F.binary_cross_entropy(share, labels[rows].float().expand_as(share))

        optimise([self.weights], len(shots), loss_of, Adam(EPOCHS), run)
        self.weights.requires_grad_(False)
        self.memory = tokens[labels == 0].transpose(0, 1).flatten(1, 2)  # [T, M, d]

    @torch.inference_mode()
    def score(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Baseline.score`."""
        streams = self.backbone.encode_image(backbone_pixels(self.backbone, self.recipe.view, pixels))
        image = self.backbone.embed_image(streams[-1]).float().cpu()
        tokens = torch.stack(streams, 1)[:, :, self.backbone.spec.prefix_tokens :].float().cpu()
        scores = text_scores(project(tokens, self.weights), self.text)
        told = map_logits(scores, self.backbone.grid, self.backbone.image_size).sigmoid().mean(0)
        unusual = self.upsample(memory_map(tokens, self.memory))
        whole = abnormal_share(text_scores(image, self.text))
        return ((whole + unusual.amax((1, 2))) / 2).clamp(0, 1), ((told + unusual) / 2).clamp(0, 1)


def project(tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Patches of each tap through its linear layer: [B, T, G, d], [T, e, d] -> [T, B, G, e]."""
    return torch.einsum("btgd,ted->tbge", tokens, weights)


def memory_map(tokens: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Distance to the nearest normal patch of the tap, mean over taps: [B, T, G, d], [T, M, d] -> [B, G]."""
    each = [far_from_memory(tokens[:, tap], memory[tap]) for tap in range(tokens.shape[1])]
    return torch.stack(each).mean(0)
