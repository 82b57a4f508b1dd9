"""MadCLIP: the class users meet. Fit on a few labelled images, predict scores and maps, save and load."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch

from madclip import fitting, storage
from madclip.backbones.load import open_backbone
from madclip.backbones.names import DEFAULT_BACKBONE, default_recipe
from madclip.data.load import scan_dataset
from madclip.data.samples import Dataset, Reading
from madclip.errors import DataError, RecipeError
from madclip.estimator import Estimator
from madclip.fitting import Draws, Run, Setting, joint
from madclip.fitting.further import calibrate
from madclip.fitting.untrained import of_texts
from madclip.head.scorer import pool
from madclip.prediction import BATCH, Prediction, judged, predict_each, score_batch, usual_batch
from madclip.recipe import Recipe
from madclip.released import load_released
from madclip.state import Fitted, Provenance
from madclip.training.encode import encode_for
from madclip.training.shots import labelled_images

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from madclip.backbones.spec import Backbone
    from madclip.calibration.calibration import Calibration
    from madclip.calibration.familiarity import Likeness
    from madclip.data.arrays import ImageLike
    from madclip.recipe import ImageScore
    from madclip.training.shots import Labelled

DEFAULT_OBJECTIVE = "medical image"


class MadCLIP(Estimator):
    """A few-shot anomaly detector on a frozen CLIP.

    The constructor only stores its arguments; the backbone is loaded where it is first needed. `clone` and
    `cross_val_score` of scikit-learn take it as they take their own estimators.

    Args:
        recipe: A Recipe or a preset's name; None takes `fused` where the backbone is several towers, else `madclip`.
        backbone: A catalogue id, a path, a hub name, or a loaded Backbone.
        objective: What the images show, as it stands in the prompts ("Brain", "retinal OCT").
        device: Where a backbone named by a string is put; "auto" takes CUDA, then MPS, then the CPU.
        dtype: What such a backbone and the head's products compute in; "auto" takes bfloat16 where the device has it.
            What is learned is float32 always.

    Attributes:
        fitted: What was learned, with its calibration and provenance; None before `fit`.
        engine: What computes scores, maps and pooled tokens of pixels [B, 3, S, S] in place of torch; None for torch.
    """

    def __init__(
        self,
        recipe: str | Recipe | None = None,
        *,
        backbone: str | Path | Backbone = DEFAULT_BACKBONE,
        objective: str = DEFAULT_OBJECTIVE,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self._recipe, self._backbone = recipe, backbone
        self._objective, self._device, self._dtype = objective, device, dtype
        self.fitted: Fitted | None = None
        self.engine: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] | None = None

    @cached_property
    def recipe(self) -> Recipe:
        """How it learns."""
        chosen = default_recipe(self._backbone) if self._recipe is None else self._recipe
        return chosen if isinstance(chosen, Recipe) else Recipe.preset(chosen)

    @property
    def objective(self) -> str:
        """What the images show; of a joint detector all objectives."""
        if self.fitted and self.fitted.modalities:
            return ", ".join(self.fitted.modalities)
        if not self._objective.strip():
            raise RecipeError("the objective is empty: say what the images show, for example 'Brain'")
        return self._objective

    @cached_property
    def backbone(self) -> Backbone:
        """The frozen towers.

        Raises:
            CheckpointError: They cannot be found or read.
            RecipeError: The recipe asks for something that they cannot do.
        """
        return open_backbone(self.recipe, self._backbone, self._device, self._dtype)

    def fit(
        self,
        data: Labelled | Mapping[str, Labelled] = (),
        labels: Sequence[int] | None = None,
        masks: Sequence[ImageLike | None] | None = None,
        *,
        shots: int | tuple[int, int] | None = 16,
        seed: int = 0,
        folds: int = 4,
        operating_point: str = "youden",
        run: Run = Run(),  # noqa: B008  (frozen)
    ) -> Self:
        """Learn from labelled images; from normal ones alone where none is abnormal, and with no shots from the texts.

        Args:
            data: A folder in one of the layouts of `load_dataset` or a Dataset, of which `shots` are drawn (from
                valid/ where there are splits, else from train/, never from test/); or Samples, or images with
                `labels`, all of which are used. Nothing is looked at with `shots=0`. Such data by objective make one
                detector of several modalities: `fit({"Brain": folder, "Liver": another})`.
            labels: For images given directly, 0 normal and 1 abnormal.
            masks: For images given directly, a mask or None for each.
            shots: Images of each class, or (normal, abnormal); None uses all; 0 goes by the texts alone.
            seed: Determines the draw, the initial weights and the order of images.
            folds: How many parts the out-of-fold scores come from, on which the threshold and the probabilities rest;
                0 leaves the detector uncalibrated, as do images of a single patient. Normal images alone are held
                out one by one, whatever it says.
            operating_point: How the threshold is chosen: `youden`, `sens=0.95`, `spec=0.95`. From normal images alone
                `youden` becomes `spec=0.9`, and a rate that they are too few to promise leaves it uncalibrated.
            run: Cache, checkpoint, which epoch is kept, and who is told of progress.

        Raises:
            DataError: An image, a mask or the draw cannot be used.
            RecipeError: An argument is out of range.
            CheckpointError: `run.checkpoint` belongs to another fit.
        """
        draws = Draws(seed, folds, operating_point, run.select, resume=run.resume)
        setting = Setting(self.recipe, self.backbone, self.objective)
        if isinstance(data, Mapping):
            return self._learned(joint.fit(setting, data, shots, draws, run))
        if shots == 0:
            return self._learned(of_texts(setting, draws))
        drawn = fitting.draw(labelled_images(data, labels, masks, self.recipe.axis), shots, draws)
        return self._learned(fitting.fit(setting, drawn, draws, run))

    def _learned(self, fitted: Fitted) -> Self:
        self.fitted, self.engine = fitted, None
        return self

    def refit(
        self,
        data: Labelled | Mapping[str, Labelled],
        labels: Sequence[int] | None = None,
        masks: Sequence[ImageLike | None] | None = None,
        *,
        shots: int | tuple[int, int] | None = None,
        seed: int = 0,
        folds: int = 0,
        operating_point: str = "youden",
        run: Run = Run(),  # noqa: B008  (frozen)
    ) -> Self:
        """Go on learning after shots were added, removed or relabelled: from the head as it is, in one short pass.

        It is much faster than `fit`. The influence of removed images fades but does not vanish; use `fit` to remove
        it. A detector that saw no abnormal image learns anew, from abnormal ones as `fit` does.

        Args:
            data: All images to learn from now, as for `fit`. Of a folder or a Dataset these are, unless `shots` says
                otherwise, the images that were shots before and those that were not there when the detector was fitted.
                A joint detector is given data by objective, of all modalities, old and new.
            labels: As for `fit`.
            masks: As for `fit`.
            shots: Draw so many of the folder anew, as `fit` does.
            seed: Determines the draw and the order of images.
            folds: How many parts new thresholds and probabilities come from, which takes as long as it does in `fit`.
                With 0 they stay those of the detector before, and `evaluate` says so.
            operating_point: How a new threshold is chosen.
            run: Cache and progress; tokens of images that were shots before are read from the cache.

        Raises:
            DataError: An image, a mask or the draw cannot be used.
            RecipeError: Nothing was fitted before, or an argument is out of range.
        """
        before, draws = self.state, Draws(seed, folds, operating_point)
        setting = Setting(self.recipe, self.backbone, self.objective)
        if before.modalities or isinstance(data, Mapping):
            return self._learned(joint.refit(setting, before, data, shots, draws, run))
        given = labelled_images(data, labels, masks, self.recipe.axis)
        drawn = fitting.draw_again(given, shots, draws, before.provenance)
        return self._learned(fitting.refit(setting, before, drawn, draws, run))

    def calibrate(
        self, data: str | Path | Dataset, *, operating_point: str | None = None, modality: str | None = None
    ) -> Self:
        """Add labelled images to those that thresholds and probabilities come from; nothing else is learned.

        The images must not be test images: `evaluate` leaves them out. One class alone will do. Nine or more whole
        normal volumes or series among them give a threshold for the highest score in a series as well, which is
        passed in one normal series of ten.

        Args:
            data: As for `load_dataset`; all its images are used, and of normal volumes all slices. What the detector
                has seen, and other images of those patients, is left out, and counted in a warning.
            operating_point: A new one; None keeps it.
            modality: Which one of a joint detector the images are of.

        Raises:
            DataError: An image cannot be read, all were seen, or the operating point needs a class that is missing.
        """
        found = data if isinstance(data, Dataset) else scan_dataset(data, Reading(axis=self.recipe.axis))
        one = self if modality is None else self.of(modality)
        known = calibrate(one.state, found, lambda images: one.predict_iter(images, native=False), operating_point)
        self.fitted = self.state.put(modality, known)
        return self

    def of(self, modality: str) -> Self:
        """The detector of one modality of a joint one, on images of which nothing is guessed.

        Raises:
            RecipeError: There is no such modality.
        """
        one = type(self)(self.recipe, backbone=self.backbone, objective=modality)
        one.fitted = self.state.of(modality)
        return one

    @torch.inference_mode()
    def score(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and maps of a batch.

        Args:
            pixels: [B, 3, H, W] in 0..1.

        Returns:
            Image scores [B] and anomaly maps [B, H, W], both in 0..1, float32 on the CPU.

        Raises:
            DataError: The pixels have another shape, or values outside 0..1.
        """
        return score_batch(pixels, self.recipe.view, lambda fitted: self._compute(fitted)[:2])

    def _compute(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores [B], maps [B, S, S] and pooled tokens [B, features] of images that are as the backbone sees them."""
        if self.engine:
            return self.engine(pixels)
        tokens, patches = encode_for(self.state.head, self.backbone, self.recipe.view, pixels)
        return (*self.state.score(torch.stack(tokens, 1)), pool(torch.stack(patches, 1)).cpu())

    def predict_iter(
        self, inputs: Iterable[ImageLike], *, batch_size: int | None = None, native: bool = True
    ) -> Iterator[Prediction | DataError]:
        """One Prediction, or the error that its file gave, for each input in order; in constant memory.

        Args:
            inputs: Files, frames or arrays.
            batch_size: Images at once; None takes what suits the device.
            native: False leaves maps as the recipe's square, not brought back to the image's size.
        """
        state = self.state
        batch_size = batch_size or (BATCH if self.engine else usual_batch(self.backbone.device))

        def score(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Sequence[Likeness]]:
            scores, maps, pooled = self._compute(pixels)
            return scores, maps, state.likeness(pooled)

        for result in predict_each(inputs, self.recipe.view, score, batch_size=batch_size, native=native):
            if isinstance(result, DataError):
                yield result
            else:
                own = state.of(result.modality)
                yield judged(result, own.calibration, own.provenance.uncalibrated, own.provenance.verdict)

    @property
    def state(self) -> Fitted:
        """What was learned.

        Raises:
            RecipeError: Nothing was.
        """
        if self.fitted is None:
            raise RecipeError("this detector is not fitted: call fit, or load a saved one")
        return self.fitted

    @property
    def provenance(self) -> Provenance:
        """Where it came from and what it has seen; empty before `fit`."""
        return self.fitted.provenance if self.fitted else Provenance()

    @property
    def calibration(self) -> Calibration | None:
        """Where thresholds and probabilities come from; None where it has none."""
        return self.fitted.calibration if self.fitted else None

    @property
    def image_score(self) -> str:
        """The rule of the image score, with `by_task` and `by_classes` resolved."""
        return self.state.readout.rule

    def save(self, folder: str | Path) -> None:
        """Write detector.json, head.safetensors and README.md; nothing is left half written.

        Raises:
            DataError: The folder holds something that is not a detector, or cannot be written.
        """
        storage.save(Path(folder), self.state, self.backbone, self.objective)

    @classmethod
    def load(cls, folder: str | Path, *, backbone: str | Path | Backbone | None = None, device: str = "auto") -> Self:
        """A detector that `save` wrote.

        Args:
            folder: Where it is.
            backbone: Where the backbone is, if not where it was at the time of `fit`.
            device: As in the constructor.

        Raises:
            CheckpointError: Not a detector, of another format version, damaged, or fitted with another backbone.
        """
        saved = storage.read(Path(folder))
        source, dtype = backbone or saved.backbone["source"], saved.backbone["dtype"]
        detector = cls(saved.recipe, backbone=source, objective=saved.objective, device=device, dtype=dtype)
        detector.fitted = saved.fitted(lambda: detector.backbone, moved=backbone is not None)
        return detector

    @classmethod
    def from_released(
        cls,
        checkpoint: str | Path,
        *,
        backbone: str | Path | Backbone,
        objective: str,
        image_size: int = 240,
        image_score: ImageScore = "max",
        device: str = "auto",
    ) -> Self:
        """A detector from a `.pth` file that the authors of the paper published.

        Args:
            checkpoint: Dict of four state dicts (method: section 8); read without running code.
            backbone: The CLIP that it was trained with (OpenAI's ViT-L/14@336px).
            objective: The one that it was trained with.
            image_size: Side in pixels that it was trained with.
            image_score: `max` of the map for sets with masks, `mean` of the detection head for those without.
            device: As in the constructor.

        Raises:
            CheckpointError: Not such a file, or trained with another backbone.
        """
        recipe = Recipe.preset("released", image_size=image_size, image_score=image_score)
        detector = cls(recipe, backbone=backbone, objective=objective, device=device, dtype="float32")
        detector.fitted = load_released(Path(checkpoint), recipe, lambda: detector.backbone, objective)
        return detector
