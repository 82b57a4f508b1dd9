"""MadCLIP: the class users meet. Fit on a few labelled images, predict scores and maps, save and load."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

import numpy as np
import torch

from madclip.backbones import load_backbone
from madclip.backbones.spec import Backbone
from madclip.calibration.calibration import Calibration, choose_pixel_threshold, parse_operating_point
from madclip.calibration.familiarity import Familiarity
from madclip.data.geometry import fit_pixels, restore_map
from madclip.data.readers import MIN_SIDE
from madclip.data.ref import ImageRef, as_ref
from madclip.data.samples import Dataset, Sample, load_dataset, scan_dataset
from madclip.data.shots import draw_shots
from madclip.errors import DataError, RecipeError
from madclip.head.head import Head
from madclip.recipe import Recipe
from madclip.training.crossfit import can_cross_fit, cross_fit
from madclip.training.encode import TokenCache, TrainingSet, encode_patches, prepare
from madclip.training.fit import History, fit_head
from madclip.training.shots import Shot, labelled_shot, read_pixels, read_shot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    import numpy.typing as npt

    from madclip.recipe import ImageScore
    from madclip.training.shots import ImageLike

Item = TypeVar("Item")
DEFAULT_BACKBONE = "tiny"
DEFAULT_OBJECTIVE = "medical image"
BATCH = 16
MAX_SEED = 2**31 - 1
REFIT_RATE, REFIT_STRIDE = 0.5, 2
"""A refit learns at half the rate, from every second variant of each shot, once."""
READERS = 2
"""Threads that decode images while others are computed."""


@dataclass(frozen=True)
class Prediction:
    """What a detector says of one image.

    Attributes:
        score: 0..1, 1 = anomalous.
        anomaly_map: float32 [H, W] in 0..1 at the image's own size.
        size: Height and width of the image, pixels.
        source: The file, or None for an array.
        probability: Calibrated probability that the image is anomalous; None where the detector is not calibrated.
        p_value: Conformal p-value against the normal images of the calibration, likewise.
        verdict: "like the normals", "anomalous" or "I do not know", likewise.
        familiar: Whether the image looks like anything in the shots; False warns of a wrong modality.
    """

    score: float
    anomaly_map: npt.NDArray[np.float32]
    size: tuple[int, int]
    source: ImageRef | None = None
    probability: float | None = None
    p_value: float | None = None
    verdict: str | None = None
    familiar: bool = True


class MadCLIP:
    """A few-shot anomaly detector on a frozen CLIP.

    Args:
        recipe: A preset's name (`madclip`, `paper`, `released`) or a Recipe.
        backbone: A catalogue id, a path, a hub name, or a loaded Backbone.
        objective: What the images show, as it stands in the prompts ("Brain", "retinal OCT").
        device: Where a backbone named by a string is put; "auto" takes CUDA, then MPS, then the CPU.
        dtype: What such a backbone and the head's products compute in; "auto" takes bfloat16 where the device has it.
            What is learned is float32 always.

    Attributes:
        head: What was learned; None before `fit`.
        engine: What computes scores, maps and pooled tokens of pixels [B, 3, S, S] in place of torch; None for torch.
        provenance: Where the detector came from: versions, seed, hashes and counts of the shots; no names of files.
    """

    def __init__(
        self,
        recipe: str | Recipe = "madclip",
        *,
        backbone: str | Path | Backbone = DEFAULT_BACKBONE,
        objective: str = DEFAULT_OBJECTIVE,
        device: str = "auto",
        dtype: str = "auto",
    ) -> None:
        self.recipe = recipe if isinstance(recipe, Recipe) else Recipe.preset(recipe)
        self.objective = objective
        if not objective.strip():
            raise RecipeError("the objective is empty: say what the images show, for example 'Brain'")
        self.backbone = open_backbone(self.recipe, backbone, device, dtype)
        self.head: Head | None = None
        self.history = History()
        self.provenance: dict[str, Any] = {}
        self.calibration: Calibration | None = None
        self.familiarity: Familiarity | None = None
        self.engine: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] | None = None

    # Fitting

    def fit(
        self,
        data: str | Path | Dataset | Sequence[Sample] | Sequence[ImageLike],
        labels: Sequence[int] | None = None,
        masks: Sequence[ImageLike | None] | None = None,
        *,
        shots: int | tuple[int, int] | None = 16,
        seed: int = 0,
        folds: int = 4,
        operating_point: str = "youden",
        cache: TokenCache | None = None,
        checkpoint: Path | None = None,
        resume: bool = False,
        on_image: Callable[[int, int], None] | None = None,
        on_step: Callable[[int, int, float], None] | None = None,
        on_epoch: Callable[[int, Head], None] | None = None,
        torch_compile: bool = False,
    ) -> Self:
        """Learn from labelled images.

        Args:
            data: A folder in one of the layouts of `load_dataset` or a Dataset, of which `shots` are drawn (from
                valid/ where there are splits, else from train/, never from test/); or Samples, or images with
                `labels`, all of which are used.
            labels: 0 normal, 1 abnormal, for images given directly.
            masks: A mask or None for each image given directly.
            shots: Images of each class, or (normal, abnormal); None uses all.
            seed: Of the draw, the initial weights and the order of images.
            folds: Of the cross-fit from which the threshold and the probabilities come (the whole fit is repeated on
                all but one fold, for each); 0 leaves the detector uncalibrated, as do images of a single patient.
            operating_point: How the threshold is chosen: `youden`, `sens=0.95`, `spec=0.95`.
            cache: Where tokens are kept on disk; None keeps them in memory.
            checkpoint: File for the state of a fit under way, so that `resume` can go on after a kill.
            resume: Go on from `checkpoint` where there is one.
            on_image: Called with (images encoded, images).
            on_step: Called with (steps done, steps, loss), for the fit and then for the cross-fit.
            on_epoch: Called after each epoch with (epochs done, head).
            torch_compile: Compile the training step first, on a GPU with CUDA graphs: half a minute that only long fits
                there can win back.

        Raises:
            DataError: An image, a mask or the draw cannot be used.
            RecipeError: An argument is out of range.
            CheckpointError: `checkpoint` belongs to another fit.
        """
        _check_fit(seed, folds, operating_point)
        chosen = self._shots(data, labels, masks, shots, seed)
        provenance = fit_provenance(chosen, seed)
        run = {
            "recipe": self.recipe.to_dict(),
            "backbone": self.backbone.fingerprint,
            "dtype": str(self.backbone.dtype),
            "objective": self.objective,
            **provenance,
        }

        head = self._new_head(seed)
        training = prepare(chosen, self.backbone, self.recipe, seed=seed, cache=cache, on_image=on_image)
        self.provenance, self.engine = provenance, None
        self.head, self.calibration, self.familiarity = head, None, None
        self.history = fit_head(
            head,
            training,
            self.recipe,
            seed=seed,
            checkpoint=checkpoint,
            resume=resume,
            run=run,
            on_step=on_step,
            on_epoch=on_epoch,
            torch_compile=torch_compile,
        )
        if folds and can_cross_fit(chosen):
            self._cross_fit(chosen, training, folds, seed, operating_point, on_step, torch_compile=torch_compile)
        return self

    def refit(
        self,
        data: str | Path | Dataset | Sequence[Sample] | Sequence[ImageLike],
        labels: Sequence[int] | None = None,
        masks: Sequence[ImageLike | None] | None = None,
        *,
        shots: int | tuple[int, int] | None = None,
        seed: int = 0,
        folds: int = 0,
        operating_point: str = "youden",
        cache: TokenCache | None = None,
        on_image: Callable[[int, int], None] | None = None,
        on_step: Callable[[int, int, float], None] | None = None,
    ) -> Self:
        """Go on learning after shots were added, removed or relabelled: from the head as it is, in one short pass.

        Much faster than `fit`. What an image said that is no longer among the shots fades, but is not
        forgotten. Fit anew where that matters.

        Args:
            data: All images to learn from now, as for `fit`.
            labels: As for `fit`.
            masks: As for `fit`.
            shots: As for `fit`; None uses all.
            seed: Of the order of images.
            folds: Of a cross-fit for new thresholds and probabilities, which takes as long as that of `fit`. With 0
                they stay those of the detector before, and `evaluate` says so.
            operating_point: Of that cross-fit.
            cache: Where tokens are kept: those of images that were shots before are read from there.
            on_image: As for `fit`.
            on_step: As for `fit`.

        Raises:
            DataError: An image, a mask or the draw cannot be used.
            RecipeError: Nothing was fitted before, or an argument is out of range.
        """
        _check_fit(seed, folds, operating_point)
        before = self._fitted()
        chosen = self._shots(data, labels, masks, shots, seed)
        provenance = fit_provenance(chosen, seed)
        head = self._new_head(seed)
        head.load_state_dict(before.state_dict())
        training = prepare(chosen, self.backbone, self.recipe, seed=seed, cache=cache, on_image=on_image)
        recipe = self.recipe.replace(epochs=1, learning_rate=self.recipe.learning_rate * REFIT_RATE)
        history = fit_head(head, training.every(REFIT_STRIDE), recipe, seed=seed, on_step=on_step)
        refits = int(self.provenance.get("refits", 0)) + 1
        self.provenance, self.engine = provenance | {"refits": refits}, None
        self.head, self.history = head, History([*self.history.epochs, *history.epochs])
        if folds and can_cross_fit(chosen):
            self.calibration = None
            self._cross_fit(chosen, training, folds, seed, operating_point, on_step)
        elif self.calibration:
            self.provenance["calibrated_before_refit"] = True
        return self

    def _new_head(self, seed: int) -> Head:
        return Head(self.recipe, self.backbone, self.objective, seed=seed)

    def _cross_fit(
        self,
        shots: Sequence[Shot],
        training: TrainingSet,
        folds: int,
        seed: int,
        operating_point: str,
        on_step: Callable[[int, int, float], None] | None,
        *,
        torch_compile: bool = False,
    ) -> None:
        held_out = cross_fit(
            shots,
            training,
            lambda: self._new_head(seed),
            self._score_tokens,
            self.recipe,
            folds=folds,
            seed=seed,
            on_step=on_step,
            torch_compile=torch_compile,
        )
        self._calibrate(shots, held_out.scores, held_out.maps, operating_point)
        plain = self.recipe.variants.index("identity")
        pooled = torch.stack([pool(tokens[plain]) for tokens in training.tokens])
        self.familiarity = Familiarity.fit(pooled, [shot.patient for shot in shots])

    def _calibrate(self, shots: Sequence[Shot], scores: torch.Tensor, maps: torch.Tensor, operating_point: str) -> None:
        pixel_threshold = None
        if self.has_masks:
            size = maps.shape[1:]
            pairs = [
                (one.numpy(), (torch.zeros(size) if shot.mask is None else shot.mask).numpy().astype(bool))
                for one, shot in zip(maps, shots, strict=True)
                if shot.label == 0 or shot.mask is not None
            ]
            pixel_threshold = choose_pixel_threshold(*zip(*pairs, strict=True))
        labels = [shot.label for shot in shots]
        self.calibration = Calibration.fit(labels, scores, operating_point, pixel_threshold=pixel_threshold)

    def _shots(
        self,
        data: str | Path | Dataset | Sequence[Sample] | Sequence[ImageLike],
        labels: Sequence[int] | None,
        masks: Sequence[ImageLike | None] | None,
        shots: int | tuple[int, int] | None,
        seed: int,
    ) -> list[Shot]:
        chosen = self._read_shots(data, labels, masks, shots, seed)
        counts = [sum(shot.label == c for shot in chosen) for c in (0, 1)]
        if not all(counts):
            raise DataError(f"fitting needs normal and abnormal images: there are {counts[0]} and {counts[1]}")
        return chosen

    def _read_shots(
        self,
        data: str | Path | Dataset | Sequence[Sample] | Sequence[ImageLike],
        labels: Sequence[int] | None,
        masks: Sequence[ImageLike | None] | None,
        shots: int | tuple[int, int] | None,
        seed: int,
    ) -> list[Shot]:
        labelled = isinstance(data, (str, Path, Dataset)) or any(isinstance(item, Sample) for item in data)
        if labelled and not (labels is None and masks is None):
            raise DataError("labels and masks go with images given directly; a data set brings its own")
        if isinstance(data, (str, Path, Dataset)):
            data = draw_samples(data, shots, seed)
        if labels is None:
            samples = [item for item in data if isinstance(item, Sample)]
            if len(samples) != len(data):
                raise DataError("images given directly need labels: fit(images, labels), 0 normal and 1 abnormal")
            return [read_shot(sample, self.recipe.view) for sample in samples]
        labels = np.asarray(labels).tolist()
        masks = [None] * len(labels) if masks is None else masks
        if not len(data) == len(labels) == len(masks):
            raise DataError(f"{len(data)} images, {len(labels)} labels, {len(masks)} masks: as many of each are needed")
        if not set(labels) <= {0, 1}:
            raise DataError(f"labels are 0 (normal) or 1 (abnormal), not {sorted(set(labels) - {0, 1})}")
        return [
            labelled_shot(image, int(label), mask, self.recipe.view)  # type: ignore[arg-type]
            for image, label, mask in zip(data, labels, masks, strict=True)
        ]

    def calibrate(self, data: str | Path | Dataset, *, operating_point: str | None = None) -> Self:
        """Add labelled images to those that thresholds and probabilities come from; nothing is learned but these.

        The images must not be test images: `evaluate` leaves them out. One class alone will do.

        Args:
            data: As for `load_dataset`; all its images are used.
            operating_point: A new one; None keeps it.

        Raises:
            DataError: An image cannot be read, or the operating point needs a class that is missing.
        """
        samples = (data if isinstance(data, Dataset) else scan_dataset(data)).samples
        known = self.calibration
        scores = [prediction.score for prediction in self.predict([sample.image for sample in samples])]
        labels = [sample.label for sample in samples]
        if known:
            scores += [*known.normal_scores, *known.abnormal_scores]
            labels += [0] * len(known.normal_scores) + [1] * len(known.abnormal_scores)
        point = operating_point or (known.operating_point if known else "youden")
        pixel_threshold = known.pixel_threshold if known else None
        self.calibration = Calibration.fit(labels, scores, point, pixel_threshold=pixel_threshold)
        added = {sample.image.digest() for sample in samples}
        self.provenance["calibrated_on"] = sorted(added | set(self.provenance.get("calibrated_on", ())))
        return self

    # Predicting

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
        head = self._fitted()
        height, width = _checked_batch(pixels)
        if not len(pixels):
            return torch.zeros(0), torch.zeros(0, height, width)
        fitted = torch.stack([fit_pixels(image, self.recipe.view) for image in pixels])
        scores, maps, _ = self._score_fitted(head, fitted)
        if (height, width) == tuple(maps.shape[-2:]):
            return scores, maps
        restored = [restore_map(one, (height, width), self.recipe.view) for one in maps]
        return scores, torch.from_numpy(np.stack(restored))

    def _score_fitted(self, head: Head, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Scores [B], maps [B, S, S] and pooled tokens [B, features] of images that are as the backbone sees them."""
        if self.engine:
            return self.engine(pixels)
        tokens = encode_patches(self.backbone, self.recipe.view, pixels)
        scores, maps = self._score_tokens(head, tokens)
        return scores, maps, pool(torch.stack(tokens, 1)).cpu()

    def _score_tokens(self, head: Head, tokens: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [B] and maps [B, S, S] from the patch tokens of the taps, each [B, G, d]."""
        text = self._text if head is self.head else head.text()
        scores = head([stream.to(text.device) for stream in tokens], text)
        image, maps = head.read(scores, self.image_score, has_masks=self.has_masks)
        return image.cpu(), maps.cpu()

    @overload
    def predict(self, inputs: ImageLike) -> Prediction: ...  # type: ignore[overload-overlap]  # a str is one image
    @overload
    def predict(self, inputs: Sequence[ImageLike]) -> list[Prediction]: ...
    def predict(self, inputs: ImageLike | Sequence[ImageLike]) -> Prediction | list[Prediction]:
        """Predictions for one image or several.

        Raises:
            DataError: An image cannot be read; `predict_iter` goes on with the rest instead.
        """
        if isinstance(inputs, (str, Path, ImageRef, np.ndarray, torch.Tensor)):
            return self.predict([inputs])[0]
        results = []
        for result in self.predict_iter(inputs):
            if isinstance(result, DataError):
                raise result
            results.append(result)
        return results

    def predict_iter(
        self, inputs: Iterable[ImageLike], *, batch_size: int = BATCH, native: bool = True
    ) -> Iterator[Prediction | DataError]:
        """One Prediction, or the error that its file gave, for each input in order; in constant memory.

        Args:
            inputs: Files or arrays.
            batch_size: Images at once.
            native: False leaves maps as the recipe's square, not brought back to the image's size.
        """
        head = self._fitted()

        def score(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Sequence[bool]]:
            scores, maps, pooled = self._score_fitted(head, pixels)
            familiar = self.familiarity.familiar(pooled) if self.familiarity else [True] * len(pixels)
            return scores, maps, [bool(known) for known in familiar]

        for result in predict_each(inputs, self.recipe, score, batch_size=batch_size, native=native):
            yield self._judged(result) if isinstance(result, Prediction) and self.calibration else result

    def _judged(self, plain: Prediction) -> Prediction:
        """The prediction with what the calibration says of its score."""
        assert self.calibration is not None  # noqa: S101
        probability = self.calibration.probability(plain.score)
        return replace(
            plain,
            probability=None if probability is None else float(probability),
            p_value=float(self.calibration.p_value(plain.score)),
            verdict=self.calibration.verdict(plain.score, familiar=plain.familiar),
        )

    @property
    def has_masks(self) -> bool:
        """Whether masks were learned from; otherwise the map shows the detection head's patches."""
        return bool(self.provenance.get("masks"))

    @property
    def image_score(self) -> ImageScore:
        """The rule of the image score, with `by_task` resolved."""
        if self.recipe.image_score == "by_task":
            return "max" if self.has_masks else "mean"
        return self.recipe.image_score

    def _fitted(self) -> Head:
        if self.head is None:
            raise RecipeError("this detector is not fitted: call fit, or load a saved one")
        return self.head

    @property
    def _text(self) -> torch.Tensor:
        """Text features of the head, computed anew where the head has changed."""
        head = self._fitted()
        if head.prompts is None:
            return head.text()
        mark = (head, head.prompts.contexts._version)  # noqa: SLF001
        if getattr(self, "_text_mark", None) != mark:
            self._text_features, self._text_mark = head.text().detach(), mark
        return self._text_features

    # Keeping

    def save(self, folder: str | Path) -> None:
        """Write detector.json, head.safetensors and README.md; nothing is left half written.

        Raises:
            DataError: The folder holds something that is not a detector, or cannot be written.
        """
        from madclip.storage import save_detector

        save_detector(self, Path(folder))

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
        from madclip.storage import load_detector

        return load_detector(cls, Path(folder), backbone, device)

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
            image_size: Likewise.
            image_score: `max` of the map for sets with masks, `mean` of the detection head for those without.
            device: As in the constructor.

        Raises:
            CheckpointError: Not such a file, or trained with another backbone.
        """
        from madclip.storage import load_released

        recipe = Recipe.preset("released", image_size=image_size, image_score=image_score)
        detector = cls(recipe, backbone=backbone, objective=objective, device=device, dtype="float32")
        return load_released(detector, Path(checkpoint))


def open_backbone(recipe: Recipe, backbone: str | Path | Backbone, device: str, dtype: str) -> Backbone:
    """The backbone as the recipe wants it; one that is loaded already must agree with the recipe."""
    wanted = None if recipe.backbone_activation == "weights" else recipe.backbone_activation
    if not isinstance(backbone, Backbone):
        return load_backbone(backbone, image_size=recipe.image_size, activation=wanted, device=device, dtype=dtype)
    if backbone.image_size != (recipe.image_size, recipe.image_size):
        raise RecipeError(
            f"the backbone was loaded for {backbone.image_size} pixels, the recipe wants {recipe.image_size}: "
            f"load_backbone(..., image_size={recipe.image_size})"
        )
    if wanted and backbone.spec.activation != wanted:
        raise RecipeError(
            f"the backbone was loaded with activation {backbone.spec.activation}, the recipe wants {wanted}: "
            f"load_backbone(..., activation={wanted!r})"
        )
    return backbone


def draw_samples(data: str | Path | Dataset, shots: int | tuple[int, int] | None, seed: int) -> tuple[Sample, ...]:
    """The samples of a data set that a method learns from: a seeded draw of its shot pool, or with None all of it."""
    dataset = data if isinstance(data, Dataset) else load_dataset(data)
    return tuple(dataset.shot_pool) if shots is None else draw_shots(dataset.shot_pool, shots, seed)


def fit_provenance(shots: Sequence[Shot], seed: int) -> dict[str, Any]:
    """Where something learned comes from: versions, seed, counts and hashes of the shots; no names of files."""
    return {
        "madclip": version("madclip"),
        "torch": torch.__version__,
        "seed": seed,
        "normal": sum(shot.label == 0 for shot in shots),
        "abnormal": sum(shot.label == 1 for shot in shots),
        "masks": sum(shot.mask is not None and shot.label == 1 for shot in shots),
        "shots": sorted(shot.digest for shot in shots),
    }


def predict_each(
    inputs: Iterable[ImageLike],
    recipe: Recipe,
    score: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, Sequence[bool]]],
    *,
    batch_size: int = BATCH,
    native: bool = True,
) -> Iterator[Prediction | DataError]:
    """One Prediction, or the error that its file gave, for each input in order; in constant memory.

    Args:
        inputs: Files or arrays.
        recipe: Its square and aspect.
        score: Pixels [B, 3, S, S] in 0..1 -> scores [B], maps [B, S, S], and whether each image looks familiar.
        batch_size: Images at once.
        native: False leaves maps as the recipe's square, not brought back to the image's size.
    """
    for batch in _batched(_read_ahead(inputs, recipe, 2 * batch_size), batch_size):
        fitted = [pixels for _, read in batch if not isinstance(read, DataError) for pixels in read[:1]]
        if fitted:
            with torch.inference_mode():
                scored = zip(*score(torch.stack(fitted)), strict=True)
        for item, read in batch:
            if isinstance(read, DataError):
                yield read
                continue
            value, one, familiar = next(scored)
            source = as_ref(item) if isinstance(item, (str, Path, ImageRef)) else None
            final = restore_map(one, read[1], recipe.view) if native else one.numpy()
            yield Prediction(float(value), final, read[1], source, familiar=familiar)


def pool(tokens: torch.Tensor) -> torch.Tensor:
    """What an image as a whole looks like: [..., T, G, d] -> [..., T x d], each tap's mean patch at unit length."""
    mean = tokens.float().mean(-2)
    unit: torch.Tensor = mean / mean.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return unit.flatten(-2)


def _checked_batch(pixels: torch.Tensor) -> tuple[int, int]:
    """Height and width of pixels [B, 3, H, W] in 0..1."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or min(pixels.shape[2:]) < MIN_SIDE:
        raise DataError(f"pixels of shape {list(pixels.shape)} are not [B, 3, H, W] of at least {MIN_SIDE} a side")
    # A comparison with NaN is false.
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise DataError("pixels [B, 3, H, W] have values outside 0..1 (or NaN): scale them")
    return pixels.shape[2], pixels.shape[3]


def _check_fit(seed: int, folds: int, operating_point: str) -> None:
    parse_operating_point(operating_point)
    if not 0 <= seed <= MAX_SEED:
        raise RecipeError(f"seed {seed}: give a whole number from 0 to {MAX_SEED}")
    if folds < 0 or folds == 1:
        raise RecipeError(f"{folds} folds: give at least 2, or 0 for none")


def _try_read(image: ImageLike, recipe: Recipe) -> tuple[torch.Tensor, tuple[int, int]] | DataError:
    """Pixels as the backbone sees them [3, S, S] and the image's own size, or why there are none."""
    try:
        pixels = read_pixels(image)
    except DataError as error:
        return error
    return fit_pixels(pixels, recipe.view), (pixels.shape[1], pixels.shape[2])


def _read_ahead(
    items: Iterable[ImageLike], recipe: Recipe, ahead: int
) -> Iterator[tuple[ImageLike, tuple[torch.Tensor, tuple[int, int]] | DataError]]:
    """Each item with what `_try_read` gives, in order; threads read at most `ahead` items further on."""
    with ThreadPoolExecutor(READERS, thread_name_prefix="madclip-read") as pool:
        waiting: deque[tuple[ImageLike, Future[tuple[torch.Tensor, tuple[int, int]] | DataError]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(_try_read, item, recipe)))
                if len(waiting) > ahead:
                    first, read = waiting.popleft()
                    yield first, read.result()
            while waiting:
                first, read = waiting.popleft()
                yield first, read.result()
        finally:
            for _, read in waiting:
                read.cancel()


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
