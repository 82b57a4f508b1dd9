"""The same experiment over several draws of shots: every run, and what they say together."""

from __future__ import annotations

import dataclasses
import json
import time
from hashlib import sha256
from statistics import stdev
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, Unpack

from madclip.detector import MadCLIP
from madclip.errors import CheckpointError, RecipeError
from madclip.evaluation.protocol import evaluate
from madclip.evaluation.unseen import OPTIMISTIC
from madclip.files import write_whole
from madclip.fitting import Run
from madclip.metrics.compare import mean_interval
from madclip.progress import silent
from madclip.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from madclip.data.samples import Dataset
    from madclip.progress import Progress

FORMAT = 1


class Each(Protocol):
    """`map`, or what works like it."""

    def __call__(self, work: Callable[[int], None], seeds: Sequence[int], /) -> Iterable[None]:
        """Call the work with each seed."""


class FitArguments(TypedDict, total=False):
    """What `repeat` hands on to `MadCLIP.fit`, which explains it."""

    shots: int | tuple[int, int]
    folds: int
    operating_point: str


def repeat(
    detector: MadCLIP,
    data: Dataset,
    out: Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    same_patient: bool = False,
    run: Run = Run(),  # noqa: B008  (frozen)
    each: Each = map,
    **fit: Unpack[FitArguments],
) -> dict[str, Any]:
    """Draw shots, fit and evaluate once for each seed; a seed whose evaluation is there is not repeated.

    What a draw has seen is not measured in its evaluation, see `evaluate`.

    Args:
        detector: Its recipe, backbone and objective are those of every draw; it is not fitted itself.
        data: Shots and test images.
        out: Folder that gets seed-N/detector and seed-N/evaluation.json, and summary.json.
        seeds: Each determines a draw, the initial weights and the order of images.
        same_patient: As for `evaluate`; every metric then carries the mark.
        run: Cache, which epoch is kept, and who is told of progress; each stage has the seed as its part.
        each: Calls the work with each seed, such as `run` of an executor: processes see `out` and the images.
        **fit: `shots`, `folds` and `operating_point` as for `MadCLIP.fit`.

    Returns:
        For every metric `mean`, `std`, `ci` (Student's t over the draws, cut to 0..1), `values` and `optimistic` where
        they are that; `marks`, which say why; and `runs`.

    Raises:
        CheckpointError: `out` holds runs of another experiment.
        RecipeError: There is no seed, or a single fit was to be resumed.
    """
    if not len(seeds):
        raise RecipeError("repeat needs at least one seed")
    if run.checkpoint is not None or run.resume:
        raise RecipeError("repeat goes on with the draws that are missing, and takes no checkpoint of a single fit")
    given = FitArguments(**{"shots": 16, "folds": 4, "operating_point": "youden", **fit})
    plan = {
        "format": FORMAT,
        "data": data.root.name,
        "images": _digest(data),
        "content": data.digest(),
        "recipe": detector.recipe.to_dict(),
        "backbone": detector.backbone.fingerprint,
        "objective": detector.objective,
        "shots": given["shots"] if isinstance(given["shots"], int) else list(given["shots"]),
        "select": run.select,
        "arguments": {"folds": given["folds"], "operating_point": given["operating_point"]}
        | ({"same_patient": True} if same_patient else {}),
    }
    _check_plan(out, plan)
    work = Draw(detector, data, out, given, run, same_patient=same_patient)
    left = [seed for seed in seeds if not _place(out, seed).exists()]
    for done, _ in enumerate(each(work, left), len(seeds) - len(left) + 1):
        run.progress("draws", done, len(seeds))
    return _summary(out, plan, seeds)


class Draw:
    """Fits and evaluates the draw of one seed, and writes both; it goes to other processes without what is loaded.

    Args:
        detector: As for `repeat`, like all that follows.
    """

    def __init__(
        self, detector: MadCLIP, data: Dataset, out: Path, fit: FitArguments, run: Run, *, same_patient: bool
    ) -> None:
        self.detector, self.data, self.out = detector, data, out
        self.fit, self.run, self.same_patient = fit, run, same_patient

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"run": dataclasses.replace(self.run, progress=silent)}  # nobody watches a worker

    def __call__(self, seed: int) -> None:
        """Do a draw."""
        one = MadCLIP(self.detector.recipe, backbone=self.detector.backbone, objective=self.detector.objective)
        how = dataclasses.replace(self.run, progress=_of_seed(self.run.progress, seed))
        start = time.perf_counter()
        one.fit(self.data, seed=seed, run=how, **self.fit)
        one.save(self.out / f"seed-{seed}" / "detector")
        fitted = time.perf_counter()
        result = evaluate(one, self.data, same_patient=self.same_patient, progress=how.progress)
        seconds = {"fit": fitted - start, "evaluate": time.perf_counter() - fitted}
        _write(_place(self.out, seed), result.to_json() | {"seconds": seconds})


def _digest(data: Dataset) -> str:
    """What identifies images and labels, as they were read: other classes, slices or patients give other numbers."""
    names = [
        [data.name(one.image), one.label, one.mask and data.name(one.mask), one.patient, one.split, one.volume]
        for one in data.samples
    ]
    return sha256(json.dumps(names).encode("utf-8", "surrogateescape")).hexdigest()


def _place(out: Path, seed: int) -> Path:
    return out / f"seed-{seed}" / "evaluation.json"


def _summary(out: Path, plan: dict[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """What all draws say together, which is written down, and each of them."""
    runs = [{"seed": seed, **_read(_place(out, seed))} for seed in seeds]
    names = [name for name in runs[0] if f"{name}_ci" in runs[0]]
    marks = _marks(plan)
    metrics = {
        name: _summarise([run.get(name) for run in runs]) | ({"optimistic": True} if marks else {}) for name in names
    }
    summary = {"plan": plan, "seeds": list(seeds), "marks": marks} | metrics
    _write(out / "summary.json", summary)
    return summary | {"runs": [{k: v for k, v in run.items() if k != "images"} for run in runs]}


def _marks(plan: dict[str, Any]) -> list[str]:
    """Why every number of an experiment is optimistic, a sentence for each reason."""
    reasons = {
        "The epoch was selected on test images": plan["select"] == "test-best",
        "Other images of patients and volumes that gave shots are measured too": "same_patient" in plan["arguments"],
    }
    return [f"{reason}: {OPTIMISTIC}." for reason, holds in reasons.items() if holds]


def _of_seed(progress: Progress, seed: int) -> Progress:
    """Progress whose part begins with the seed."""

    def told(stage: str, done: int, total: int, /, *, loss: float | None = None, part: str = "") -> None:
        progress(stage, done, total, loss=loss, part=f"seed {seed}, {part}" if part else f"seed {seed}")

    return told


def _summarise(values: list[float | None]) -> dict[str, Any]:
    """Mean, standard deviation and interval over draws of a metric, all of which lie in 0..1."""
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "std": None, "ci": None, "values": values}
    estimate = mean_interval(known, bounds=(0, 1))
    spread = stdev(known) if len(known) > 1 else None
    ci = None if estimate.low is None else [estimate.low, estimate.high]
    return {"mean": estimate.value, "std": spread, "ci": ci, "values": values}


def _check_plan(out: Path, plan: dict[str, Any]) -> None:
    """Write down what is run in a folder, or refuse where something else was run there."""
    path = out / "plan.json"
    if path.exists():
        known = _read(path)
        if isinstance(known.get("recipe"), dict):
            known["recipe"] = Recipe.from_dict(known["recipe"]).to_dict()  # fields may have come or gone since
        known.setdefault("content", plan["content"])  # which runs did not write down once
        if known != plan:
            changed = sorted(key for key in {*plan, *known} if known.get(key) != plan.get(key))
            raise CheckpointError(
                f"{out}: holds another experiment ({', '.join(changed)} differ); choose another folder"
            )
    _write(path, plan)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object that an earlier run wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged; remove it, or choose another folder") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: damaged; remove it, or choose another folder")
    return found


def _write(path: Path, values: dict[str, Any]) -> None:
    write_whole(path, json.dumps(values, indent=1, allow_nan=False) + "\n")
