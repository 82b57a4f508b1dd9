"""What the methods of comparison share: the same backbone, shots, geometry and protocol as MadCLIP."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
import torch.nn.functional as F

from madclip.backbones.load import open_backbone
from madclip.backbones.spec import Backbone
from madclip.calibration.familiarity import Likeness
from madclip.data.load import load_dataset
from madclip.data.samples import Dataset, Reading, Sample
from madclip.errors import DataError, RecipeError
from madclip.fitting import MAX_SEED
from madclip.methods.learning import Learning
from madclip.prediction import predict_each, usual_batch
from madclip.progress import Progress, silent
from madclip.recipe import Recipe
from madclip.state import Provenance
from madclip.training.encode import encode_patches, prepare
from madclip.training.shots import Shot, draw_samples, read_shot

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from madclip.calibration.calibration import Calibration
    from madclip.data.arrays import ImageLike
    from madclip.prediction import Prediction
    from madclip.training.cache import TokenCache

UNCALIBRATED = "not calibrated: methods of comparison have no thresholds"
NEEDED = {"nothing": (), "normal": (0,), "both": (0, 1)}


class Baseline(ABC):
    """A method of comparison: the same backbone, shots and protocol as MadCLIP.

    Args:
        backbone: A catalogue id, a path, a hub name, or a loaded Backbone.
        objective: What the images show, as it stands in prompts.
        image_size: Side in pixels of the square that the backbone sees; None takes that of a loaded backbone, else
            the recipe's.
        device: Where a backbone named by a string is put.
        dtype: What such a backbone computes in.

    Attributes:
        name: What it is chosen by.
        title: Name and paper.
        learns_from: Which of the shots it looks at. All are drawn, so that every method leaves out the same images.
        image_score: How the image score comes about, for the records.
        needs_masks: Whether it learns nothing from abnormal shots without masks.
        provenance: Where it came from and what it has seen.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    learns_from: ClassVar[Literal["nothing", "normal", "both"]]
    image_score: ClassVar[str]
    needs_masks: ClassVar[bool] = False
    calibration: Calibration | None = None

    def __init__(
        self,
        backbone: Backbone | str | Path,
        *,
        objective: str,
        image_size: int | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        if not objective.strip():
            raise RecipeError("the objective is empty: say what the images show, for example 'Brain'")
        recipe = Recipe.preset("madclip")
        known = backbone.image_size[0] if isinstance(backbone, Backbone) else recipe.image_size
        # Each shot once, as it is: augmentation is part of MadCLIP's recipe.
        self.recipe = recipe.replace(image_size=image_size or known, variants=("identity",))
        self.objective = objective
        self.backbone = open_backbone(self.recipe, backbone, device, dtype)
        self.provenance = Provenance()

    def fit(
        self,
        data: str | Path | Dataset | Sequence[Sample],
        *,
        shots: int | tuple[int, int] | None = 16,
        seed: int = 0,
        cache: TokenCache | None = None,
        progress: Progress = silent,
    ) -> Self:
        """Learn from the shots that `MadCLIP.fit` draws with the same arguments.

        Args:
            data: A folder or a Dataset, of which `shots` are drawn; or Samples, all of which are used.
            shots: Images of each class, or (normal, abnormal); None uses all.
            seed: Determines the draw and whatever the method leaves to chance.
            cache: Where tokens are kept on disk; None keeps them in memory.
            progress: Told of every image encoded and of every training step.

        Raises:
            DataError: An image, a mask or the draw cannot be used, or a class that the method needs is missing.
            RecipeError: An argument is out of range.
        """
        if not 0 <= seed <= MAX_SEED:
            raise RecipeError(f"seed {seed}: give a whole number from 0 to {MAX_SEED}")
        data = load_dataset(data, Reading(axis=self.recipe.axis)) if isinstance(data, (str, Path)) else data
        samples = draw_samples(data, shots, seed) if isinstance(data, Dataset) else data
        drawn = [read_shot(sample, self.recipe.view) for sample in samples]
        provenance = Provenance.of(drawn, seed, method=self.name, uncalibrated=UNCALIBRATED)
        needed = NEEDED[self.learns_from]
        if not all(any(shot.label == label for shot in drawn) for label in needed):
            counts = f"{provenance.normal} normal and {provenance.abnormal} abnormal"
            raise DataError(f"{self.name} learns from {self.learns_from} images: there are {counts}")
        self.provenance = Provenance()
        self._learn([shot for shot in drawn if shot.label in needed], Learning(seed, cache, progress))
        self.provenance = provenance
        return self

    @abstractmethod
    def _learn(self, shots: Sequence[Shot], run: Learning) -> None:
        """Learn from those shots that `learns_from` names."""

    @abstractmethod
    def score(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels [B, 3, S, S] in 0..1 -> image scores [B] and maps [B, S, S] in 0..1, float32 on the CPU."""

    def predict_iter(
        self, inputs: Iterable[ImageLike], *, batch_size: int | None = None, native: bool = True
    ) -> Iterator[Prediction | DataError]:
        """As `MadCLIP.predict_iter`.

        Raises:
            RecipeError: Nothing was learned yet.
        """
        if not self.provenance.method:
            raise RecipeError(f"{self.name} is not fitted: call fit")

        def score(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Sequence[Likeness]]:
            return (*self.score(pixels), [Likeness(familiar=True)] * len(pixels))

        return predict_each(
            inputs, self.recipe.view, score, batch_size=batch_size or usual_batch(self.backbone.device), native=native
        )

    def shot_tokens(self, shots: Sequence[Shot], run: Learning) -> torch.Tensor:
        """Patch tokens of the shots at the taps, [N, T, G, d] float32 on the CPU."""
        training = prepare(shots, self.backbone, self.recipe, seed=run.seed, cache=run.cache, progress=run.progress)
        return torch.stack([tokens[0] for tokens in training.tokens]).float()

    def image_tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Patch tokens of images at the taps: [B, 3, S, S] -> [B, T, G, d] float32 on the CPU."""
        return torch.stack(encode_patches(self.backbone, self.recipe.view, pixels), 1).float().cpu()

    def upsample(self, patches: torch.Tensor) -> torch.Tensor:
        """Values of patches [B, G], interpolated bilinearly: [B, S, S]."""
        return F.interpolate(
            patches.float().unflatten(1, self.backbone.grid)[:, None], self.backbone.image_size, mode="bilinear"
        )[:, 0]


def squash(distance: torch.Tensor) -> torch.Tensor:
    """Distances from 0 up, strictly monotonically to 0..1: x / (1 + x)."""
    return distance / (1 + distance)
