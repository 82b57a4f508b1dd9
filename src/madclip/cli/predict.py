"""`madclip predict` and `evaluate`: the commands that use a detector."""

from __future__ import annotations

import shutil
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from madclip.cli.console import note, print_facts, print_table, shown_progress
from madclip.cli.joint import why_uncalibrated
from madclip.cli.options import (
    AbnormalNames,
    Address,
    Data,
    Detector,
    Device,
    Engine,
    Force,
    Gpus,
    Json,
    Level,
    Modality,
    Mpp,
    NormalNames,
    Overwrite,
    Patients,
    Pool,
    SamePatient,
    SavedBackbone,
    Slices,
    Threads,
    Workers,
    executor_of,
    parse_reading,
    read_dataset,
    said_of_data,
)
from madclip.cli.outputs import check_page
from madclip.errors import RecipeError
from madclip.files import new_folder
from madclip.recipe import Axis

if TYPE_CHECKING:
    from madclip.data.slides import Magnification
    from madclip.detector import MadCLIP
    from madclip.progress import Progress
    from madclip.report.plan import Output


def predict(
    detector: Detector,
    inputs: Annotated[
        list[str],
        typer.Argument(
            help="The images: files, folders, quoted patterns such as 'scans/*.png', ZIP archives, a DICOMDIR, or a "
            "study of an archive, dicomweb+https://HOST/dicom-web/studies/UID; for a Parquet table also a listing."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder that tables, overlays and maps are written to.")],
    table: Annotated[
        Literal["page", "parquet"] | None,
        typer.Option(help="What is written: page, tables, overlays and maps; or rows as Parquet, however many images."),
    ] = None,
    maps: Annotated[
        Literal["tiff", "npy", "none"] | None,
        typer.Option(
            help="The format of the anomaly maps, float32 at each image's own size: tiff, beside Parquet none."
        ),
    ] = None,
    overlays: Annotated[bool, typer.Option(help="Draw each anomaly map over its image, as a PNG to look at.")] = True,
    axis: Annotated[
        Axis | None,
        typer.Option(help="How volumes are cut into slices; without it, as the detector learned from them."),
    ] = None,
    dicom: Annotated[
        str,
        typer.Option(
            metavar="seg,map,picture,report",
            help="Write DICOM objects of each DICOM series as well: the region as SEG, a Parametric Map, the overlay "
            "as a Secondary Capture, a TID 1500 report.",
        ),
    ] = "",
    region: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="The value of a map from which a pixel is in the SEG; the detector's by default."
        ),
    ] = None,
    resample: Annotated[
        bool,
        typer.Option(
            "--resample", help="Interpolate the heat map of a series with uneven gaps to even ones, as one file."
        ),
    ] = False,
    mpp: Mpp = None,
    level: Level = None,
    overwrite: Overwrite = False,
    modality: Modality = None,
    engine: Engine = "auto",
    backbone: SavedBackbone = None,
    device: Device = "auto",
    pool: Pool = "local",
    address: Address = None,
    workers: Workers = None,
    threads: Threads = 1,
    gpus: Gpus = 0,
    as_json: Json = False,
) -> None:
    """Score images and draw a heatmap of each.

    What is found goes into tables, predictions.jsonl and predictions.csv, and onto a page to look at, index.html, with
    overlays/ and maps/ beside them. A run that was stopped goes on with the same command. A study of an archive
    is fetched, and a ZIP archive unpacked, into a folder beside the predictions.
    """
    from madclip.cli.archive import predict_archive, saved_detector
    from madclip.data.inputs import expand_inputs
    from madclip.data.slides import Magnification
    from madclip.detector import MadCLIP
    from madclip.memory import kept_memory
    from madclip.report.dicom import FOLDER, parse_kinds
    from madclip.report.plan import Output
    from madclip.report.predictions import predict_folder
    from madclip.report.series import SERIES

    if table == "parquet" or (table is None and pool == "ray"):
        if dicom or modality is not None or resample or mpp is not None or level is not None:
            raise RecipeError(
                "--dicom, --modality, --resample, --mpp and --level go with a page: leave out --table parquet and "
                "--engine-pool ray"
            )
        scoring = saved_detector(detector, axis, engine, backbone, device)
        executor = executor_of(pool, address, workers, threads, gpus)
        predict_archive(scoring, inputs, out, executor, maps or "none", overwrite=overwrite, as_json=as_json)
        return
    if pool == "ray" or workers or threads > 1:
        raise RecipeError("--engine-pool, --workers and --threads go with --table parquet")
    kinds = parse_kinds(dicom)
    output = Output(maps=maps or "tiff", overlays=overlays, dicom=kinds, region=region, resample=resample)
    model = MadCLIP.load(detector, backbone=backbone, device=device)
    model = model if modality is None else model.of(modality)
    computed = use_engine(model, detector, engine)
    about = {"Detector": detector.name}
    if mpp is not None or level is not None:
        if dicom or resample or axis:
            raise RecipeError("--dicom, --resample and --axis are for volumes and series, not for whole slides")
        about |= {"Engine": computed}
        slides = predicted_slides(model, inputs, out, Magnification(level, mpp), output, about, overwrite=overwrite)
        print_predictions(out, slides, computed, as_json=as_json)
        return
    with shown_progress() as progress:
        local = [at_hand(one, out, progress, afresh=overwrite) for one in inputs]
    found = expand_inputs(local, axis or model.recipe.axis)
    no_series = "--dicom: none of the images is of a DICOM series, and objects are made of such alone"
    odd = no_series if kinds and not any(one.study for one in found.series) else ""
    for said in filter(None, (found.said(), *why_uncalibrated(model.state), odd)):
        note(said)
    with kept_memory(), shown_progress() as progress:
        every = predict_folder(
            model,
            found,
            out,
            output=output,
            overwrite=overwrite,
            engine=computed,
            about=about,
            progress=progress,
        )
    if refused := [path.read_text(encoding="utf-8").strip() for path in sorted((out / FOLDER).glob("*.txt"))]:
        note(f"{len(refused)} DICOM objects were not made ({SERIES} says of which series), as: {refused[0]}")
    print_predictions(out, every, computed, found.passed_over, as_json=as_json)


def predicted_slides(
    model: MadCLIP,
    inputs: list[str],
    out: Path,
    at: Magnification,
    output: Output,
    about: dict[str, str],
    *,
    overwrite: bool,
) -> list[dict[str, Any]]:
    """The rows of whole slides, which are written as well."""
    from madclip.data.readers.slides import find_slides
    from madclip.report.slides import predict_slides

    with shown_progress() as progress:
        return predict_slides(
            model, find_slides(inputs), out, at, output=output, overwrite=overwrite, about=about, progress=progress
        )


def print_predictions(
    out: Path,
    every: list[dict[str, Any]],
    engine: str,
    passed_over: dict[str, int] | None = None,
    *,
    as_json: bool,
) -> None:
    """Says how many images were scored and what went wrong; the exit code is 2 where anything did."""
    failed = [row for row in every if row["error"] is not None]
    rows = [row for row in every if row["error"] is None]
    unfamiliar = sum(not row["familiar"] for row in rows)
    lines = [f"{out}: {len(rows)} images scored, {len(failed)} failed; look at {out / 'index.html'}"]
    if unfamiliar:
        lines.append(
            f"{unfamiliar} of {len(rows)} images look like none of the shots: is it the same modality and view?"
        )
    for row in failed:
        note(f"failed: {row['error']}")
    said = {"predictions": rows, "failed": failed, "passed_over": passed_over or {}}
    print_facts(as_json, {"out": str(out), "engine": engine, **said}, "\n".join(lines))
    if failed:
        raise typer.Exit(2)


def at_hand(named: str, out: Path, progress: Progress, *, afresh: bool) -> str:
    """An input as it was named, or the folder beside the predictions into which it was fetched or unpacked.

    What was fetched before is not fetched again, unless `afresh` says so.
    """
    from madclip.clinical.dicomweb import SCHEME, Address, fetch
    from madclip.data.zips import is_zip, unpack

    remote = named.startswith(SCHEME)
    if not remote and not is_zip(Path(named)):
        return named
    state = "" if remote else str(Path(named).stat().st_mtime_ns)
    folder = out.with_name(f"{out.name}.study-{sha256(f'{named} {state}'.encode()).hexdigest()[:12]}")
    if remote and afresh:
        shutil.rmtree(folder, ignore_errors=True)  # an archive may hold more of a study by now
    if not folder.is_dir():
        with new_folder(folder) as partial:
            if remote:
                fetch(Address.parse(named), partial, progress)
            else:
                unpack(Path(named), partial)
    return str(folder)


def evaluate(
    detector: Detector,
    data: Data,
    report: Annotated[
        Path | None, typer.Option(help="An HTML page to write as well, with curves and images, which needs no network.")
    ] = None,
    overwrite: Overwrite = False,
    pixel_size: Annotated[
        Literal["native", "recipe"],
        typer.Option(
            help="The size at which maps meet masks: each mask's own, or, as in the paper, what the backbone sees."
        ),
    ] = "native",
    patients: Patients = "auto",
    normal: NormalNames = None,
    abnormal: AbnormalNames = None,
    slices: Slices = "all",
    same_patient: SamePatient = False,
    force: Force = False,
    objective: Annotated[
        str | None, typer.Option(help="What the images show; warns if the detector was fitted for something else.")
    ] = None,
    modality: Modality = None,
    engine: Engine = "auto",
    backbone: SavedBackbone = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a detector on labelled images new to it.

    Images that it has seen for any purpose are left out.
    """
    from madclip.detector import MadCLIP
    from madclip.evaluation.protocol import evaluate as measure

    if report is not None:
        check_page(report, overwrite=overwrite)
    model = MadCLIP.load(detector, backbone=backbone, device=device)
    model = model if modality is None else model.of(modality)
    reading = parse_reading(patients, normal, abnormal, slices, model.recipe.axis)
    dataset = read_dataset(data, reading, force=force, stop=False, needed=())
    computed = use_engine(model, detector, engine)
    with shown_progress() as progress:
        result = measure(
            model,
            dataset,
            pixel_size=pixel_size,
            objective=objective,
            same_patient=same_patient,
            progress=progress,
        )
    if report is not None:
        from madclip.report import write_report

        write_report(result, report)
    said = said_of_data(dataset)
    if as_json:
        print_facts(True, {"engine": computed, "data": said, **result.to_json()}, "")
        return
    print_facts(
        False,
        {},
        "\n".join([f"{data}: {result.n_normal} normal and {result.n_abnormal} abnormal images", *said.values()]),
    )
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


def use_engine(model: Any, folder: Path, wanted: str) -> str:
    """Let a loaded detector compute with the engine that was asked for; says which that is."""
    if wanted == "torch" or (wanted == "auto" and not (folder / "engines").is_dir()):
        return "torch"
    from madclip.export.use import choose_engine
    from madclip.export.use import use_engine as compute_with

    export, passed = choose_engine(model, folder, wanted)
    for reason in passed:
        note(f"note: {reason}")
    if export is None:
        return "torch"
    facts = compute_with(model, export)
    note(f"engine: {facts['format']} in {facts['precision']}")
    return f"{facts['format']} {facts['precision']}"
