"""How a fit goes, step by step: shots, tokens, a head, its epoch, out-of-fold scores, and what they say.

Without abnormal images the head is a memory of normal patches, without any image the texts: nothing is trained then.
"""

from __future__ import annotations

import dataclasses
import warnings
from contextlib import ExitStack
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING

import torch

from madclip.calibration.calibration import Calibration
from madclip.calibration.thresholds import choose_pixel_threshold, parse_operating_point
from madclip.data.samples import Dataset, Sample
from madclip.data.unseen import said_of_patches
from madclip.errors import DataError, MadCLIPWarning, RecipeError
from madclip.fitting.untrained import TILES_SAY_LITTLE, familiarity_of, of_normals, refuse_selection
from madclip.head.head import Head
from madclip.head.scorer import Readout, pool
from madclip.progress import Progress, silent
from madclip.state import Fitted, Provenance
from madclip.training.encode import prepare
from madclip.training.fit import Checkpoint, fit_head
from madclip.training.out_of_fold import FoldSet, out_of_fold, why_not
from madclip.training.selection import EpochWeights, Select, Watched, best_epoch, watch
from madclip.training.shots import Chosen, draw_samples, read_shots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from madclip.backbones.spec import Backbone
    from madclip.calibration.familiarity import Familiarity
    from madclip.recipe import Recipe
    from madclip.training.cache import TokenCache
    from madclip.training.encode import TrainingSet
    from madclip.training.out_of_fold import OutOfFold
    from madclip.training.shots import Shot

MAX_SEED = 2**31 - 1
NO_FOLDS = "it was fitted without folds, which thresholds come from"
REFIT_RATE, REFIT_STRIDE = 0.5, 2
"""A refit learns at half the rate, from every second variant of each shot, once."""


@dataclass(frozen=True)
class Run:
    """How a fit is run: where tokens and its state are kept, which epoch stays, and who is told of it.

    Attributes:
        cache: Where tokens are kept on disk; None keeps them in memory.
        checkpoint: File for the state of the fit under way, so that `resume` can go on after a kill.
        resume: Go on from `checkpoint` where there is one.
        select: Which epoch is kept: the `last`; `val`, the one with the best image AUROC on a quarter of the shots,
            which are held out of the fit; or `test-best`, the best on the test images, as was published: every number
            of such a detector is optimistic and carries the mark, and it is not calibrated.
        progress: Told of every image encoded and of every step.
        held_out: Told of the out-of-fold score of each shot, in their order, where there are such scores.
    """

    cache: TokenCache | None = None
    checkpoint: Path | None = None
    resume: bool = False
    select: Select = "last"
    progress: Progress = silent
    held_out: Callable[[Sequence[float]], None] | None = None


@dataclass(frozen=True)
class Setting:
    """What is fitted: a recipe on a backbone, for images that show the objective."""

    recipe: Recipe
    backbone: Backbone
    objective: str

    def new_head(self, seed: int) -> Head:
        """A head with the initial weights of a seed."""
        return Head(self.recipe, self.backbone, self.objective, seed=seed)


@dataclass(frozen=True)
class Draws:
    """What a fit leaves to chance, and what is learned about its scores.

    Attributes:
        seed: Determines the initial weights, the order of images and the folds.
        folds: How many parts out-of-fold scores come from; 0 leaves the detector without thresholds.
        operating_point: How the threshold is chosen: `youden`, `sens=0.95`, `spec=0.95`.
        select: Which epoch is kept; see `Run`.

    Raises:
        RecipeError: One of them is out of range.
    """

    seed: int = 0
    folds: int = 4
    operating_point: str = "youden"
    select: Select = "last"
    resume: InitVar[bool] = False

    def __post_init__(self, resume: bool) -> None:
        if resume and self.select != "last":
            raise RecipeError(f"a fit that selects its epoch by {self.select} cannot be resumed; run it without resume")
        parse_operating_point(self.operating_point)
        if not 0 <= self.seed <= MAX_SEED:
            raise RecipeError(f"seed {self.seed}: give a whole number from 0 to {MAX_SEED}")
        if self.folds < 0 or self.folds == 1:
            raise RecipeError(f"{self.folds} folds: give at least 2, or 0 for none")


@dataclass(frozen=True)
class Drawn:
    """What is learned from.

    Attributes:
        chosen: Samples, or images with labels and masks.
        watched: Images that the epoch is chosen by; None keeps the last.
        left: By what images that were there to draw from and were not drawn are known; None outside a data set.
    """

    chosen: Chosen
    watched: Watched | None = None
    left: tuple[str, ...] | None = None


def draw(given: Dataset | Chosen, shots: int | tuple[int, int] | None, draws: Draws) -> Drawn:
    """What a fit learns from: a draw of a data set, or all that was given directly.

    Raises:
        DataError: There are fewer images than shots, or none to select an epoch on.
        RecipeError: An epoch is to be selected, and there are none without abnormal images.
    """
    data = given if isinstance(given, Dataset) else None
    chosen: Chosen = draw_samples(given, shots, draws.seed) if isinstance(given, Dataset) else given
    watched = None
    if draws.select != "last":
        if not any(one.label if isinstance(one, Sample) else one[1] for one in chosen):
            refuse_selection(draws)
        chosen, watched = watch(data, chosen, draws.select, draws.seed)
    return Drawn(chosen, watched, _left(data, chosen, watched))


def draw_again(given: Dataset | Chosen, shots: int | tuple[int, int] | None, draws: Draws, before: Provenance) -> Drawn:
    """What a refit learns from: of a data set the shots of before and what was added since, or a new draw."""
    if not isinstance(given, Dataset) or shots is not None:
        return draw(given, shots, draws)
    if before.pool is None:
        raise DataError(
            f"{given.root}: the detector does not say what it was drawn from, so what was added is not known: "
            "say how many shots to draw, or all"
        )
    known = set(before.pool)
    chosen = [sample for sample in given.shot_pool if before.hashed(_named(given, sample)) not in known]
    return Drawn(chosen, None, _left(given, chosen, None))


def _left(data: Dataset | None, chosen: Chosen, watched: Watched | None) -> tuple[str, ...] | None:
    if data is None:
        return None
    samples = (*chosen, *(watched.samples if watched else ()))
    used = {sample.image for sample in samples if isinstance(sample, Sample)}
    return tuple(_named(data, sample) for sample in data.shot_pool if sample.image not in used)


def _named(data: Dataset, sample: Sample) -> str:
    """By what an image that was not drawn is known again without reading it: its name and its size."""
    return f"{data.name(sample.image)} {sample.image.path.stat().st_size}"


def fit(setting: Setting, drawn: Drawn, draws: Draws, run: Run) -> Fitted:
    """Learn from shots.

    Args:
        setting: What is fitted.
        drawn: What it learns from, and which images the epoch is chosen by.
        draws: Seed, folds and operating point.
        run: Cache, checkpoint and progress.

    Raises:
        DataError: An image or a mask cannot be used, or there are abnormal images only.
        CheckpointError: `run.checkpoint` belongs to another fit.
        RecipeError: An epoch is to be chosen, and images are seen in tiles.
    """
    watched = drawn.watched
    if watched and setting.recipe.tile:
        raise RecipeError("an epoch is not chosen where images are seen in tiles; keep the last")
    shots = read(setting, drawn)
    return _learned(setting, shots, provenance_of(shots, drawn, draws), drawn.watched, draws, run)


def _learned(
    setting: Setting,
    shots: Sequence[Shot],
    provenance: Provenance,
    watched: Watched | None,
    draws: Draws,
    run: Run,
) -> Fitted:
    """What shots teach: a trained head, or where none is abnormal a memory of what they look like."""
    if not provenance.abnormal:
        return of_normals(setting, shots, provenance, draws.operating_point, run)
    training = prepare(shots, setting.backbone, setting.recipe, seed=draws.seed, cache=run.cache, progress=run.progress)
    head = setting.new_head(draws.seed)
    with ExitStack() as stack:
        weights = stack.enter_context(EpochWeights()) if watched else None
        history = fit_head(
            head,
            training,
            setting.recipe,
            seed=draws.seed,
            checkpoint=checkpoint_of(setting, run, shots, provenance),
            progress=run.progress,
            on_epoch=weights.keep if weights else None,
        )
        if weights and watched:
            readout = Readout.of(setting.recipe, has_masks=bool(provenance.masks))
            view = setting.recipe.view
            epoch, value = best_epoch(weights, head, watched, setting.backbone, view, readout, run.progress)
            provenance = dataclasses.replace(
                provenance, selected_epoch=epoch, selected_on=f"image AUROC {value:.4f} of {watched.where}"
            )
    fitted = Fitted(head, setting.recipe, provenance, familiarity=familiarity(shots, training), history=history)
    return _calibrated(fitted, setting, shots, training, draws, run)


def refit(setting: Setting, before: Fitted, drawn: Drawn, draws: Draws, run: Run) -> Fitted:
    """Go on learning from the head of `before` in one short pass; errors as in `fit`. See `MadCLIP.refit`.

    A memory, or texts, have no head to go on from: they learn anew, with abnormal images as `fit` does.
    """
    shots = read(setting, drawn)
    provenance = carried(before.provenance, shots, drawn, draws)
    if before.provenance.learned_from != "both":
        return _learned(setting, shots, provenance, None, draws, run)
    if not provenance.abnormal:
        raise DataError(
            f"a refit needs normal and abnormal images where a detector learned from both: there are "
            f"{provenance.normal} and 0; fit anew to learn from normal images alone"
        )
    head = setting.new_head(draws.seed)
    head.load_state_dict(before.head.state_dict())
    training = prepare(shots, setting.backbone, setting.recipe, seed=draws.seed, cache=run.cache, progress=run.progress)
    recipe = setting.recipe.replace(epochs=1, learning_rate=setting.recipe.learning_rate * REFIT_RATE)
    history = fit_head(head, training.every(REFIT_STRIDE), recipe, seed=draws.seed, progress=run.progress)
    anew = bool(draws.folds) and not why_not(shots) and provenance.select != "test-best"
    provenance = dataclasses.replace(provenance, calibrated_before_refit=not anew and before.calibration is not None)
    fitted = Fitted(
        head,
        setting.recipe,
        provenance,
        calibration=None if anew else before.calibration,
        familiarity=familiarity(shots, training),
        history=[*before.history, *history],
        series=None if anew else before.series,
    )
    if anew or (draws.folds and before.calibration is None):
        return _calibrated(fitted, setting, shots, training, draws, run)
    return fitted


def carried(old: Provenance, shots: Sequence[Shot], drawn: Drawn, draws: Draws) -> Provenance:
    """Where a detector came from, after a refit with shots."""
    now = Provenance.of(shots, draws.seed)
    return dataclasses.replace(
        old,
        madclip=now.madclip,
        torch=now.torch,
        seed=now.seed,
        normal=now.normal,
        abnormal=now.abnormal,
        masks=now.masks,
        shots=now.shots,
        removed=tuple(sorted({*old.removed, *old.shots} - set(now.shots))),
        refits=old.refits + 1,
        pool=None if drawn.left is None else tuple(sorted(map(old.hashed, drawn.left))),
    ).with_groups(group for shot in shots for group in shot.groups)


def read(setting: Setting, drawn: Drawn, name: str = "") -> list[Shot]:
    """The shots; what is odd about some, and what of them is not going to be seen, is said once with their number.

    Args:
        setting: What is fitted.
        drawn: What it learns from.
        name: The set that they are of, where there are several.
    """
    view = setting.recipe.view
    shots = read_shots(drawn.chosen, view)
    whose = f"{name}: " if name else ""
    said = [said_of_patches(view.size, setting.backbone.spec.patch_size)]
    if notes := [shot.note for shot in shots if shot.note]:
        said.append(f"{whose}{len(notes)} of {len(shots)} shots: {notes[0]}")
    if lost := [shot.lost for shot in shots if shot.lost]:
        said.append(
            f"{whose}{len(lost)} of {len(shots)} shots have lesions of which nothing is left when the mask is resized "
            f"to {view.size} px; the first: {lost[0]}; take a greater image_size"
        )
    for line in filter(None, said):
        warnings.warn(line, MadCLIPWarning, stacklevel=2)
    return shots


def provenance_of(shots: Sequence[Shot], drawn: Drawn, draws: Draws, **more: str) -> Provenance:
    """What is known of a fit before it begins: the shots, those held out, and what was left in the pool."""
    known = Provenance.of(shots, draws.seed, select=draws.select, **more)
    pool = None if drawn.left is None else tuple(sorted(map(known.hashed, drawn.left)))
    known = dataclasses.replace(known, pool=pool)
    if drawn.watched is None or draws.select != "val":
        return known
    held_out = drawn.watched.samples
    digests = tuple(sorted(sample.image.digest() for sample in held_out))
    return dataclasses.replace(known, selection_images=digests).with_groups(
        group for sample in held_out for group in sample.groups
    )


def checkpoint_of(setting: Setting, run: Run, shots: Sequence[Shot], provenance: Provenance) -> Checkpoint | None:
    """Where the state of a fit under way is kept, and what that fit depends on."""
    if run.checkpoint is None:
        return None
    facts = {
        "recipe": setting.recipe.to_dict(),
        "backbone": setting.backbone.fingerprint,
        "dtype": str(setting.backbone.dtype),
        "objective": setting.objective,
        "seed": provenance.seed,
        "masks": provenance.masks,
        "shots": sorted([shot.digest, shot.label] for shot in shots),
        "madclip": provenance.madclip,
        "torch": provenance.torch,
    }
    return Checkpoint(run.checkpoint, facts, run.resume)


def familiarity(shots: Sequence[Shot], training: TrainingSet) -> Familiarity | None:
    """The out-of-distribution check from shots and their tokens, where there are enough for one."""
    return familiarity_of(torch.stack([pool(tokens) for tokens in training.plain]), [shot.group for shot in shots])


def _calibrated(
    fitted: Fitted,
    setting: Setting,
    shots: Sequence[Shot],
    training: TrainingSet,
    draws: Draws,
    run: Run,
) -> Fitted:
    """A fitted state with thresholds and probabilities from out-of-fold scores, or with why there are none."""
    if reason := _why_uncalibrated(fitted, shots, draws):
        return calibrated(fitted, shots, None, draws, reason)
    held_out = out_of_fold(
        [FoldSet(shots, training, fitted.readout)],
        lambda: [setting.new_head(draws.seed)],
        setting.recipe,
        folds=draws.folds,
        seed=draws.seed,
        progress=run.progress,
    )[0]
    if run.held_out and held_out:
        run.held_out(held_out.scores.tolist())
    return calibrated(fitted, shots, held_out, draws)


def _why_uncalibrated(fitted: Fitted, shots: Sequence[Shot], draws: Draws) -> str:
    if fitted.provenance.select == "test-best":
        return "the epoch was selected on test images, and no threshold can be trusted beside that"
    if not draws.folds:
        return NO_FOLDS
    return TILES_SAY_LITTLE if fitted.recipe.tile else why_not(shots)


def calibrated(
    fitted: Fitted, shots: Sequence[Shot], held_out: OutOfFold | None, draws: Draws, reason: str = ""
) -> Fitted:
    """A fitted state with what out-of-fold results of its shots say, or with the reason why there are none."""
    provenance = dataclasses.replace(fitted.provenance, uncalibrated=reason and f"not calibrated: {reason}")
    if held_out is None:
        return dataclasses.replace(fitted, provenance=provenance)
    labels = [shot.label for shot in shots]
    pixel_threshold = _pixel_threshold(shots, held_out) if fitted.readout.has_masks else None
    calibration = Calibration.fit(labels, held_out.scores, draws.operating_point, pixel_threshold=pixel_threshold)
    known = calibration.of_patients([shot.group for shot in shots])
    return dataclasses.replace(fitted, calibration=known, provenance=provenance)


def _pixel_threshold(shots: Sequence[Shot], held_out: OutOfFold) -> float | None:
    nowhere = torch.zeros(held_out.maps.shape[1:], dtype=torch.bool)
    pairs = [
        (one.numpy(), (nowhere if shot.mask is None else shot.mask).numpy())
        for one, shot in zip(held_out.maps, shots, strict=True)
        if shot.label == 0 or shot.mask is not None
    ]
    return choose_pixel_threshold(*zip(*pairs, strict=True))
