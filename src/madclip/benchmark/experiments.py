"""What the tables consist of: cells of set, shots, seed and method."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from madclip.benchmark.registry import by_name
from madclip.errors import RecipeError
from madclip.methods import BASELINES, load_baseline
from madclip.recipe import PRESETS, Recipe

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Experiment: TypeAlias = Literal["table1", "table2", "table3", "ablations", "real", "normal-only", "zero-shot", "joint"]

ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "a": ("fixed prompts", {"learned_prompts": False}),
    "b": ('objective replaced by "medical image"', {"use_objective": False}),
    "c": ("one branch", {"dual_branch": False}),
    "d": ("opposite class not subtracted", {"contrast": False}),
    "e": ("softmax loss", {"loss": "softmax"}),
    "f": ("one head for both tasks", {"separate_heads": False}),
}
"""Letter of the paper's ablation: what it is, and its one switch of the recipe."""

VARIANTS: dict[Experiment, dict[str, dict[str, Any]]] = {
    "normal-only": {"memory": {"text_weight": 0.0}},
    "zero-shot": {"whole": {"image_score": "mean"}, "patches": {"image_score": "max"}},
    "joint": {"joint": {}, "routed": {}, "without": {}},
}
"""What each preset is run with besides as it is, by changes of its recipe.

In `joint` one detector learns from all sets: `joint` is told what images show, `routed` is not, and `without` learned
from all sets but the one that is measured.
"""

SETS = ("HIS", "Chest", "OCT17", "BrainMRI", "LiverCT", "RESC")
"""The data sets of Tables 1 and 2."""
CROSS = (("Chest", "NIHChest"), ("Chest", "CheXpert"), ("BrainMRI", "ADNI"), ("OCT17", "OCTDL"), ("RESC", "OCTDL"))
"""Table 3: shots of the first, test images of the second."""
SHOTS: dict[Experiment, tuple[int, ...]] = {
    "table1": (16,),
    "table2": (2, 4, 8),
    "table3": (16,),
    "ablations": (16,),
    "real": (2, 4, 8, 16),
    "normal-only": (1, 2, 4, 8, 16),
    "zero-shot": (0,),
    "joint": (16,),
}
METHODS = (*PRESETS, *BASELINES)


@dataclass(frozen=True, order=True)
class Cell:
    """One fit and its evaluation.

    Attributes:
        set: Whose test images are scored; `SOURCE->TARGET` where the shots are another set's.
        shots: Images of each class; in `normal-only` of the normal class, without any of the other.
        seed: Determines the draw, and what the method leaves to chance.
        method: A preset of the recipe, `PRESET-LETTER` for one of its ablations or `VARIANTS`, or a baseline.
    """

    set: str
    shots: int
    seed: int
    method: str

    @property
    def source(self) -> str:
        """The set that shots come from."""
        return self.set.partition("->")[0]

    @property
    def target(self) -> str:
        """The set whose test images are scored."""
        return self.set.rpartition("->")[2]

    def __str__(self) -> str:
        return f"{self.set}, {self.shots} shots, seed {self.seed}, {self.method}"

    def path(self, folder: Path) -> Path:
        """The file in a folder that is this cell's."""
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]
        return folder / f"{digest}.json"


def cells_of(
    experiment: Experiment, sets: Sequence[str], methods: Sequence[str], seeds: int, shots: Sequence[int] = ()
) -> list[Cell]:
    """Every cell of an experiment, in order.

    Args:
        experiment: Which.
        sets: Those of all experiments but the tables, which bring their own.
        methods: As in `Cell.method`. In the ablations each preset stands for itself and its six ablations, where there
            are `VARIANTS` for itself and those.
        seeds: Draws, from 0; of texts alone there is one.
        shots: Instead of those in `SHOTS`.

    Raises:
        RecipeError: No method has that name, or there are no seeds.
    """
    if experiment == "zero-shot":
        seeds = min(seeds, 1)  # there is nothing to draw
    if seeds < 1:
        raise RecipeError(f"{seeds} seeds: give at least 1")
    for method in methods:
        if method not in METHODS:
            raise RecipeError(f"unknown method {method!r}: choose among {', '.join(METHODS)}")
    if wrong := [method for method in methods if method not in methods_of(experiment)]:
        none = {"ablations": "has no ablations", "joint": "learns of one set at a time"}
        why = none.get(experiment, f"learns from images that {experiment} does not give it")
        raise RecipeError(f"{wrong[0]!r} {why}: choose among {', '.join(methods_of(experiment))}")
    if experiment == "ablations":
        methods = [name for method in methods for name in (method, *(f"{method}-{letter}" for letter in ABLATIONS))]
    variants = VARIANTS.get(experiment, {})
    methods = [name for m in methods for name in (m, *(f"{m}-{what}" for what in variants if m in PRESETS))]
    crossed = tuple("->".join(pair) for pair in CROSS)
    names = {"table1": SETS, "table2": SETS, "table3": crossed}.get(experiment, tuple(sets))
    return sorted(
        Cell(name, count, seed, method)
        for name in names
        for count in (shots or SHOTS[experiment])
        for seed in range(seeds)
        for method in methods
    )


def methods_of(experiment: Experiment) -> tuple[str, ...]:
    """The methods that an experiment can have, by what it gives them to learn from."""
    given = {"ablations": (), "joint": (), "normal-only": ("nothing", "normal"), "zero-shot": ("nothing",)}.get(
        experiment
    )
    if given is None:
        return METHODS
    return (*PRESETS, *(name for name in BASELINES if given and load_baseline(name).learns_from in given))


def recipe_of(method: str, changes: dict[str, Any], experiment: Experiment) -> Recipe:
    """The recipe of a preset with an experiment's changes, and of its ablations and variants."""
    preset, _, name = method.partition("-")
    recipe = Recipe.preset(preset, **changes)
    if not name:
        return recipe
    return recipe.replace(**(VARIANTS[experiment][name] if experiment in VARIANTS else ABLATIONS[name][1]))


def needs_masks(method: str) -> bool:
    """Whether a method learns nothing from abnormal shots without masks."""
    return method in BASELINES and load_baseline(method).needs_masks


def tasks_of(name: str) -> tuple[str, ...]:
    """AC and, where the set of this name has masks, AS; in Table 3 only AC. Unregistered sets: both."""
    if "->" in name:
        return ("AC",)
    entry = by_name(name)
    return entry.tasks if entry else ("AC", "AS")


def check_experiment(name: str) -> Experiment:
    """The experiment of that name.

    Raises:
        RecipeError: There is none.
    """
    for known in get_args(Experiment):
        if known == name:
            return known  # type: ignore[no-any-return]
    raise RecipeError(f"unknown experiment {name!r}: choose one of {', '.join(get_args(Experiment))}")
