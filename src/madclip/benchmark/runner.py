"""Runs the cells of an experiment, each once: a run that was stopped goes on, and any number of workers gives the same.

A finished cell is one file, renamed into place; `results.csv` is made of these files alone, none of
which names an image or a patient.
"""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any

from madclip.benchmark.cell import CellWork
from madclip.errors import CheckpointError, DataError, MadCLIPError
from madclip.files import write_whole
from madclip.progress import silent
from madclip.scale.executor import LocalProcesses

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from madclip.benchmark.experiments import Cell
    from madclip.benchmark.plan import Plan
    from madclip.progress import Progress
    from madclip.scale.executor import Executor

FORMAT = 1
COLUMNS = ("experiment", "set", "shots", "seed", "method", "select", "metric", "value", "low", "high")


def run(
    cells: Sequence[Cell],
    plan: Plan,
    out: Path,
    *,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> list[str]:
    """Run what is not finished yet; `results.csv` then holds every finished cell.

    Args:
        cells: The cells of the experiment; those of sets that `plan.folders` lacks are left out.
        plan: What all cells share.
        out: Gets plan.json, cells/ and results.csv.
        executor: Where cells run; None runs them in this process.
        progress: Told how many cells are done.

    Returns:
        One line for every cell that failed.

    Raises:
        CheckpointError: `out` holds another experiment.
        DataError: It cannot be written, or a process was ended from outside.
    """
    work = CellWork(plan, out / "cells")
    _check_plan(out, plan, work)
    there = [cell for cell in cells if {cell.source, cell.target} <= set(plan.folders)]
    todo = [cell for cell in there if not cell.path(out / "cells").exists()]
    finished = len(there) - len(todo)
    progress("cells", finished, len(there))
    failed: list[str] = []
    results = (executor or LocalProcesses(1, plan.threads)).run(work, todo, lost=_lost)
    for done, (cell, error) in enumerate(zip(todo, results, strict=True), finished + 1):
        if error:
            failed.append(f"{cell}: {error}")
        progress("cells", done, len(there))
    _write_csv(out, plan, read_cells(out, there))
    return sorted(failed)


def _lost(_: Cell) -> MadCLIPError | None:
    return DataError("it ended its worker each time, perhaps for want of memory")


def read_cells(out: Path, cells: Sequence[Cell]) -> dict[Cell, dict[str, Any]]:
    """What was measured in the cells that are finished; `CellWork` says what a cell holds.

    Raises:
        CheckpointError: A file is damaged.
    """
    found = {}
    for cell in sorted(cells):
        path = cell.path(out / "cells")
        if path.exists():
            try:
                found[cell] = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{path}: damaged; delete it and run again") from error
    return found


def _check_plan(out: Path, plan: Plan, work: CellWork) -> None:
    """Write plan.json, or see that the one that is there says the same."""
    path = out / "plan.json"
    facts: dict[str, Any] = json.loads(json.dumps(plan.to_dict() | work.facts() | {"format": FORMAT}))
    if path.exists():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
            sets = known.pop("sets")
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path}: damaged; choose another folder") from error
        changed = [key for key in facts if key != "sets" and known.get(key) != facts[key]]
        # Runs did not write down the content once: what a set says now is added to what it said then.
        changed += [name for name, now in facts["sets"].items() if now | sets.get(name, {}) != now]
        if changed:
            differ = ", ".join(sorted(changed))
            raise CheckpointError(f"{out}: holds another experiment ({differ} differ); choose another folder")
        facts["sets"] = dict(sorted((sets | facts["sets"]).items()))
    _write(path, json.dumps(facts, indent=1) + "\n")


def _write_csv(out: Path, plan: Plan, found: dict[Cell, dict[str, Any]]) -> None:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for cell, facts in sorted(found.items()):
        named = (plan.experiment, cell.set, cell.shots, cell.seed, cell.method, plan.selected(cell.method))
        for metric, values in facts["metrics"].items():
            if values[0] is not None:
                table.writerow((*named, metric, *("" if value is None else value for value in values)))
    _write(out / "results.csv", text.getvalue())


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error})") from error
