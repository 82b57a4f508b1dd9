"""The command line: parses, calls, prints. `madclip --help` shows the commands."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from madclip.cli.bench import bench_app, benchmark_app
from madclip.cli.console import (
    bar,
    bars,
    gigabytes,
    parse_bytes,
    parse_equal_shots,
    parse_recipe,
    parse_select,
    parse_shots,
    print_facts,
    print_table,
)
from madclip.cli.data import data_app
from madclip.cli.options import (
    TINY_NOTE,
    BackboneOption,
    Changes,
    Device,
    Engine,
    Folds,
    Json,
    Objective,
    OperatingPoint,
    RecipeName,
    SelectOption,
)
from madclip.errors import DataError, MadCLIPError, RecipeError

app = typer.Typer(
    name="madclip",
    help="Few-shot medical anomaly detection with a frozen CLIP. Research software, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench", no_args_is_help=True)
app.add_typer(benchmark_app, name="benchmark")


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")] = False,  # noqa: ARG001
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"madclip {installed('madclip')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def fit(
    data: Annotated[Path, typer.Argument(help="Folder of labelled images, or a CSV or JSONL manifest.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the detector.")],
    shots: Annotated[str, typer.Option(help="Images of each class: 16, or NORMAL,ABNORMAL, or all.")] = "16",
    shot_list: Annotated[
        str | None, typer.Option(help="A published list instead of a draw: mvfa:Brain, madclip:Chest, ...")
    ] = None,
    backbone: BackboneOption = None,
    objective: Objective = "medical image",
    recipe: RecipeName = "madclip",
    change: Changes = None,
    seed: Annotated[int, typer.Option(help="Of the draw, the initial weights and the order.")] = 0,
    folds: Folds = 4,
    operating_point: OperatingPoint = "youden",
    select: SelectOption = "last",
    calibrate_on: Annotated[
        Path | None, typer.Option("--calibrate", help="More labelled images for thresholds and probabilities.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a fit that was interrupted.")] = False,
    cache: Annotated[bool, typer.Option(help="Keep tokens on disk for the next fit.")] = True,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Learn a detector from a few labelled images."""
    from dataclasses import replace

    from madclip.data.samples import load_dataset
    from madclip.data.shots import published_shots
    from madclip.detector import DEFAULT_BACKBONE, MadCLIP
    from madclip.fitting import Run
    from madclip.storage import check_target
    from madclip.training.cache import TokenCache

    check_target(out)
    dataset = load_dataset(data)
    count = parse_shots(shots)
    if shot_list is not None:
        source, _, name = shot_list.partition(":")
        listed = published_shots(source, name, parse_equal_shots(shots), dataset.shot_pool)
        dataset, count = replace(dataset, samples=(*listed, *dataset.split("test"))), None
    if backbone is None:
        typer.echo(TINY_NOTE, err=True)
    detector = MadCLIP(
        parse_recipe(recipe, change), backbone=backbone or DEFAULT_BACKBONE, objective=objective, device=device
    )
    state = out.with_name(out.name + ".fit-state")
    tokens = TokenCache() if cache else None
    detector.fit(
        dataset,
        shots=count,
        seed=seed,
        folds=folds,
        operating_point=operating_point,
        run=Run(tokens, state, resume, parse_select(select)),
    )
    if calibrate_on is not None:
        detector.calibrate(calibrate_on, operating_point=operating_point)
    detector.save(out)
    state.unlink(missing_ok=True)
    facts = {
        "detector": str(out),
        "backbone": detector.backbone.spec.id,
        "objective": objective,
        "loss": detector.state.history[-1] if detector.state.history else None,
        **detector.provenance.summary(),
    }
    print_facts(
        as_json,
        facts,
        f"{out}: learned from {facts['normal']} normal and {facts['abnormal']} abnormal images "
        f"({facts['masks']} with masks)",
    )


@app.command()
def refit(
    detector: Annotated[Path, typer.Argument(help="Folder of the detector.")],
    data: Annotated[Path, typer.Argument(help="All images to learn from now: a folder, or a CSV or JSONL manifest.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A new folder; else the detector is replaced.")
    ] = None,
    shots: Annotated[str, typer.Option(help="all, images of each class: 16, or NORMAL,ABNORMAL.")] = "all",
    seed: Annotated[int, typer.Option(help="Of the draw and the order of images.")] = 0,
    folds: Annotated[int, typer.Option(help="Of a cross-fit for new thresholds, as long as that of fit; 0: none.")] = 0,
    operating_point: OperatingPoint = "youden",
    backbone: BackboneOption = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Go on learning after shots were added, removed or relabelled; a few seconds."""
    import time

    from madclip.detector import MadCLIP
    from madclip.fitting import Run
    from madclip.storage import check_target
    from madclip.training.cache import TokenCache

    target = out or detector
    check_target(target)
    model = MadCLIP.load(detector, backbone=backbone, device=device)
    start = time.perf_counter()
    model.refit(
        data,
        shots=parse_shots(shots),
        seed=seed,
        folds=folds,
        operating_point=operating_point,
        run=Run(TokenCache()),
    )
    seconds = time.perf_counter() - start
    model.save(target)
    facts = {
        "detector": str(target),
        "seconds": seconds,
        **model.provenance.summary(),
    }
    stale = model.provenance.calibrated_before_refit
    kept = "; thresholds are those from before (--folds 4 makes new ones)" if stale else ""
    print_facts(
        as_json,
        facts,
        f"{target}: refitted on {facts['normal']} normal and {facts['abnormal']} abnormal images "
        f"in {seconds:.1f} s{kept}",
    )


@app.command()
def predict(
    detector: Annotated[Path, typer.Argument(help="Folder of the detector.")],
    inputs: Annotated[list[str], typer.Argument(help="Images, folders, or patterns such as 'scans/*.png'.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")],
    maps: Annotated[str, typer.Option(help="Raw maps as tiff (float32), npy or none.")] = "tiff",
    overlays: Annotated[bool, typer.Option(help="Draw heatmaps over the images.")] = True,
    engine: Engine = "auto",
    backbone: BackboneOption = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Score images: predictions.jsonl and .csv, overlays/ and maps/."""
    from madclip.data.inputs import expand_inputs
    from madclip.detector import MadCLIP
    from madclip.memory import kept_memory
    from madclip.report.predictions import PredictionFolder

    if maps not in ("tiff", "npy", "none"):
        raise RecipeError(f"--maps is tiff, npy or none, not {maps!r}")
    images = expand_inputs(inputs)
    model = MadCLIP.load(detector, backbone=backbone, device=device)
    computed = _use_engine(model, detector, engine)
    rows, failed = [], []
    writing = PredictionFolder(out, maps=maps, overlays=overlays)  # type: ignore[arg-type]
    with kept_memory(), writing as folder, bar("predict") as progress:
        for done, (image, result) in enumerate(zip(images, model.predict_iter(images), strict=True), 1):
            if isinstance(result, DataError):
                failed.append(folder.fail(image, result))
            else:
                rows.append(folder.add(image, result))
            progress(done, len(images))
    summary = f"{out}: {len(rows)} images scored, {len(failed)} failed"
    for row in failed:
        typer.echo(f"failed: {row['error']}".encode("utf-8", "backslashreplace"), err=True)
    print_facts(as_json, {"out": str(out), "engine": computed, "predictions": rows, "failed": failed}, summary)
    if failed:
        raise typer.Exit(2)


@app.command()
def evaluate(
    detector: Annotated[Path, typer.Argument(help="Folder of the detector.")],
    data: Annotated[Path, typer.Argument(help="Folder of labelled images, or a CSV or JSONL manifest.")],
    report: Annotated[Path | None, typer.Option(help="Write a self-contained HTML page.")] = None,
    pixel_size: Annotated[str, typer.Option(help="native (masks' own size) or recipe (as in the paper).")] = "native",
    objective: Annotated[str | None, typer.Option(help="What the images show; warns if fitted for another.")] = None,
    engine: Engine = "auto",
    backbone: BackboneOption = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a detector on test images it has not seen: AUROC with intervals, thresholds, calibration."""
    from madclip.detector import MadCLIP
    from madclip.evaluation.protocol import evaluate as measure

    if pixel_size not in ("native", "recipe"):
        raise RecipeError(f"--pixel-size is native or recipe, not {pixel_size!r}")
    model = MadCLIP.load(detector, backbone=backbone, device=device)
    computed = _use_engine(model, detector, engine)
    with bar("evaluate") as on_image:
        result = measure(model, data, pixel_size=pixel_size, objective=objective, on_image=on_image)  # type: ignore[arg-type]
    if report is not None:
        from madclip.report import write_report

        write_report(result, report)
    if as_json:
        print_facts(True, {"engine": computed, **result.to_json()}, "")
        return
    typer.echo(f"{data}: {result.n_normal} normal and {result.n_abnormal} abnormal images")
    print_table(
        ["metric", "value", "95 % interval"],
        [
            [name, f"{e.value:.3f}", "" if e.low is None else f"{e.low:.3f} to {e.high:.3f}"]
            for name, e in result.metrics.items()
            if e.value is not None
        ],
    )
    for warning in result.warnings:
        typer.echo(f"note: {warning}")


@app.command()
def repeat(
    data: Annotated[Path, typer.Argument(help="Folder of labelled images, or a CSV or JSONL manifest.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the runs; finished ones are not repeated.")],
    seeds: Annotated[int, typer.Option(help="Draws of shots: seeds 0 to N - 1.")] = 3,
    shots: Annotated[str, typer.Option(help="Images of each class: 16, or NORMAL,ABNORMAL.")] = "16",
    backbone: BackboneOption = None,
    objective: Objective = "medical image",
    recipe: RecipeName = "madclip",
    change: Changes = None,
    folds: Folds = 4,
    operating_point: OperatingPoint = "youden",
    select: SelectOption = "last",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Fit and evaluate over several draws of shots: each run, mean, standard deviation, interval."""
    from madclip.data.samples import load_dataset
    from madclip.detector import DEFAULT_BACKBONE
    from madclip.evaluation.repeat import repeat as run
    from madclip.training.cache import TokenCache

    if backbone is None:
        typer.echo(TINY_NOTE, err=True)
    counts = parse_shots(shots)
    if counts is None or seeds < 1:
        raise RecipeError("repeat needs a number of shots, and at least one seed")
    with bars() as progress:
        summary = run(
            load_dataset(data),
            out,
            recipe=parse_recipe(recipe, change),
            backbone=backbone or DEFAULT_BACKBONE,
            objective=objective,
            shots=counts,
            seeds=range(seeds),
            select=parse_select(select),
            progress=progress,
            folds=folds,
            operating_point=operating_point,
            cache=TokenCache(),
            device=device,
        )
    if as_json:
        print_facts(True, summary, "")
        return
    rows = []
    for name, found in summary.items():
        if isinstance(found, dict) and found.get("mean") is not None:
            ci = "" if found["ci"] is None else f"{found['ci'][0]:.3f} to {found['ci'][1]:.3f}"
            spread = "" if found["std"] is None else f"{found['std']:.3f}"
            each = " ".join("-" if value is None else f"{value:.3f}" for value in found["values"])
            rows.append([name, f"{found['mean']:.3f}", spread, ci, each])
    print_table(["metric", "mean", "std", "95 % interval of the mean", "runs"], rows)


@app.command()
def phantoms(
    out: Annotated[Path, typer.Argument(help="A new folder.")],
    modality: Annotated[str, typer.Option(help="brain, chest, oct, liver, histology, ultrasound, fundus, generic.")],
    normal: Annotated[int, typer.Option(help="Normal images in test/.")] = 50,
    abnormal: Annotated[int, typer.Option(help="Abnormal images in test/.")] = 50,
    shots: Annotated[int, typer.Option(help="Images of each class in valid/.")] = 32,
    seed: Annotated[int, typer.Option(help="Of everything.")] = 0,
    difficulty: Annotated[float, typer.Option(help="0 (large, obvious lesions) to 1 (small, subtle).")] = 0.5,
    size: Annotated[int, typer.Option(help="Pixels of a side.")] = 240,
    as_json: Json = False,
) -> None:
    """Draw images with exact masks, as a benchmark in the BMAD layout."""
    from madclip.phantoms.dataset import write_phantoms

    write_phantoms(out, modality, normal, abnormal, seed, difficulty, size, shots=shots)
    facts = {"out": str(out), "modality": modality, "valid": 2 * shots, "test": normal + abnormal, "seed": seed}
    print_facts(as_json, facts, f"{out}: {facts['valid']} images in valid/, {facts['test']} in test/")


@app.command()
def backbones(as_json: Json = False) -> None:
    """Which backbones are known by name, their licences, and where to put a downloaded file."""
    from dataclasses import asdict

    from madclip.backbones.catalogue import catalogue

    rows = [{**asdict(entry), "folder": str(entry.folder) if entry.hub else None} for entry in catalogue()]
    if as_json:
        print_facts(True, {"backbones": rows}, "")
        return
    use = {True: "yes", False: "no", None: "not known"}
    shown = [
        [
            r["id"],
            f"{r['depth']} x {r['width']}, patch {r['patch_size']} at {r['image_size']}",
            r["licence"],
            use[r["commercial"]],
        ]
        for r in rows
    ]
    print_table(["id", "blocks x width, input", "licence", "commercial use"], shown)
    typer.echo(
        "\nA name is fetched from its hub once and then works offline. To use a file downloaded by hand, put it in"
    )
    for r in rows:
        if r["hub"]:
            typer.echo(f"  {r['folder']}/{r['file'] or ''}  ({r['hub']})")


@app.command("import-released")
def import_released(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth file that the paper's authors published.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the detector.")],
    backbone: Annotated[str, typer.Option("--backbone", "-b", help="OpenAI's ViT-L/14@336px.")],
    objective: Annotated[str, typer.Option(help="The one that it was trained with.")],
    image_size: Annotated[int, typer.Option(help="Likewise, pixels.")] = 240,
    image_score: Annotated[str, typer.Option(help="max (sets with masks) or mean (sets without).")] = "max",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Turn a published checkpoint into a detector."""
    from madclip.detector import MadCLIP

    detector = MadCLIP.from_released(
        checkpoint,
        backbone=backbone,
        objective=objective,
        image_size=image_size,
        image_score=image_score,  # type: ignore[arg-type]
        device=device,
    )
    detector.save(out)
    print_facts(as_json, {"detector": str(out), **detector.provenance.summary()}, f"{out}: imported {checkpoint}")


@app.command()
def export(
    detector: Annotated[Path, typer.Argument(help="Folder of the detector.")],
    data: Annotated[Path, typer.Option(help="Images to check on and to calibrate int8 with: the shots, best of all.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A new folder for the model; else DETECTOR/engines/FORMAT-PRECISION."),
    ] = None,
    engine: Annotated[str, typer.Option("--format", help="openvino, onnx or torch.")] = "openvino",
    precision: Annotated[str, typer.Option(help="fp32; int8 (openvino, onnx), bf16 (openvino, torch).")] = "fp32",
    backbone: BackboneOption = None,
    as_json: Json = False,
) -> None:
    """Write one model from pixels to score and map for another engine, if it agrees with the detector."""
    from madclip.detector import MadCLIP
    from madclip.export.engines import export_engine

    model = MadCLIP.load(detector, backbone=backbone, device="cpu")
    out = out or detector / "engines" / f"{engine}-{precision}"
    facts = export_engine(model, data, out, engine=engine, precision=precision)  # type: ignore[arg-type]
    check = facts["check"]
    seen = "of the shots" if check["shots"] else "that are not shots"
    rule = "calibrated threshold" if check["rule"] == "threshold" else "order of pairs, as there is no calibration"
    print_facts(
        as_json,
        {"out": str(out), **facts},
        f"{out}: {engine} in {precision}; on {check['images']} images {seen}, scores differ by up to "
        f"{check['score']:.2g}, maps by up to {check['map']:.2g}, "
        f"{check['changed']:.1%} of decisions change ({rule})",
    )


@app.command()
def cache(
    limit: Annotated[str | None, typer.Option(help="Set the limit, for example 5GB.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete all tokens.")] = False,
    as_json: Json = False,
) -> None:
    """Show, limit or clear the cached tokens; they derive from your images."""
    from madclip.training.cache import TokenCache

    tokens = TokenCache()
    freed = tokens.clear() if clear else 0
    if limit is not None:
        tokens.limit = parse_bytes(limit)
    facts = {
        "folder": str(tokens.folder),
        "images": len(tokens.entries()),
        "bytes": tokens.size(),
        "limit": tokens.limit,
        "freed": freed,
    }
    print_facts(
        as_json,
        facts,
        f"{facts['folder']}: tokens of {facts['images']} images, {gigabytes(tokens.size())} of "
        f"{gigabytes(tokens.limit)} allowed" + (f"; {gigabytes(freed)} set free" if clear else ""),
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of everything that is made.")] = Path("demo"),
    data: Annotated[Path | None, typer.Option(help="Your own labelled images in place of phantoms.")] = None,
    objective: Annotated[str | None, typer.Option(help="What your images show.")] = None,
    shots: Annotated[int, typer.Option(help="Images of each class to learn from.")] = 8,
    test: Annotated[int, typer.Option(help="Phantoms to evaluate on.")] = 200,
    as_json: Json = False,
) -> None:
    """Fit and evaluate on images that need no download, and show what comes out."""
    from madclip.demo import run_demo

    typer.echo(TINY_NOTE, err=True)
    with bars() as progress:
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


def _use_engine(model: Any, folder: Path, wanted: str) -> str:
    """Let a loaded detector compute with the engine that was asked for; says which that is."""
    if wanted == "torch" or (wanted == "auto" and not (folder / "engines").is_dir()):
        return "torch"
    from madclip.export.use import choose_engine, use_engine

    export, passed = choose_engine(model, folder, wanted)
    for reason in passed:
        typer.echo(f"note: {reason}", err=True)
    if export is None:
        return "torch"
    facts = use_engine(model, export)
    typer.echo(f"engine: {facts['format']} in {facts['precision']}", err=True)
    return f"{facts['format']} {facts['precision']}"


def _estimate(estimate: Any) -> str:
    if estimate.value is None:
        return "-"
    return f"{estimate.value:.3f}" + ("" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]")


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
"""What may go wrong with a place that the user chose to write to."""


def main() -> None:
    """Run the command line; errors that a user can mend are one line and exit code 2, Ctrl-C is 130."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        app(args=[argument for argument in arguments if argument != "--debug"], standalone_mode=True)
    except MadCLIPError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(2) from None
    except SystemExit as end:
        if end.code == 130:  # typer makes this of Ctrl-C, without a word
            typer.echo("interrupted", err=True)
        raise
    except OSError as error:
        if debug or error.errno not in _DISK:
            raise
        typer.echo(f"error: {error.filename or 'the disk'}: {error.strerror}", err=True)
        raise SystemExit(2) from None
