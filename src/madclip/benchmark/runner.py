"""Runs the cells of an experiment, each once: a run that was stopped goes on, and any number of workers gives the same.

A finished cell is one file, renamed into place; `results.csv` is made of these files alone.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from madclip.benchmark.experiments import ABLATIONS, Cell
from madclip.benchmark.registry import registered
from madclip.errors import CheckpointError, DataError, MadCLIPError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from madclip.backbones.spec import Backbone
    from madclip.data.samples import Dataset
    from madclip.detector import MadCLIP
    from madclip.evaluation.protocol import PixelSize
    from madclip.evaluation.selection import Select

FORMAT = 1
COLUMNS = ("experiment", "set", "shots", "seed", "method", "metric", "value", "low", "high")
METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro")


@dataclass(frozen=True)
class Plan:
    """All that a number depends on besides its cell.

    Attributes:
        experiment: Its name.
        backbone: As for `MadCLIP`.
        folders: Where each set is.
        objectives: What the images of each set show, by set.
        changes: Of the recipe, for MadCLIP's own.
        select: Which epoch is kept, for MadCLIP's own.
        pixel_size: Where pixel metrics are computed.
        threads: Of each worker.
        device: As for `MadCLIP`.
    """

    experiment: str
    backbone: str
    folders: dict[str, Path]
    objectives: dict[str, str]
    changes: dict[str, Any]
    select: Select = "last"
    pixel_size: PixelSize = "recipe"
    threads: int = 1
    device: str = "auto"

    def facts(self) -> dict[str, Any]:
        """What must be the same for a run to go on; folders may move."""
        facts = asdict(self)
        facts["folders"] = sorted(self.folders)
        plain: dict[str, Any] = json.loads(json.dumps({"format": FORMAT} | facts))
        return plain


def find_sets(root: Path) -> dict[str, Path]:
    """Data sets below a folder, by registered name or by the folder's own.

    Raises:
        DataError: There is none.
    """
    from madclip.data.samples import load_dataset

    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    found: dict[str, Path] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            load_dataset(folder)
            name = registered(folder.name).name
        except RecipeError:
            name = folder.name
        except DataError:
            continue
        if name in found:
            raise DataError(f"{folder} and {found[name]} are both {name}: keep one of them in {root}")
        found[name] = folder
    if not found:
        raise DataError(f"{root}: no folder in it is a data set; `madclip data check FOLDER` says why")
    return found


def run(
    cells: Sequence[Cell],
    plan: Plan,
    out: Path,
    *,
    workers: int = 1,
    on_cell: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Run what is not finished yet; `results.csv` then holds every finished cell.

    Args:
        cells: Of the experiment; those of sets that `plan.folders` lacks are left out.
        plan: Of all cells.
        out: Gets plan.json, cells/ and results.csv.
        workers: Processes.
        on_cell: Called with (cells done, cells).

    Returns:
        One line for every cell that failed.

    Raises:
        CheckpointError: `out` holds another experiment.
        DataError: It cannot be written.
    """
    _check_plan(out, plan)
    there = [cell for cell in cells if {cell.source, cell.target} <= set(plan.folders)]
    todo = [cell for cell in there if not _path(out, cell).exists()]
    failed: list[str] = []
    done = len(there) - len(todo)
    if on_cell:
        on_cell(done, len(there))
    for cell, error in _each(todo, plan, out, workers):
        if error:
            failed.append(f"{_title(cell)}: {error}")
        done += 1
        if on_cell:
            on_cell(done, len(there))
    _write_csv(out, plan, read_cells(out, there))
    return sorted(failed)


def read_cells(out: Path, cells: Sequence[Cell]) -> dict[Cell, dict[str, Any]]:
    """What was measured in the cells that are finished: `metrics` and, for every test image, `labels` and `scores`.

    Raises:
        CheckpointError: A file is damaged.
    """
    found = {}
    for cell in sorted(cells):
        path = _path(out, cell)
        if path.exists():
            try:
                found[cell] = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: damaged; delete it and run again") from error
    return found


def _each(cells: Sequence[Cell], plan: Plan, out: Path, workers: int) -> Iterator[tuple[Cell, MadCLIPError | None]]:
    """Run cells and say of each, when it is finished, what went wrong; here where there is one worker."""
    if workers == 1:
        for cell in cells:
            yield cell, _try_cell(cell, plan, out)
        return
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        running = {pool.submit(_try_cell, cell, plan, out): cell for cell in cells}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _try_cell(cell: Cell, plan: Plan, out: Path) -> MadCLIPError | None:
    """Run a cell with the plan's number of threads, which results depend on."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        _run_cell(cell, plan, out)
    except MadCLIPError as error:
        return error
    finally:
        torch.set_num_threads(before)
    return None


def _run_cell(cell: Cell, plan: Plan, out: Path) -> None:
    from madclip.evaluation.protocol import evaluate

    source, target = _load(plan.folders[cell.source]), _load(plan.folders[cell.target])
    detector = _fit(cell, plan, source)
    result = evaluate(detector, target, pixel_size=plan.pixel_size)
    values = result.to_json(images=False)
    facts = {
        "cell": asdict(cell),
        "metrics": {name: [values.get(name), *(values.get(f"{name}_ci") or (None, None))] for name in METRICS},
        "labels": [row.label for row in result.rows],
        "scores": [row.score for row in result.rows],
        "provenance": result.provenance,
        "warnings": result.warnings,
    }
    _write(_path(out, cell), json.dumps(facts) + "\n")


def _fit(cell: Cell, plan: Plan, data: Dataset) -> Any:
    """A fitted detector: thresholds are not part of the tables, so MadCLIP's own are not cross-fitted."""
    from madclip.benchmark.baselines import BASELINES, load_baseline
    from madclip.detector import MadCLIP
    from madclip.evaluation.selection import fit_selected
    from madclip.recipe import Recipe
    from madclip.training.tokens import TokenCache

    objective, cache_ = plan.objectives[cell.source], TokenCache()
    if cell.method in BASELINES:
        size = plan.changes.get("image_size", Recipe().image_size)
        backbone = _backbone(plan.backbone, size, None, plan.device)
        baseline = load_baseline(cell.method)(backbone, objective=objective)
        return baseline.fit(data, shots=cell.shots, seed=cell.seed, cache=cache_)
    preset, _, letter = cell.method.partition("-")
    recipe = Recipe.preset(preset, **plan.changes)
    if letter:
        recipe = recipe.replace(**ABLATIONS[letter][1])
    activation = None if recipe.backbone_activation == "weights" else recipe.backbone_activation
    backbone = _backbone(plan.backbone, recipe.image_size, activation, plan.device)
    detector: MadCLIP = MadCLIP(recipe, backbone=backbone, objective=objective)
    return fit_selected(detector, data, plan.select, shots=cell.shots, seed=cell.seed, folds=0, cache=cache_)


@cache
def _backbone(source: str, image_size: int, activation: Any, device: str) -> Backbone:
    from madclip.backbones import load_backbone

    return load_backbone(source, image_size=image_size, activation=activation, device=device, dtype="auto")


@cache
def _load(folder: Path) -> Dataset:
    from madclip.data.samples import load_dataset

    return load_dataset(folder)


def _title(cell: Cell) -> str:
    return f"{cell.set}, {cell.shots} shots, seed {cell.seed}, {cell.method}"


def _path(out: Path, cell: Cell) -> Path:
    digest = hashlib.sha256(json.dumps(asdict(cell), sort_keys=True).encode()).hexdigest()[:16]
    return out / "cells" / f"{digest}.json"


def _check_plan(out: Path, plan: Plan) -> None:
    path = out / "plan.json"
    facts = plan.facts()
    if not path.exists():
        _write(path, json.dumps(facts, indent=1) + "\n")
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged; choose another folder") from error
    if changed := sorted(key for key in facts if known.get(key) != facts[key]):
        raise CheckpointError(f"{out}: holds another experiment ({', '.join(changed)} differ); choose another folder")


def _write_csv(out: Path, plan: Plan, found: dict[Cell, dict[str, Any]]) -> None:
    rows = [
        (plan.experiment, cell.set, cell.shots, cell.seed, cell.method, metric, *values)
        for cell, facts in sorted(found.items())
        for metric, values in facts["metrics"].items()
        if values[0] is not None
    ]
    partial = out / f"results.csv.{os.getpid()}"
    with partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(["" if value is None else value for value in row] for row in rows)
    partial.replace(out / "results.csv")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error
