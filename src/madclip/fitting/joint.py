"""One detector of several modalities: heads that share their adapters, learned from the shots of all in one pass."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING

from torch import nn

from madclip.calibration.familiarity import Familiarity
from madclip.data.samples import Dataset
from madclip.errors import DataError, RecipeError
from madclip.fitting import (
    NO_FOLDS,
    REFIT_RATE,
    REFIT_STRIDE,
    calibrated,
    carried,
    checkpoint_of,
    draw,
    draw_again,
    familiarity,
    provenance_of,
    read,
)
from madclip.head.joint import new_heads
from madclip.state import Fitted, Provenance
from madclip.training.encode import prepare
from madclip.training.fit import fit_heads
from madclip.training.out_of_fold import FoldSet, out_of_fold, why_not
from madclip.training.shots import labelled_images

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from madclip.fitting import Draws, Run, Setting
    from madclip.head.head import Head
    from madclip.training.encode import TrainingSet
    from madclip.training.fit import History
    from madclip.training.shots import Chosen, Labelled, Shot

    Given: TypeAlias = Mapping[str, Labelled]
    Count: TypeAlias = int | tuple[int, int] | None
    Shots: TypeAlias = Mapping[str, Sequence[Shot]]


def fit(setting: Setting, given: Given, shots: Count, draws: Draws, run: Run) -> Fitted:
    """Learn from the shots of several modalities.

    Args:
        setting: Recipe and backbone; each modality has its own objective.
        given: By objective, what shots are drawn from.
        shots: How many of each.
        draws: Seed, folds and operating point.
        run: Cache, checkpoint and progress.

    Raises:
        DataError: An image cannot be used, two modalities have images in common, or one has too few.
        RecipeError: There are not two modalities, or what is asked for goes with one alone.
    """
    data = _images(setting, given, draws)
    drawn = {name: draw(one, shots, draws) for name, one in data.items()}
    found = {name: read(setting, one, name) for name, one in drawn.items()}
    _check_shots(found)
    every = [shot for one in found.values() for shot in one]
    salt = sha256("".join(sorted(shot.digest for shot in every)).encode()).hexdigest()[:16]
    facts = {name: provenance_of(found[name], drawn[name], draws, salt=salt) for name in given}
    heads = new_heads(setting.recipe, setting.backbone, [*given], seed=draws.seed)
    training = _prepared(setting, found, draws, run)
    named = dataclasses.replace(setting, objective=", ".join(given))
    history = fit_heads(
        nn.ModuleList(heads),
        [*zip(heads, training, strict=True)],
        setting.recipe,
        seed=draws.seed,
        checkpoint=checkpoint_of(named, run, every, Provenance.joint([*facts.values()])),
        progress=run.progress,
    )
    parts = _parts(setting, heads, found, facts, training, history)
    return Fitted.joint(_calibrated(setting, parts, found, training, draws, run))


def refit(setting: Setting, before: Fitted, given: Labelled | Given, shots: Count, draws: Draws, run: Run) -> Fitted:
    """Go on learning from the shots of all modalities, of which some may be new; see `MadCLIP.refit`.

    All of them take part, so that none is forgotten. With a new one it takes as many steps as a fit; what was
    learned before is where they begin.

    Raises:
        DataError: As for `fit`; or a modality that the detector knows is not given.
        RecipeError: As for `fit`.
    """
    known = before.modalities
    if not known or not isinstance(given, Mapping):
        asked = "give the images of each, by objective" if known else "fit anew to make it one of several"
        raise RecipeError(f"this detector is of {'several modalities' if known else 'one modality'}: {asked}")
    if missing := [name for name in known if name not in given]:
        raise DataError(f"{missing[0]!r} would be forgotten: give the images that it was learned from as well")
    data = _images(setting, given, draws)
    names = [*known, *(name for name in given if name not in known)]
    most = _most_shots(before)
    drawn = {
        name: draw_again(data[name], shots, draws, known[name].provenance)
        if name in known
        else draw(data[name], shots or most, draws)
        for name in names
    }
    found = {name: read(setting, one, name) for name, one in drawn.items()}
    _check_shots(found)
    facts = {}
    heads = new_heads(setting.recipe, setting.backbone, names, seed=draws.seed)
    for name, head in zip(names, heads, strict=True):
        old = known.get(name, before)
        facts[name] = carried(old.provenance, found[name], drawn[name], draws)
        if name in known:
            head.load_state_dict(old.head.state_dict())
    training = _prepared(setting, found, draws, run)
    recipe, learned = setting.recipe, training
    if len(names) == len(known):
        recipe = recipe.replace(epochs=1, learning_rate=recipe.learning_rate * REFIT_RATE)
        learned = [one.every(REFIT_STRIDE) for one in training]
    sets = [*zip(heads, learned, strict=True)]
    history = fit_heads(nn.ModuleList(heads), sets, recipe, seed=draws.seed, progress=run.progress)
    parts = _parts(setting, heads, found, facts, training, [*before.history, *history])
    if draws.folds:
        return Fitted.joint(_calibrated(setting, parts, found, training, draws, run))
    return Fitted.joint(
        {
            name: _as_before(part, known[name]) if name in known else calibrated(part, (), None, draws, NO_FOLDS)
            for name, part in parts.items()
        }
    )


def _as_before(part: Fitted, old: Fitted) -> Fitted:
    """A modality after a refit, with the thresholds that it had."""
    facts = dataclasses.replace(part.provenance, calibrated_before_refit=old.calibration is not None)
    return dataclasses.replace(part, provenance=facts, calibration=old.calibration, series=old.series)


def _most_shots(before: Fitted) -> tuple[int, int]:
    """Shots of each class that a new modality gets where nobody says how many: as many as the others have."""
    facts = [part.provenance for part in before.modalities.values()]
    return max(one.normal for one in facts), max(one.abnormal for one in facts)


def _images(setting: Setting, given: Given, draws: Draws) -> dict[str, Dataset | Chosen]:
    """What was given, told apart.

    Raises:
        DataError: Two are the same.
        RecipeError: There are not two, or what is asked for goes with one alone.
    """
    if len(given) < 2:
        raise RecipeError("a joint fit needs two modalities or more, each with images of its own")
    if twice := [name for name, count in Counter(map(str.casefold, given)).items() if count > 1]:
        raise RecipeError(f"{twice[0]!r} is named twice: each modality has an objective of its own")
    if draws.select != "last":
        raise RecipeError(f"--select {draws.select}: a joint fit keeps the last epoch")
    if setting.recipe.tile:
        raise RecipeError("a joint fit sees images whole: leave out --tiles")
    data = {name: labelled_images(one, None, None, setting.recipe.axis) for name, one in given.items()}
    roots = [one.root.resolve() for one in data.values() if isinstance(one, Dataset)]
    if same := [root for root, count in Counter(roots).items() if count > 1]:
        raise DataError(f"{same[0]}: given for two modalities; each needs a set of its own")
    return data


def _check_shots(found: Shots) -> None:
    owner: dict[str, str] = {}
    for name, shots in found.items():
        if common := {owner[shot.digest] for shot in shots if shot.digest in owner}:
            raise DataError(f"{common.pop()!r} and {name!r} have images in common: each needs a set of its own")
        owner |= {shot.digest: name for shot in shots}
        if not any(shot.label for shot in shots):
            raise DataError(f"{name!r} has no abnormal images: a joint fit needs both classes of every modality")
        if not Familiarity.possible([shot.group for shot in shots]):
            raise DataError(
                f"{name!r} has {len(shots)} shots: at least three, of different patients, are needed to tell it "
                "from other modalities"
            )


def _prepared(setting: Setting, found: Shots, draws: Draws, run: Run) -> list[TrainingSet]:
    return [
        prepare(shots, setting.backbone, setting.recipe, seed=draws.seed, cache=run.cache, progress=run.progress)
        for shots in found.values()
    ]


def _parts(
    setting: Setting,
    heads: Sequence[Head],
    found: Shots,
    facts: Mapping[str, Provenance],
    training: Sequence[TrainingSet],
    history: History,
) -> dict[str, Fitted]:
    """What was learned of each modality, without thresholds."""
    return {
        name: Fitted(head, setting.recipe, facts[name], familiarity=familiarity(found[name], tokens), history=history)
        for name, head, tokens in zip(found, heads, training, strict=True)
    }


def _calibrated(
    setting: Setting,
    parts: Mapping[str, Fitted],
    found: Shots,
    training: Sequence[TrainingSet],
    draws: Draws,
    run: Run,
) -> dict[str, Fitted]:
    """What was learned of each modality, with thresholds from out-of-fold scores of its shots."""
    if not draws.folds:
        return {name: calibrated(part, (), None, draws, NO_FOLDS) for name, part in parts.items()}
    held_out = out_of_fold(
        [FoldSet(found[name], tokens, parts[name].readout) for name, tokens in zip(parts, training, strict=True)],
        lambda: new_heads(setting.recipe, setting.backbone, [*parts], seed=draws.seed),
        setting.recipe,
        folds=draws.folds,
        seed=draws.seed,
        progress=run.progress,
    )
    return {
        name: calibrated(part, found[name], scores, draws, why_not(found[name]))
        for (name, part), scores in zip(parts.items(), held_out, strict=True)
    }
