"""`madclip bench`: the tables of the paper, the same on any folder of data sets, and how fast this machine is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from madclip.backbones.names import default_recipe
from madclip.cli.console import print_facts, shown_progress
from madclip.cli.options import (
    TINY_NOTE,
    Address,
    Changes,
    Device,
    Gpus,
    Json,
    Overwrite,
    Pool,
    SelectOption,
    Threads,
    Workers,
    executor_of,
)
from madclip.cli.outputs import check_file, check_runs
from madclip.errors import DataError, RecipeError
from madclip.files import write_between, write_whole

bench_app = typer.Typer(help="Fill the paper's tables, compare methods on your own sets, time this machine.")
benchmark_app = typer.Typer(help="Older name of `bench speed`.", no_args_is_help=True)

EXPERIMENTS = {
    "table1": "Fill the paper's Table 1: six sets, 16 shots.\n\nSixteen images of each class are drawn.",
    "table2": "Fill the paper's Table 2: six sets, 2 to 8 shots.\n\nTwo, 4 and 8 images of each class are drawn.",
    "table3": "Fill the paper's Table 3: from one set to another.\n\nShots are of one set, test images of the other.",
    "ablations": "Change one switch of the recipe at a time.\n\nThis is done on every data set in the folder.",
    "normal-only": "Learn from normal images alone.\n\nMethods learn from 1 to 16 normal images of every set.",
    "zero-shot": "Go by texts alone.\n\nNo image of any data set in the folder is learned from.",
    "joint": "Learn several modalities at once.\n\nOne detector of all sets in the folder, beside one of each.",
    "real": "Compare methods on every data set in a folder.\n\nThey learn from 2, 4, 8 and 16 images of each class.",
}
"""What `madclip bench` runs, by the name of its command."""


@benchmark_app.callback()
def _benchmark() -> None:
    """Older name of `bench speed`."""


@benchmark_app.command("speed")
@bench_app.command("speed")
def speed(
    backbone: Annotated[
        str,
        typer.Option(
            "--backbone",
            "-b",
            help="As for fit; random-vit-l-14 and random-vit-b-16 have random weights in those shapes.",
        ),
    ] = "tiny",
    only: Annotated[list[str] | None, typer.Option(help="Measure this row only; can be repeated.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Measure the slow rows too: a fit and a refit with the backbone.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A JSON file, written anew after each row.")] = None,
    overwrite: Overwrite = False,
    docs: Annotated[
        Path | None,
        typer.Option(help="A Markdown page on which the table goes between the <!-- speed BACKBONE --> marks."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how fast this machine does each step.

    A fit step, tokens, prediction by each engine, refit and start are timed, beside the rate of matrix products.
    """
    from dataclasses import asdict

    from madclip.benchmark.speed import Timing, markdown, measure_all
    from madclip.benchmark.speed_rows import ROWS, SLOW

    if out is not None:
        check_file(out, overwrite=overwrite)
    rows: list[Any] = []
    facts: dict[str, Any] = {"rows": []}
    for row in measure_all(list(only or (*ROWS, *(SLOW if every else ()))), backbone):
        rows.append(row)
        facts["rows"].append(asdict(row))
        said = f"{row.seconds:.3g} s per {row.per}" if isinstance(row, Timing) else row.reason
        typer.echo(f"{row.name}: {said}", err=True)
        if out:
            write_whole(out, json.dumps(facts, indent=1) + "\n")
    text = f"{_machine(rows)}\n\n{markdown(rows)}"
    if docs:
        write_between(docs, f"speed {backbone}", text)
    print_facts(as_json, facts, text)
    if any(not isinstance(row, Timing) and row.failed for row in rows):
        raise typer.Exit(2)


def _machine(rows: list[Any]) -> str:
    import os
    import platform

    import torch

    from madclip.benchmark.speed import Timing

    measured = [row for row in rows if isinstance(row, Timing)]
    rates = "".join(
        f"; {kind} matrix products at {min(known):.0f} to {max(known):.0f} GFLOP/s"
        for kind in ("fp32", "bf16")
        if (known := [rate for row in measured if (rate := getattr(row, f"matmul_gflops_{kind}"))])
    )
    threads = measured[0].threads if measured else torch.get_num_threads()
    return f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}{rates}."


def experiment(
    context: typer.Context,
    data: Annotated[Path, typer.Option(help="A folder of data sets, each in a folder of its own.")],
    out: Annotated[Path, typer.Option(help="The folder for results; a run that was stopped goes on there.")],
    backbone: Annotated[
        str,
        typer.Option(
            "--backbone",
            "-b",
            help="As for fit, but tiny where none is named: every method works on one backbone, MVFA on no other.",
        ),
    ] = "tiny",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names of methods separated by commas; all takes every method of comparison too. By default the "
            "recipe that goes with the backbone, madclip or fused."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many draws of shots are made for each cell.")] = 3,
    shots: Annotated[
        str | None, typer.Option(help="Numbers of shots in place of the experiment's own, such as 4,16.")
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(metavar="SET=TEXT", help="What the images of a set show; registered sets bring theirs."),
    ] = None,
    changes: Changes = None,
    select: SelectOption = "last",
    pool: Pool = "local",
    address: Address = None,
    workers: Workers = None,
    threads: Threads = 1,
    gpus: Gpus = 0,
    device: Device = "auto",
    docs: Annotated[
        Path | None, typer.Option(help="A Markdown page on which the tables replace what its marks enclose.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the experiment that the command is named after; write its tables as CSV, Markdown, LaTeX and HTML."""
    from madclip.benchmark.experiments import check_experiment
    from madclip.benchmark.plan import Plan
    from madclip.benchmark.runner import run
    from madclip.recipe import parse_field

    name = check_experiment(str(context.info_name))
    executor = executor_of(pool, address, workers, threads, gpus)
    check_runs(out, "bench")
    cells, runnable, folders, missing = _cells_here(
        name, data, _methods(methods, name, backbone), seeds, _numbers(shots)
    )
    plan = Plan(
        experiment=name,
        backbone=backbone,
        folders=folders,
        objectives=_objectives(data, folders, objective or []),
        changes=dict(parse_field(text) for text in changes or []),
        select=select,
        threads=threads,
        device=device,
    )
    if backbone == "tiny":
        typer.echo(TINY_NOTE, err=True)
    with shown_progress() as progress:
        failed = run(runnable, plan, out, executor=executor, progress=progress)
    text, finished = _write_tables(plan, cells, out, docs)
    facts = {"experiment": name, "cells": len(cells), "finished": finished, "missing_sets": missing}
    print_facts(as_json, facts | {"failed": failed, "results": str(out / "results.csv")}, text)
    for line in failed:
        typer.echo(line, err=True)
    if failed:
        raise typer.Exit(2)


for _name, _help in EXPERIMENTS.items():
    bench_app.command(_name, help=_help)(experiment)


def _cells_here(
    name: Any, data: Path, methods: list[str], seeds: int, shots: list[int]
) -> tuple[list[Any], list[Any], dict[str, Path], list[str]]:
    """The cells of an experiment, those that can be run, the folders of its sets, and the names of sets that lack.

    What a folder was taken for, and what is missing, is said on standard error.
    """
    from madclip.benchmark.experiments import cells_of, needs_masks
    from madclip.benchmark.plan import find_sets

    found = find_sets(data)
    cells = cells_of(name, list(found.folders), methods, seeds, shots)
    used = {one for cell in cells for one in (cell.source, cell.target)}
    folders = {one: path for one, path in found.folders.items() if one in used}
    missing = sorted(used - set(folders))
    unmasked = {cell for cell in cells if cell.source in found.unmasked and needs_masks(cell.method)}
    for line in (
        *found.said,
        *(f"{one}: not a data set ({reason})" for one, reason in found.others.items()),
        *(f"{one}: not in {data}; its cells are not run" for one in missing),
        *sorted({f"{c.source}: no masks, without which {c.method} learns nothing; it is not run" for c in unmasked}),
    ):
        typer.echo(line, err=True)
    if not folders:
        raise DataError(f"{data}: none of the sets of {name} is there ({', '.join(missing)})")
    return cells, [cell for cell in cells if cell not in unmasked], folders, missing


def _write_tables(plan: Any, cells: list[Any], out: Path, docs: Path | None) -> tuple[str, int]:
    """Write the tables in every format; gives the Markdown, and how many cells are finished."""
    from madclip.benchmark.plan import own_splits
    from madclip.benchmark.render import render
    from madclip.benchmark.runner import read_cells
    from madclip.benchmark.tables import Run, tables_of

    found = read_cells(out, cells)
    label = "tiny" if plan.backbone == "tiny" else Path(plan.backbone).name
    shown = Run(plan.experiment, cells, found, label, plan.select == "test-best", own_splits(plan.folders))
    made = tables_of(shown, notes=_notes(plan))
    for kind in ("md", "csv", "tex", "html"):
        write_whole(out / f"{plan.experiment}.{kind}", render(made, kind))
    text = render(made, "md")
    if docs:
        write_between(docs, f"bench {plan.experiment}", text)
    return text, len(found)


def _methods(text: str | None, name: Any, backbone: str) -> list[str]:
    from madclip.benchmark.experiments import methods_of
    from madclip.recipe import PRESETS

    known = methods_of(name)
    if text is None:
        return [default_recipe(backbone)]
    if text == "all":
        return [default_recipe(backbone), *(name for name in known if name not in PRESETS)]
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise RecipeError(f"no method is named: choose among {', '.join(known)}, or all")
    return list(dict.fromkeys(names))


def _numbers(text: str | None) -> list[int]:
    if text is None:
        return []
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"shots {text!r}: give whole numbers separated by commas") from error
    if min(numbers) < 1:
        raise RecipeError(f"shots {text!r}: at least 1 of each class is needed")
    return numbers


def _objectives(data: Path, folders: dict[str, Path], given: list[str]) -> dict[str, str]:
    """What each set shows: as typed, else as objectives.csv says, else as registered."""
    from madclip.benchmark.registry import by_name

    said = dict(text.partition("=")[::2] for text in given)
    if unknown := sorted(set(said) - set(folders)):
        raise RecipeError(f"--objective {unknown[0]}=...: there is no such set; there are {', '.join(folders)}")
    said = _listed_objectives(data / "objectives.csv") | said
    objectives = {}
    for name in folders:
        if said.get(name, "").strip():
            objectives[name] = said[name]
            continue
        entry = by_name(name)
        if entry is None:
            raise RecipeError(
                f"{name} is not a registered set: say what it shows, --objective '{name}=Brain', or give "
                f"{data / 'objectives.csv'} with columns set,objective"
            )
        objectives[name] = entry.objective
    return objectives


def _listed_objectives(path: Path) -> dict[str, str]:
    import csv

    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return {row["set"]: row["objective"] for row in csv.DictReader(file)}
    except (KeyError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: needs the columns set and objective ({error})") from error


def _notes(plan: Any) -> list[str]:
    import os
    import platform

    import torch

    from madclip.benchmark.tables import COUNTED

    weights = plan.backbone
    if weights == "tiny":
        weights = (
            "bundled tiny, a vision tower of 4.5 M parameters that never saw a real image: not comparable with ViT-L/14"
        )
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {plan.threads} threads a process"
    notes = [f"Backbone: {weights}. {machine}, torch {torch.__version__}; pixel metrics at the recipe's size."]
    if plan.experiment not in COUNTED:
        notes.append("MadCLIP is fitted without the cross-fit behind thresholds: no number here depends on it.")
    if plan.changes:
        notes.append("Recipe changed: " + ", ".join(f"{k}={v}" for k, v in plan.changes.items()) + ".")
    return notes
