"""The same experiment over several draws of shots: every run, and what they say together."""

from __future__ import annotations

import json
import os
import time
from statistics import stdev
from typing import TYPE_CHECKING, Any

from madclip.backbones.spec import Backbone
from madclip.detector import MadCLIP
from madclip.errors import CheckpointError
from madclip.evaluation.protocol import evaluate
from madclip.fitting import Run
from madclip.metrics.compare import mean_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from madclip.data.samples import Dataset
    from madclip.recipe import Recipe
    from madclip.training.cache import TokenCache
    from madclip.training.selection import Select

FORMAT = 1


def repeat(
    data: Dataset,
    out: Path,
    *,
    recipe: Recipe,
    backbone: str | Path | Backbone,
    objective: str,
    shots: int | tuple[int, int] = 16,
    seeds: Sequence[int] = (0, 1, 2),
    select: Select = "last",
    progress: Callable[[str], Callable[..., None]] | None = None,
    device: str = "auto",
    cache: TokenCache | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Draw shots, fit and evaluate once for each seed; a seed whose evaluation is there is not repeated.

    Args:
        data: Shots and test images.
        out: Gets seed-N/detector and seed-N/evaluation.json, and summary.json.
        recipe: Of the detectors.
        backbone: As for `MadCLIP`.
        objective: As for `MadCLIP`.
        shots: Images of each class.
        seeds: Of the draws, the initial weights and the order.
        select: Which epoch is kept.
        device: As for `MadCLIP`.
        cache: Where tokens are kept.
        progress: Given a name, returns what is called with (done, total) or (done, total, loss).
        arguments: Further ones of `MadCLIP.fit`.

    Returns:
        For every metric `mean`, `std`, `ci` (Student's t over the draws) and `values`; and `runs`.

    Raises:
        CheckpointError: `out` holds runs of another experiment.
    """
    plan = {
        "format": FORMAT,
        "data": data.root.name,
        "recipe": recipe.to_dict(),
        "backbone": backbone.fingerprint if isinstance(backbone, Backbone) else str(backbone),
        "objective": objective,
        "shots": shots if isinstance(shots, int) else list(shots),
        "select": select,
        "arguments": {k: v for k, v in arguments.items() if isinstance(v, (int, float, str))},
    }
    _check_plan(out, plan)
    runs = []
    for seed in seeds:
        path = out / f"seed-{seed}" / "evaluation.json"
        if not path.exists():
            detector = MadCLIP(recipe, backbone=backbone, objective=objective, device=device)
            start = time.perf_counter()
            shown = progress or (lambda _: lambda *_: None)
            detector.fit(data, shots=shots, seed=seed, run=Run(cache=cache, select=select), **arguments)
            detector.save(out / f"seed-{seed}" / "detector")
            fitted = time.perf_counter()
            result = evaluate(detector, data, on_image=shown(f"seed {seed}: evaluate"))
            seconds = {"fit": fitted - start, "evaluate": time.perf_counter() - fitted}
            _write(path, result.to_json() | {"seconds": seconds})
        runs.append({"seed": seed, **json.loads(path.read_text())})
    names = [name for name in runs[0] if f"{name}_ci" in runs[0]]
    summary = {"plan": plan, "seeds": list(seeds)} | {name: _summarise([run[name] for run in runs]) for name in names}
    _write(out / "summary.json", summary)
    return summary | {"runs": [{k: v for k, v in run.items() if k != "images"} for run in runs]}


def _summarise(values: list[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "std": None, "ci": None, "values": values}
    estimate = mean_interval(known)
    spread = stdev(known) if len(known) > 1 else None
    ci = None if estimate.low is None else [estimate.low, estimate.high]
    return {"mean": estimate.value, "std": spread, "ci": ci, "values": values}


def _check_plan(out: Path, plan: dict[str, Any]) -> None:
    path = out / "plan.json"
    if path.exists():
        try:
            known = json.loads(path.read_text())
        except ValueError as error:
            raise CheckpointError(f"{path}: damaged; choose another folder") from error
        if known != plan:
            changed = sorted(key for key in plan if known.get(key) != plan[key])
            raise CheckpointError(
                f"{out}: holds another experiment ({', '.join(changed)} differ); choose another folder"
            )
    _write(path, plan)


def _write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
    partial.replace(path)
