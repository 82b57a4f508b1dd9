"""DRA (Ding, Pang, Shen, Catching Both Gray and Black Swans, CVPR 2022) on tokens, from its published description."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F

from madclip.errors import DataError
from madclip.methods.base import Baseline
from madclip.methods.distillation import seeded, to_planes
from madclip.methods.learning import Adam, Learning, optimise
from madclip.methods.tokens import Standard
from madclip.training.encode import encode_patches

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.training.shots import Shot

COPIES = 2
"""Pseudo anomalies made of each normal image."""
EPOCHS, STEPS, RATE = 30, 20, 2e-4
SIZE = 64
"""Numbers of a token that the heads read, of each tap."""
HIDDEN = 32
TOP = 0.1
"""Share of the patches whose mean is a head's score."""
REFERENCES = 5
"""Normal images whose mean stands for what is normal."""
MARGIN, PRIOR = 5.0, 5000
"""What abnormal scores must exceed in standard deviations, and how many draws from N(0, 1) say what those are."""
NORMAL, SEEN, PSEUDO = 0, 1, 2


class DRA(Baseline):
    """Heads that know the abnormal as it was seen, as it was made, and as unlike normal images; one knows the normal.

    The authors train the network at two scales as well; here heads alone on frozen tokens. They give no maps; here
    those of the three heads that score patches.
    """

    name: ClassVar[str] = "dra"
    title: ClassVar[str] = "DRA on tokens (Ding et al., CVPR 2022)"
    learns_from: ClassVar[Literal["nothing", "normal", "both"]] = "both"
    image_score: ClassVar[str] = "seen, pseudo and residual heads minus the holistic one"

    def _learn(self, shots: Sequence[Shot], run: Learning) -> None:
        seen = sum(shot.label for shot in shots)
        if seen < 2:
            raise DataError(f"dra tells what seen anomalies share from at least 2 abnormal images: there is {seen}")
        generator = run.generator()
        normal = [shot.pixels for shot in shots if not shot.label]
        donors = [normal[int(torch.randint(len(normal), (), generator=generator))] for _ in range(COPIES * len(normal))]
        made = [cut_mix(image, donor, generator) for image, donor in zip(normal * COPIES, donors, strict=True)]
        with torch.inference_mode():
            pseudo = [torch.stack(encode_patches(self.backbone, self.recipe.view, p[None]), 1) for p in made]
        tokens = torch.cat([self.shot_tokens(shots, run), torch.cat(pseudo).float().cpu()]).clone()
        labels = torch.tensor([shot.label for shot in shots] + [PSEUDO] * len(made))
        self.standard = Standard.of(tokens[labels == NORMAL], SIZE, generator)
        features = self._features(tokens)
        kinds = [(labels == kind).nonzero()[:, 0] for kind in (NORMAL, SEEN, PSEUDO)]
        self.heads = seeded(lambda: Heads(features.shape[1]), run.seed)
        prior = torch.randn(PRIOR, generator=generator)

        def loss_of(rows: torch.Tensor) -> torch.Tensor:
            # A third of each kind, drawn with replacement.
            drawn = torch.cat([k[torch.randint(len(k), (-(-len(rows) // 3),), generator=generator)] for k in kinds])
            reference = features[_some(kinds[NORMAL], generator)].mean(0)
            return total_loss(self.heads(features[drawn], reference), labels[drawn], prior)

        how = Adam(
            EPOCHS, RATE, (0.9, 0.999), weight_decay=1e-5, clip=1.0, schedule=lambda share: 0.1 ** math.floor(3 * share)
        )
        optimise(self.heads.parameters(), STEPS * how.batch, loss_of, how, run)
        self.reference = features[_some(kinds[NORMAL], run.generator())].mean(0)

    def _features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [B, T, G, d] -> planes of all taps, [B, T x k, R, C]."""
        return to_planes(self.standard(tokens), self.backbone.grid).flatten(1, 2)

    @torch.inference_mode()
    def score(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Baseline.score`."""
        features = self._features(self.image_tokens(pixels))
        holistic, *patches = self.heads(features, self.reference)
        scores = sum(map(top_mean, patches)) - holistic
        maps = self.upsample(torch.stack(patches).sum(0))
        return (1 + F.softsign(scores)) / 2, (1 + F.softsign(maps)) / 2


def _some(numbers: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """At most five of them."""
    return numbers[torch.randperm(len(numbers), generator=generator)[:REFERENCES]]


class Heads(torch.nn.Module):
    """The four heads; all scores are absolute values.

    Args:
        channels: Size of the features of a patch.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.holistic = torch.nn.Sequential(torch.nn.Linear(channels, 256), torch.nn.ReLU(), torch.nn.Linear(256, 1))
        self.seen = torch.nn.Conv2d(channels, 1, 1)
        self.pseudo = torch.nn.Conv2d(channels, 1, 1)
        self.residual = torch.nn.Sequential(
            torch.nn.Conv2d(channels, HIDDEN, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(HIDDEN, 1, 1)
        )

    def forward(self, features: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Features [B, C, R, K] and of what is normal [C, R, K] -> holistic [B]; seen, pseudo, residual [B, G]."""
        holistic = self.holistic(features.mean((2, 3)))[:, 0].abs()
        residual = self.residual(reference - features)
        return holistic, *(head.flatten(1).abs() for head in (self.seen(features), self.pseudo(features), residual))


def top_mean(patches: torch.Tensor) -> torch.Tensor:
    """Mean of the largest tenth of the patches' scores, at least one: [B, G] -> [B]."""
    return patches.topk(max(1, int(TOP * patches.shape[1])), 1).values.mean(1)


def total_loss(heads: tuple[torch.Tensor, ...], labels: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Sum of the heads' deviation losses, each on the kinds it tells apart; the holistic one's target is normal."""
    holistic, seen, pseudo, residual = heads
    not_made, not_seen = labels != PSEUDO, labels != SEEN
    return (
        deviation_loss(holistic, labels == NORMAL, prior)
        + deviation_loss(top_mean(seen)[not_made], labels[not_made] == SEEN, prior)
        + deviation_loss(top_mean(pseudo)[not_seen], labels[not_seen] == PSEUDO, prior)
        + deviation_loss(top_mean(residual), labels != NORMAL, prior)
    )


def deviation_loss(scores: torch.Tensor, target: torch.Tensor, prior: torch.Tensor) -> torch.Tensor:
    """Pulls scores to the mean of the prior, and those of the target beyond the margin (Pang et al., KDD 2019).

    Args:
        scores: [B].
        target: Which of them are to deviate, [B] bool.
        prior: Draws from the distribution of scores that do not, [N].
    """
    deviation = (scores - prior.mean()) / prior.std()
    return torch.where(target, (MARGIN - deviation).clamp_min(0), deviation.abs()).mean()


def cut_mix(image: torch.Tensor, donor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A patch of another place, of 2 to 15 % of the area and other colours, pasted in: [3, S, S] in 0..1 twice."""
    size = image.shape[1]
    area, shape, brightness, contrast = torch.rand(4, generator=generator).tolist()
    side = size * math.sqrt(0.02 + 0.13 * area)
    stretch = math.exp((2 * shape - 1) * math.log(2) / 2)
    height, width = min(size, max(1, round(side * stretch))), min(size, max(1, round(side / stretch)))

    def place() -> tuple[slice, slice]:
        top = int(torch.randint(size - height + 1, (), generator=generator))
        left = int(torch.randint(size - width + 1, (), generator=generator))
        return slice(top, top + height), slice(left, left + width)

    patch = donor[:, *place()]
    centre = patch.mean()
    patch = (patch - centre) * (0.9 + 0.2 * contrast) + centre * (0.9 + 0.2 * brightness)
    result = image.clone()
    result[:, *place()] = patch.clamp(0, 1)
    return result
