"""Runs the cells of an experiment, each once: a run that was stopped goes on, and any number of workers gives the same.

A finished cell is one file, renamed into place; `results.csv` is made of these files alone, none of
which names an image or a patient.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from multiprocessing import connection, get_context, parent_process
from threading import Thread
from typing import TYPE_CHECKING, Any

from madclip.benchmark.experiments import ABLATIONS, Cell
from madclip.benchmark.registry import all_sets, registered
from madclip.errors import CheckpointError, DataError, MadCLIPError, RecipeError
from madclip.recipe import PRESETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    import torch

    from madclip.backbones.spec import Backbone
    from madclip.data.samples import Dataset
    from madclip.detector import MadCLIP
    from madclip.evaluation.protocol import PixelSize
    from madclip.training.selection import Select

FORMAT = 1
COLUMNS = ("experiment", "set", "shots", "seed", "method", "select", "metric", "value", "low", "high")
METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro")
REMEMBERED = 2 * 2**30
"""Bytes of test tokens that a process keeps for the next cell of the same set."""


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

    def image_size(self) -> int:
        """Side in pixels of what the backbone sees."""
        from madclip.recipe import Recipe

        return Recipe(**self.changes).image_size

    def facts(self) -> dict[str, Any]:
        """What must be the same for a run to go on. Folders may move, and sets may join."""
        backbone = _backbone(self.backbone, self.image_size(), None, self.device)
        sets = {name: _load(folder) for name, folder in self.folders.items()}
        facts = asdict(self) | {
            "format": FORMAT,
            "fingerprint": backbone.fingerprint,
            "dtype": str(backbone.dtype),
            "device": str(backbone.device),
            "sets": {
                name: {
                    "objective": self.objectives[name],
                    "shot_pool": len(data.shot_pool),
                    "test_pool": len(data.test_pool),
                }
                for name, data in sets.items()
            },
        }
        del facts["folders"], facts["objectives"], facts["backbone"]
        plain: dict[str, Any] = json.loads(json.dumps(facts))
        return plain


def find_sets(root: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Data sets below a folder, by registered name or by the folder's own; and why other folders are none, by name.

    Raises:
        DataError: There is none, or one twice.
    """
    from madclip.data.load import load_dataset

    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    found: dict[str, Path] = {}
    others: dict[str, str] = {}
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            load_dataset(folder)
            name = registered(folder.name).name
        except RecipeError:
            name = folder.name
        except DataError as error:
            others[folder.name] = str(error)
            continue
        if name in found:
            raise DataError(f"{folder} and {found[name]} are both {name}: keep one of them in {root}")
        found[name] = folder
    if not found:
        raise DataError(f"{root}: no folder in it is a data set; `madclip data check FOLDER` says why")
    return found, others


def own_splits(folders: dict[str, Path]) -> set[str]:
    """Sets that were prepared here from originals whose split was not published."""
    return {
        name
        for name, folder in folders.items()
        if (folder / "prepared.json").exists() and any(name == one.name and one.own_split for one in all_sets())
    }


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
        DataError: It cannot be written, or a process was ended from outside.
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
    """What was measured in the cells that are finished.

    `metrics` as value, low, high; of every test image in one order `labels`, `scores` and, where patients are known,
    `groups`, their numbers; `images`, a digest of that order.

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
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_end_with_parent) as pool:
        running = {pool.submit(_try_cell, cell, plan, out): cell for cell in cells}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a process was ended from outside, perhaps for want of memory: the same command goes on; "
                "try fewer --workers"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for its next cell for ever."""
    parent = parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    Thread(target=watch, daemon=True).start()


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
    with _remembered(detector.backbone, cell.target):
        result = evaluate(detector, target, pixel_size=plan.pixel_size)
    values = result.to_json(images=False)
    patients = [row.patient for row in result.rows]
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patients))}
    names = json.dumps([row.name for row in result.rows])
    facts = {
        "cell": asdict(cell),
        "metrics": {name: [values.get(name), *(values.get(f"{name}_ci") or (None, None))] for name in METRICS},
        "labels": [row.label for row in result.rows],
        "scores": [row.score for row in result.rows],
        "groups": None if None in numbers else [numbers[patient] for patient in patients],
        "images": hashlib.sha256(names.encode()).hexdigest(),
        "provenance": result.provenance,
        "warnings": result.warnings,
    }
    _write(_path(out, cell), json.dumps(facts) + "\n")


def _fit(cell: Cell, plan: Plan, data: Dataset) -> Any:
    """A fitted detector: thresholds are not part of the tables, so MadCLIP's own are not cross-fitted."""
    from madclip.detector import MadCLIP
    from madclip.fitting import Run
    from madclip.methods import BASELINES, load_baseline
    from madclip.recipe import Recipe
    from madclip.training.cache import TokenCache

    objective, cache_ = plan.objectives[cell.source], TokenCache()
    if cell.method in BASELINES:
        backbone = _backbone(plan.backbone, plan.image_size(), None, plan.device)
        baseline = load_baseline(cell.method)(backbone, objective=objective)
        return baseline.fit(data, shots=cell.shots, seed=cell.seed, cache=cache_)
    preset, _, letter = cell.method.partition("-")
    recipe = Recipe.preset(preset, **plan.changes)
    if letter:
        recipe = recipe.replace(**ABLATIONS[letter][1])
    activation = None if recipe.backbone_activation == "weights" else recipe.backbone_activation
    backbone = _backbone(plan.backbone, recipe.image_size, activation, plan.device)
    detector: MadCLIP = MadCLIP(recipe, backbone=backbone, objective=objective)
    return detector.fit(data, shots=cell.shots, seed=cell.seed, folds=0, run=Run(cache=cache_, select=plan.select))


@cache
def _backbone(source: str, image_size: int, activation: Any, device: str) -> Backbone:
    from madclip.backbones import load_backbone

    return load_backbone(source, image_size=image_size, activation=activation, device=device, dtype="auto")


_memory: dict[tuple[str, ...], list[torch.Tensor]] = {}


@contextmanager
def _remembered(backbone: Backbone, name: str) -> Iterator[None]:
    """Within it, the backbone does not encode again what it encoded for another cell of the set of this name."""
    import torch

    plain = backbone.encode_image
    if _memory and next(iter(_memory))[0] != name:
        _memory.clear()
    room = REMEMBERED - sum(stream.nbytes for streams in _memory.values() for stream in streams)

    def encode(
        pixels: torch.Tensor, *, windows: torch.Tensor | None = None, after_tap: Any = None
    ) -> list[torch.Tensor]:
        nonlocal room
        if after_tap is not None or backbone.device.type != "cpu":
            return plain(pixels, windows=windows, after_tap=after_tap)
        tensors = [tensor.contiguous() for tensor in (pixels, windows) if tensor is not None]
        digests = [hashlib.sha256(tensor.view(torch.uint8).numpy().data).hexdigest() for tensor in tensors]
        key = (name, backbone.fingerprint, *digests)
        if (known := _memory.get(key)) is not None:
            return list(known)
        streams = plain(pixels, windows=windows)
        if (size := sum(stream.nbytes for stream in streams)) <= room:
            room -= size
            _memory[key] = list(streams)
        return streams

    backbone.encode_image = encode  # type: ignore[method-assign]
    try:
        yield
    finally:
        del backbone.encode_image


@cache
def _load(folder: Path) -> Dataset:
    from madclip.data.load import load_dataset

    return load_dataset(folder)


def _title(cell: Cell) -> str:
    return f"{cell.set}, {cell.shots} shots, seed {cell.seed}, {cell.method}"


def _path(out: Path, cell: Cell) -> Path:
    digest = hashlib.sha256(json.dumps(asdict(cell), sort_keys=True).encode()).hexdigest()[:16]
    return out / "cells" / f"{digest}.json"


def _check_plan(out: Path, plan: Plan) -> None:
    path = out / "plan.json"
    facts = plan.facts()
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            sets = known.pop("sets")
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path}: damaged; choose another folder") from error
        changed = [key for key in facts if key != "sets" and known.get(key) != facts[key]]
        changed += [name for name in facts["sets"] if sets.get(name, facts["sets"][name]) != facts["sets"][name]]
        if changed:
            differ = ", ".join(sorted(changed))
            raise CheckpointError(f"{out}: holds another experiment ({differ} differ); choose another folder")
        facts["sets"] = dict(sorted((sets | facts["sets"]).items()))
    _write(path, json.dumps(facts, indent=1) + "\n")


def selected(method: str, plan: Plan) -> str:
    """How the epoch was selected; nothing where a method selects none."""
    return plan.select if method.partition("-")[0] in PRESETS else ""


def _write_csv(out: Path, plan: Plan, found: dict[Cell, dict[str, Any]]) -> None:
    rows = [
        (plan.experiment, cell.set, cell.shots, cell.seed, cell.method, selected(cell.method, plan), metric, *values)
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
