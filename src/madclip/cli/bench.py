"""`madclip bench`: the tables of the paper, and the same on any folder of data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from madclip.cli.console import print_facts, shown_progress
from madclip.cli.options import TINY_NOTE, BackboneOption, Changes, Device, Json, SelectOption
from madclip.errors import DataError, RecipeError
from madclip.files import write_between

benchmark_app = typer.Typer(help="Measure how fast this machine is.", no_args_is_help=True)


@benchmark_app.callback()
def _benchmark() -> None:
    """Measure how fast this machine is."""


@benchmark_app.command("speed")
def speed(
    backbone: Annotated[
        str,
        typer.Option("--backbone", "-b", help="As for fit; random-vit-l-14, random-vit-b-16: shapes, random weights."),
    ] = "tiny",
    only: Annotated[list[str] | None, typer.Option(help="A row; can be repeated.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Slow rows too: a fit and a refit with the backbone, the naive step (21 GB).")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="A JSON file, written anew after each row.")] = None,
    docs: Annotated[
        Path | None, typer.Option(help="A Markdown page: the table goes between its <!-- speed BACKBONE --> marks.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Time a fit step, tokens, prediction by each engine, refit and start, beside the rate of matrix products."""
    from dataclasses import asdict

    from madclip.benchmark.speed import ROWS, SLOW, Row, markdown, measure_all

    rows: list[Any] = []
    facts: dict[str, Any] = {"rows": []}
    for row in measure_all(list(only or (*ROWS, *(SLOW if every else ()))), backbone):
        rows.append(row)
        facts["rows"].append(asdict(row))
        said = f"{row.seconds:.3g} s per {row.per}" if isinstance(row, Row) else row.reason
        typer.echo(f"{row.name}: {said}", err=True)
        if out:
            partial = out.with_name(f"{out.name}.partial")
            partial.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            partial.replace(out)
    text = f"{_machine(rows)}\n\n{markdown(rows)}"
    if docs:
        write_between(docs, f"speed {backbone}", text)
    print_facts(as_json, facts, text)
    if any(not isinstance(row, Row) and row.failed for row in rows):
        raise typer.Exit(2)


def _machine(rows: list[Any]) -> str:
    import os
    import platform

    import torch

    from madclip.benchmark.speed import Row

    measured = [row for row in rows if isinstance(row, Row)]
    rates = "".join(
        f"; {kind} matrix products at {min(known):.0f} to {max(known):.0f} GFLOP/s"
        for kind in ("fp32", "bf16")
        if (known := [rate for row in measured if (rate := getattr(row, f"matmul_gflops_{kind}"))])
    )
    threads = measured[0].threads if measured else torch.get_num_threads()
    return f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, torch {torch.__version__}{rates}."


def bench(
    experiment: Annotated[str, typer.Argument(help="table1, table2, table3, ablations or real.")],
    data: Annotated[Path, typer.Option(help="Folder of data sets, each in a folder of its own.")],
    out: Annotated[Path, typer.Option(help="Folder for results; a run that was stopped goes on there.")],
    backbone: BackboneOption = None,
    methods: Annotated[str, typer.Option(help="Separated by commas; all: every method of comparison too.")] = "madclip",
    seeds: Annotated[int, typer.Option(min=1, help="Draws of shots.")] = 3,
    shots: Annotated[str | None, typer.Option(help="Instead of the experiment's own: 4,16.")] = None,
    objective: Annotated[
        list[str] | None, typer.Option(help="What the images of a set show: SET=TEXT. Registered sets bring theirs.")
    ] = None,
    changes: Changes = None,
    select: SelectOption = "last",
    workers: Annotated[int, typer.Option(min=1, help="Processes; results do not depend on it.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Of each process.")] = 1,
    device: Device = "auto",
    docs: Annotated[
        Path | None, typer.Option(help="A Markdown page: the tables replace what its marks enclose.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fill the tables of the paper, of its ablations, or of your own sets: CSV, Markdown, LaTeX, HTML."""
    from madclip.benchmark.experiments import METHODS, cells_of, check_experiment
    from madclip.benchmark.runner import Plan, find_sets, own_splits, read_cells, run
    from madclip.benchmark.tables import Run, render, tables_of
    from madclip.recipe import parse_field

    name = check_experiment(experiment)
    folders, others = find_sets(data)
    chosen = _methods(methods, METHODS, ablations=name == "ablations")
    cells = cells_of(name, list(folders), chosen, seeds, _numbers(shots))
    used = {one for cell in cells for one in (cell.source, cell.target)}
    folders = {one: path for one, path in folders.items() if one in used}
    missing = sorted(used - set(folders))
    if not folders:
        raise DataError(f"{data}: none of the sets of {name} is there ({', '.join(missing)})")
    plan = Plan(
        experiment=name,
        backbone=backbone or "tiny",
        folders=folders,
        objectives=_objectives(data, folders, objective or []),
        changes=dict(parse_field(text) for text in changes or []),
        select=select,
        threads=threads,
        device=device,
    )
    if backbone is None:
        typer.echo(TINY_NOTE, err=True)
    for one, reason in others.items():
        typer.echo(f"{one}: not a data set ({reason})", err=True)
    for one in missing:
        typer.echo(f"{one}: not in {data}; its cells are not run", err=True)
    with shown_progress() as progress:
        failed = run(cells, plan, out, workers=workers, on_cell=lambda done, total: progress(name, done, total))
    found = read_cells(out, cells)
    label = "tiny" if plan.backbone == "tiny" else Path(plan.backbone).name
    shown = Run(name, cells, found, label, plan.select == "test-best", own_splits(folders))
    made = tables_of(shown, notes=_notes(plan))
    for kind in ("md", "csv", "tex", "html"):
        (out / f"{name}.{kind}").write_text(render(made, kind), encoding="utf-8")
    if docs:
        write_between(docs, f"bench {name}", render(made, "md"))
    facts: dict[str, Any] = {
        "experiment": name,
        "cells": len(cells),
        "finished": len(found),
        "missing_sets": missing,
        "failed": failed,
        "results": str(out / "results.csv"),
    }
    print_facts(as_json, facts, render(made, "md"))
    for line in failed:
        typer.echo(line, err=True)
    if failed:
        raise typer.Exit(2)


def _methods(text: str, known: tuple[str, ...], *, ablations: bool) -> list[str]:
    if text == "all":
        from madclip.methods import BASELINES

        return ["madclip"] if ablations else ["madclip", *BASELINES]
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
    """Of each set: as typed, else as objectives.csv says, else as registered."""
    from madclip.benchmark.registry import registered

    said = dict(text.partition("=")[::2] for text in given)
    if unknown := sorted(set(said) - set(folders)):
        raise RecipeError(f"--objective {unknown[0]}=...: there is no such set; there are {', '.join(folders)}")
    said = _listed_objectives(data / "objectives.csv") | said
    objectives = {}
    for name in folders:
        if said.get(name, "").strip():
            objectives[name] = said[name]
            continue
        try:
            objectives[name] = registered(name).objective
        except RecipeError:
            raise RecipeError(
                f"{name} is not a registered set: say what it shows, --objective '{name}=Brain', or give "
                f"{data / 'objectives.csv'} with columns set,objective"
            ) from None
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

    weights = plan.backbone
    if weights == "tiny":
        weights = (
            "bundled tiny, a vision tower of 4.5 M parameters that never saw a real image: not comparable with ViT-L/14"
        )
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {plan.threads} threads a process"
    notes = [f"Backbone: {weights}. {machine}, torch {torch.__version__}; pixel metrics at the recipe's size."]
    notes.append("MadCLIP is fitted without the cross-fit behind thresholds: no number here depends on it.")
    if plan.changes:
        notes.append("Recipe changed: " + ", ".join(f"{k}={v}" for k, v in plan.changes.items()) + ".")
    return notes
