"""The floors: what the pooled tokens of the shots give without any method. Nearest class mean, logistic regression."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F

from madclip.errors import MissingExtraError
from madclip.head.scorer import pool
from madclip.methods.base import Baseline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.methods.learning import Learning
    from madclip.training.shots import Shot


class Floor(Baseline):
    """A linear rule on pooled tokens: learned from whole images, read at every patch for the map."""

    learns_from: ClassVar[Literal["nothing", "normal", "both"]] = "both"
    image_score: ClassVar[str] = "pooled tokens"

    def _learn(self, shots: Sequence[Shot], run: Learning) -> None:
        pooled = pool(self.shot_tokens(shots, run)).double()
        self._learn_pooled(pooled, torch.tensor([shot.label for shot in shots]))

    @torch.inference_mode()
    def score(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Baseline.score`: the rule at the pooled tokens, and at those of each patch alone."""
        tokens = self.image_tokens(pixels)
        patches = pool(tokens.permute(0, 2, 1, 3).unsqueeze(-2))
        return self._rule(pool(tokens).double()).float(), self.upsample(self._rule(patches.double()))

    @abstractmethod
    def _learn_pooled(self, pooled: torch.Tensor, labels: torch.Tensor) -> None:
        """Learn from pooled tokens [N, D], float64, and labels [N]."""

    @abstractmethod
    def _rule(self, pooled: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [...] in 0..1."""


class NearestMean(Floor):
    """Which class mean is nearer, by cosine similarity."""

    name: ClassVar[str] = "nearest-mean"
    title: ClassVar[str] = "Nearest class mean of pooled tokens"

    def _learn_pooled(self, pooled: torch.Tensor, labels: torch.Tensor) -> None:
        self.means = class_means(pooled, labels)

    def _rule(self, pooled: torch.Tensor) -> torch.Tensor:
        return nearest_mean_score(pooled, self.means)


class Logistic(Floor):
    """Ridge logistic regression on standardised pooled tokens."""

    name: ClassVar[str] = "logistic"
    title: ClassVar[str] = "Logistic regression on pooled tokens"

    def _learn_pooled(self, pooled: torch.Tensor, labels: torch.Tensor) -> None:
        self.centre = pooled.mean(0)
        self.scale = pooled.std(0, correction=0).clamp_min(1e-6)
        self.weights, self.intercept = fit_logistic((pooled - self.centre) / self.scale, labels)

    def _rule(self, pooled: torch.Tensor) -> torch.Tensor:
        logits = (pooled - self.centre) / self.scale @ self.weights + self.intercept
        # Patches lie far outside the spread of means: a sigmoid would tie them all at 0 and 1.
        return (1 + F.softsign(logits)) / 2


def class_means(pooled: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Means of the normal and of the abnormal rows: [N, D], [N] -> [2, D]."""
    return torch.stack([pooled[labels == label].mean(0) for label in (0, 1)])


def nearest_mean_score(pooled: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """Cosine to the abnormal mean minus that to the normal one, from -2..2 to 0..1: [..., D], [2, D] -> [...]."""
    cosines = F.normalize(pooled, dim=-1) @ F.normalize(means, dim=-1).mT
    return ((2 + cosines[..., 1] - cosines[..., 0]) / 4).clamp(0, 1)


def fit_logistic(
    features: torch.Tensor, labels: torch.Tensor, *, ridge: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """The minimum of the summed logistic loss plus ridge / 2 |w|^2; the intercept is free.

    Args:
        features: [N, D] float64.
        labels: [N], 0 or 1.
        ridge: 1 / C of the usual notation.

    Returns:
        Weights [D] and intercept [].

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtraError.of("this method needs scikit-learn", "bench", str(error)) from None
    found = LogisticRegression(C=1 / ridge, tol=1e-10, max_iter=10_000).fit(features.numpy(), labels.numpy())
    return torch.from_numpy(found.coef_[0]), torch.from_numpy(found.intercept_)[0]
