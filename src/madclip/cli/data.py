"""`madclip data`: look at data sets before learning from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from madclip.cli.console import print_facts, print_table, shown_progress
from madclip.cli.options import (
    AbnormalNames,
    AxisOption,
    Changes,
    Data,
    GreyRange,
    Json,
    Level,
    Mpp,
    NormalNames,
    Overwrite,
    Patients,
    RecipeName,
    Slices,
    Tiles,
    parse_reading,
    parse_recipe,
)
from madclip.cli.outputs import check_file
from madclip.errors import DataError

if TYPE_CHECKING:
    from madclip.data.check import CheckReport

data_app = typer.Typer(help="Look at data sets before learning from them.", no_args_is_help=True)


@data_app.command("sets")
def sets(as_json: Json = False) -> None:
    """List the data sets of the paper's tables.

    Each with its number of images, tasks, licence, and where it comes from.
    """
    from madclip.benchmark.registry import all_sets

    entries = all_sets()
    rows = []
    for entry in entries:
        counts = "/".join(str(split["total"]) for split in entry.counts.values()) or "-"
        split = "own" if entry.own_split else "published"
        rows.append([entry.name, entry.objective, " ".join(entry.tasks), counts, split, entry.licence])
    if as_json:
        print_facts(as_json, {"sets": [entry.to_dict() for entry in entries]}, "")
        return
    print_table(["set", "objective", "tasks", "train/valid/test", "split", "licence"], rows)
    typer.echo()
    for entry in entries:
        typer.echo(f"{entry.name}: {entry.obtain}. {entry.note}")


@data_app.command("prepare")
def prepare_set(
    name: Annotated[str, typer.Argument(help="The name of the set, as `madclip data sets` lists it.")],
    source: Annotated[Path, typer.Option("--from", help="The folder of the original download, unpacked.")],
    out: Annotated[Path, typer.Option("--to", help="A new or empty folder for the data set.")],
    seed: Annotated[
        int, typer.Option(min=0, help="Determines which patients are in which split, where the split is our own.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Build one of these sets from its original download.

    It gets the published split, or one by patient where none was published.
    """
    from madclip.benchmark.prepare import prepare

    with shown_progress() as progress:
        facts = prepare(name, source, out, seed=seed, progress=lambda done, total: progress("copy", done, total))
    whose = "our own split" if facts["own_split"] else "the published split"
    lines = [f"{out}: {facts['set']}, {whose}, seed {seed}"]
    lines += [
        f"  {split}: {counts['normal']} normal, {counts['abnormal']} abnormal"
        for split, counts in facts["counts"].items()
    ]
    print_facts(as_json, facts, "\n".join([*lines, facts["rule"]]))


@data_app.command("check")
def check(
    data: Data,
    registered_as: Annotated[
        str | None, typer.Option("--as", help="Compare the counts with those of this set of `madclip data sets`.")
    ] = None,
    patients: Patients = "auto",
    normal: NormalNames = None,
    abnormal: AbnormalNames = None,
    slices: Slices = "all",
    axis: AxisOption = "axial",
    tiles: Tiles = 0,
    recipe: RecipeName = None,
    change: Changes = None,
    grey_range: GreyRange = None,
    as_json: Json = False,
) -> None:
    """Say what is in a data set and what is wrong with it.

    It counts images, sizes, masks and patients, and finds duplicates, lesions that are lost when masks are resized,
    and images or patients on both sides of a split.
    """
    from madclip.benchmark.registry import compare_counts, registered
    from madclip.data.check import check_dataset

    entry = registered(registered_as) if registered_as else None
    chosen = parse_recipe(recipe, change, grey_range, axis, tiles)
    view = chosen.view
    reading = parse_reading(patients, normal, abnormal, slices, chosen.axis)
    with shown_progress() as progress:
        report = check_dataset(data, reading, view=view, progress=progress)
    if entry:
        report = replace(report, problems=(*compare_counts(entry, report), *report.problems))
    lines = _told(report)
    if entry and not entry.counts:
        lines.append(f"  no counts are registered for {entry.name}")
    print_facts(as_json, report.to_dict(), "\n".join([*lines, *_problems(report)]))
    if not report.ok:
        raise typer.Exit(2)


def _told(report: CheckReport) -> list[str]:
    """What is in the data set, in lines for people."""
    lines = [f"{report.root}: layout {report.layout}", f"  {report.patients}"]
    lines += [f"  {report.volumes}"] if report.volumes else []
    lines += [
        f"  {split}: " + ", ".join(f"{n} {what}" for what, n in counts.items())
        for split, counts in report.counts.items()
    ]
    lines += [f"  {report.learns}"] if report.learns else []
    lines.append("  sizes: " + ", ".join(f"{size} ({n})" for size, n in list(report.sizes.items())[:5]))
    if report.passed_over:
        lines.append(f"  passed over: {report.passed_over} hidden files or folders, or those of tools")
    return lines


def _problems(report: CheckReport) -> list[str]:
    """What is wrong with the data set, in lines for people: of each kind the first ten names."""
    lines = []
    for problem in report.problems:
        number = f" ({len(problem.files)})" if problem.files else ""
        lines.append(f"{problem.severity}: {problem.message}{number}")
        lines += [f"    {name}" for name in problem.files[:10]]
        if len(problem.files) > 10:
            lines.append(f"    ... and {len(problem.files) - 10} more (--json lists all)")
    return lines


@data_app.command("manifest")
def manifest(
    data: Annotated[Path, typer.Argument(help="A folder of images, in any layout.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write; without it, manifest.csv in the folder.")
    ] = None,
    overwrite: Overwrite = False,
    patients: Patients = "auto",
    normal: NormalNames = None,
    abnormal: AbnormalNames = None,
    as_json: Json = False,
) -> None:
    """Write a list of all images as CSV, to correct.

    Labels, masks and patients are filled in as far as they are known.
    """
    from madclip.data.drafts import draft_manifest

    if not data.is_dir():
        raise DataError(f"{data}: no such folder")
    target = out or data / "manifest.csv"
    check_file(target, overwrite=overwrite)
    labels = draft_manifest(data, target, parse_reading(patients, normal, abnormal))
    text = f"{target}: " + ", ".join(f"{number} {label or 'without a label'}" for label, number in labels.items())
    unknown = sorted({*labels} - {"normal", "abnormal"})
    if unknown:
        text += "\nlabels that are not normal or abnormal have to be corrected, or named with --normal and --abnormal"
    if "" in unknown:
        text += "\nfill in what is without a label: only you know whether it is normal, as of benign/ beside normal/"
    print_facts(as_json, {"manifest": str(target), "labels": labels}, text)


@data_app.command("tiles")
def tiles(
    slides: Annotated[list[str], typer.Argument(help="Whole slides: files, or folders of DICOM slides.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A new or empty folder for the tiles.")],
    mpp: Mpp = None,
    level: Level = None,
    size: Annotated[int, typer.Option(min=32, max=8192, help="Side of a tile, pixels.")] = 240,
    count: Annotated[int, typer.Option(min=1, help="How many tiles of each slide, at even distances.")] = 50,
    as_json: Json = False,
) -> None:
    """Cut tiles with tissue out of whole slides.

    They are to be sorted into normal and abnormal ones, and learned from. Each slide has a folder, as a patient has.
    """
    from madclip.data.readers.slides import find_slides
    from madclip.data.slides import Magnification, write_tiles

    found = find_slides(slides)
    number = write_tiles(found, out, Magnification(level, mpp), size, count)
    print_facts(as_json, {"out": str(out), "tiles": number}, f"{out}: {number} tiles of {len(found)} slides")
