"""`madclip data`: look at data sets before learning from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from madclip.cli.options import Json
from madclip.console import bar, print_facts

data_app = typer.Typer(help="Look at data sets before learning from them.", no_args_is_help=True)


@data_app.command("check")
def check(
    data: Annotated[Path, typer.Argument(help="Folder of labelled images, or a CSV or JSONL manifest.")],
    as_json: Json = False,
) -> None:
    """Report counts, sizes, masks, duplicates, and images or patients on both sides of a split."""
    from madclip.data.check import check_dataset

    with bar("read") as progress:
        report = check_dataset(data, progress=progress)
    lines = [f"{report.root}: layout {report.layout}, patients from {report.patients_from}"]
    lines += [
        f"  {split}: " + ", ".join(f"{n} {what}" for what, n in counts.items())
        for split, counts in report.counts.items()
    ]
    lines.append("  sizes: " + ", ".join(f"{size} ({n})" for size, n in list(report.sizes.items())[:5]))
    for problem in report.problems:
        lines.append(f"{problem.severity}: {problem.message} ({len(problem.files)})")
        lines += [f"    {name}" for name in problem.files[:10]]
        if len(problem.files) > 10:
            lines.append(f"    ... and {len(problem.files) - 10} more (--json lists all)")
    print_facts(as_json, report.to_dict(), "\n".join(lines))
    if not report.ok:
        raise typer.Exit(2)
