"""`madclip phantoms` and `demo`: images that need no download, and the whole job on them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from madclip.cli.console import note, print_facts, print_table, shown_progress
from madclip.cli.options import DEFAULT_NOTE, Json

Modality = Literal["brain", "chest", "oct", "liver", "histology", "ultrasound", "fundus", "generic"]


def phantoms(
    out: Annotated[Path, typer.Argument(help="A new folder for the images.")],
    modality: Annotated[Modality, typer.Option(help="What the images are to look like.")],
    normal: Annotated[int, typer.Option(help="How many normal images are drawn to test on, in test/.")] = 50,
    abnormal: Annotated[int, typer.Option(help="How many abnormal images are drawn to test on, in test/.")] = 50,
    shots: Annotated[int, typer.Option(help="How many images of each class are drawn to learn from, in valid/.")] = 32,
    seed: Annotated[int, typer.Option(help="The same seed draws the same images.")] = 0,
    difficulty: Annotated[
        float, typer.Option(help="From 0, where lesions are large and plain, to 1, where they are small and faint.")
    ] = 0.5,
    size: Annotated[int, typer.Option(help="Pixels of a side.")] = 240,
    as_json: Json = False,
) -> None:
    """Draw images of no patient, with exact masks.

    They make a data set that every command reads.
    """
    from madclip.phantoms.dataset import write_phantoms

    write_phantoms(out, modality, normal, abnormal, seed, difficulty, size, shots=shots)
    facts = {"out": str(out), "modality": modality, "valid": 2 * shots, "test": normal + abnormal, "seed": seed}
    print_facts(as_json, facts, f"{out}: {facts['valid']} images in valid/, {facts['test']} in test/")


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder of everything that is made.")] = Path("demo"),
    data: Annotated[
        Path | None, typer.Option(help="Your own labelled images, in place of the phantoms that are drawn otherwise.")
    ] = None,
    objective: Annotated[str | None, typer.Option(help="What your images show, as a few English words.")] = None,
    shots: Annotated[int, typer.Option(help="How many images of each class to learn from.")] = 8,
    test: Annotated[int, typer.Option(help="How many phantoms to evaluate on, half of them abnormal.")] = 200,
    as_json: Json = False,
) -> None:
    """Fit and evaluate on images that need no download."""
    from madclip.demo import run_demo

    note(DEFAULT_NOTE)
    with shown_progress() as progress:
        runs = list(run_demo(out, data=data, shots=shots, test=test, objective=objective, progress=progress))
    if as_json:
        keys = ("name", "seconds", "detector", "report", "sheet")
        facts = [{k: str(v) if isinstance(v := getattr(r, k), Path) else v for k in keys} for r in runs]
        measured = [run.result.to_json(images=False) for run in runs]
        print_facts(True, {"runs": [{**f, "metrics": m} for f, m in zip(facts, measured, strict=True)]}, "")
        return
    columns = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO", "dice": "Dice"}
    rows = [[r.name, *(_estimate(r.result.metrics[key]) for key in columns), f"{r.seconds:.0f} s"] for r in runs]
    print_table(["images", *columns.values(), "time"], rows)
    typer.echo(
        f"{shots} normal and {shots} abnormal images each; 95 % intervals in brackets. The images are procedural "
        "phantoms and the backbone is small: the numbers say that it works, not how well it would on yours."
        if data is None
        else "95 % intervals in brackets."
    )
    for run in runs:
        typer.echo(f"look at {run.sheet} and {run.report}")


def _estimate(estimate: Any) -> str:
    if estimate.value is None:
        return "-"
    return f"{estimate.value:.3f}" + ("" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]")
