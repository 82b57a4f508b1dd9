"""`madclip fit`, `refit` and `repeat`: the commands that learn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madclip.backbones.names import DEFAULT_BACKBONE
from madclip.cli.console import note, print_facts, print_table, shown_progress
from madclip.cli.joint import read_sets, said_of_modalities, said_of_sets
from madclip.cli.options import (
    DEFAULT_NOTE,
    AbnormalNames,
    Address,
    AxisOption,
    BackboneOption,
    Changes,
    Data,
    Detector,
    DetectorOut,
    Device,
    Folds,
    Force,
    Gpus,
    GreyRange,
    Json,
    NormalNames,
    Objective,
    OperatingPoint,
    Overwrite,
    Patients,
    Pool,
    RecipeName,
    SamePatient,
    SavedBackbone,
    Seed,
    SelectOption,
    Shots,
    Slices,
    Tiles,
    Workers,
    executor_of,
    parse_equal_shots,
    parse_reading,
    parse_recipe,
    parse_shots,
    read_dataset,
    said_of_data,
)
from madclip.cli.outputs import check_detector, check_runs
from madclip.data.samples import NORMAL_ONLY, Dataset
from madclip.errors import DataError, RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.data.samples import Reading, Sample
    from madclip.detector import MadCLIP


ShotList = Annotated[
    str | None,
    typer.Option(
        metavar="SOURCE:SET", help="Learn from a published list of images instead of a draw, such as mvfa:Brain."
    ),
]
CalibrateOn = Annotated[
    Path | None,
    typer.Option(
        "--calibrate", help="More labelled images, which thresholds and probabilities are learned from as well."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a fit of the same command that was interrupted.")]
Cache = Annotated[
    bool, typer.Option(help="Keep what the backbone makes of the images on disk, so that the next fit is quicker.")
]


def fit(
    out: DetectorOut,
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            help="The labelled images: a folder, or a manifest as CSV or JSON lines (see docs/data.md). Normal images "
            "alone will do; with --shots 0 none are looked at. With --joint several, each as OBJECTIVE=FOLDER."
        ),
    ] = None,
    joint: Annotated[
        bool, typer.Option("--joint", help="Learn one detector of several modalities, from a set of images of each.")
    ] = False,
    shots: Shots = "16",
    shot_list: ShotList = None,
    patients: Patients = "auto",
    normal: NormalNames = None,
    abnormal: AbnormalNames = None,
    slices: Slices = "all",
    backbone: BackboneOption = DEFAULT_BACKBONE,
    objective: Objective = "medical image",
    recipe: RecipeName = None,
    change: Changes = None,
    grey_range: GreyRange = None,
    axis: AxisOption = "axial",
    tiles: Tiles = 0,
    seed: Seed = 0,
    folds: Folds = 4,
    operating_point: OperatingPoint = "youden",
    select: SelectOption = "last",
    calibrate_on: CalibrateOn = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
    force: Force = False,
    cache: Cache = True,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Learn a detector from a few labelled images.

    Normal images alone will do; with --shots 0 it goes by texts alone, with --joint it learns several modalities.
    """
    from madclip.data.load import scan_dataset
    from madclip.detector import DEFAULT_OBJECTIVE, MadCLIP
    from madclip.fitting import Run
    from madclip.training.cache import TokenCache

    check_detector(out, overwrite=overwrite)
    chosen = parse_recipe(recipe, change, grey_range, axis, tiles, backbone=backbone)
    reading = parse_reading(patients, normal, abnormal, slices, chosen.axis)
    drawn: Dataset | Sequence[Sample] | dict[str, Dataset]
    if joint:
        if shot_list or calibrate_on or objective != DEFAULT_OBJECTIVE:
            raise RecipeError("--joint goes without --shot-list, --calibrate and --objective; name OBJECTIVE=FOLDER")
        sets, count = read_sets(data or [], reading, force=force), parse_shots(shots)
        drawn, said = sets, said_of_sets(sets)
    else:
        drawn, count, said = _chosen(data or [], shots, shot_list, select, reading, force=force)
    more = None if calibrate_on is None else scan_dataset(calibrate_on, reading)
    if backbone == DEFAULT_BACKBONE:
        note(DEFAULT_NOTE)
    detector = MadCLIP(chosen, backbone=backbone, objective=objective, device=device)
    state = out.with_name(out.name + ".fit-state")
    with shown_progress() as progress:
        detector.fit(
            drawn,
            shots=count,
            seed=seed,
            folds=folds,
            operating_point=operating_point,
            run=Run(TokenCache() if cache else None, state, resume, select, progress),
        )
    detector.save(out)
    if more is not None:
        detector.calibrate(more, operating_point=operating_point)
        detector.save(out)
    state.unlink(missing_ok=True)
    _say_learned(detector, out, said, as_json=as_json)


def _say_learned(detector: MadCLIP, out: Path, said: dict[str, str], *, as_json: bool) -> None:
    """Print what a detector learned from, what is known of the data set, and what its verdicts rest on."""
    facts = {
        "detector": str(out),
        "backbone": detector.backbone.spec.id,
        "objective": detector.objective,
        "loss": detector.state.history[-1] if detector.state.history else None,
        **detector.provenance.summary(),
    }
    masks = f" ({detector.provenance.masks} with masks)" if detector.provenance.abnormal else ""
    learned = f"{out}: learned from {detector.provenance.learned}{masks}"
    if detector.state.modalities:
        lines = [learned, *said.values(), *said_of_modalities(detector)]
    else:
        whole = (f"data set: {one}" for one in said.values() if one)  # not of the shots alone
        lines = [learned, *whole, detector.provenance.uncalibrated, _threshold(detector)]
    print_facts(as_json, facts | {"data": said}, "\n".join(filter(None, lines)))


def _threshold(detector: MadCLIP) -> str:
    """What a threshold of one class alone promises, since nobody chose it, and its note; of both nothing."""
    known = detector.calibration
    if not known or not (rests := known.rests()):
        return ""
    note = f"\nnote: {known.note}" if known.note else ""
    return f"threshold {known.threshold:.4f} ({known.operating_point}). {rests}{note}"


def _chosen(
    data: list[Path], shots: str, shot_list: str | None, select: str, reading: Reading, *, force: bool
) -> tuple[Dataset | tuple[Sample, ...], int | tuple[int, int] | None, dict[str, str]]:
    """What is learned from, how many images are drawn from it, and what is known of it."""
    if parse_shots(shots) == 0:
        for one in data:
            note(f"note: {one} is not looked at: with --shots 0 the detector goes by the texts alone")
        return (), 0, {}
    if not data:
        raise DataError("DATA is missing: name the labelled images, or pass --shots 0 to go by the texts alone")
    if len(data) > 1:
        raise DataError(f"{data[1]}: there is one set already; with --joint a detector learns several modalities")
    dataset = read_dataset(data[0], reading, force=force, needed=NORMAL_ONLY)
    return *_drawn(dataset, shots, shot_list, select), said_of_data(dataset)


def _drawn(
    dataset: Dataset, shots: str, shot_list: str | None, select: str
) -> tuple[Dataset | tuple[Sample, ...], int | tuple[int, int] | None]:
    """The data set, and how many images are to be drawn from it: None for all, as with a published list."""
    from dataclasses import replace

    from madclip.data.shots import published_shots

    if shot_list is None:
        return dataset, parse_shots(shots)
    source, _, name = shot_list.partition(":")
    listed = published_shots(source, name, parse_equal_shots(shots), dataset.shot_pool)
    # Only an epoch chosen on test images needs more than the list; a refit then asks what to draw.
    return replace(dataset, samples=(*listed, *dataset.split("test"))) if select == "test-best" else listed, None


def refit(
    detector: Detector,
    data: Annotated[
        list[Path],
        typer.Argument(
            help="The images that it learned from and new ones beside them: a folder or a manifest. Of a joint "
            "detector OBJECTIVE=FOLDER of all modalities, and of new ones."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A new folder for the refitted detector; without it, the old one gives way."),
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option(
            metavar="N|NORMAL,ABNORMAL|all",
            help="Draw so many anew; without it, its shots that are still there and all that was added since.",
        ),
    ] = None,
    patients: Patients = "auto",
    normal: NormalNames = None,
    abnormal: AbnormalNames = None,
    slices: Slices = "all",
    seed: Seed = 0,
    folds: Annotated[
        int,
        typer.Option(help="As for fit, for new thresholds, which takes as long as that; 0 keeps the thresholds."),
    ] = 0,
    operating_point: OperatingPoint = "youden",
    overwrite: Overwrite = False,
    force: Force = False,
    backbone: SavedBackbone = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Teach a detector images that were added or removed.

    It goes on from what it knows, which takes seconds. Images may be relabelled as well.
    """
    import time

    from madclip.detector import MadCLIP
    from madclip.fitting import Run
    from madclip.training.cache import TokenCache

    target = out or detector
    check_detector(target, overwrite=overwrite or out is None)
    model = MadCLIP.load(detector, backbone=backbone, device=device)
    reading = parse_reading(patients, normal, abnormal, slices, model.recipe.axis)
    given = read_sets(data, reading, force=force) if model.state.modalities else _one_set(data, reading, force=force)
    start = time.perf_counter()
    with shown_progress() as progress:
        model.refit(
            given.shot_pool if shots == "all" and isinstance(given, Dataset) else given,
            shots=parse_shots(shots or "all"),
            seed=seed,
            folds=folds,
            operating_point=operating_point,
            run=Run(TokenCache(), progress=progress),
        )
    seconds = time.perf_counter() - start
    model.save(target)
    facts = {"detector": str(target), "seconds": seconds, **model.provenance.summary()}
    stale = model.provenance.calibrated_before_refit
    kept = "; thresholds are those from before (--folds 4 makes new ones)" if stale else ""
    done = f"{target}: refitted on {model.provenance.learned} in {seconds:.1f} s{kept}"
    lines = [done, *(said_of_modalities(model) or (model.provenance.uncalibrated, _threshold(model)))]
    print_facts(as_json, facts, "\n".join(filter(None, lines)))


def _one_set(data: list[Path], reading: Reading, *, force: bool) -> Dataset:
    if len(data) > 1:
        raise DataError(f"{data[1]}: this detector is of one modality, and learns from one set")
    return read_dataset(data[0], reading, force=force, needed=NORMAL_ONLY)


def repeat(
    data: Data,
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="The folder of the runs; those that are finished there are not done again."),
    ],
    seeds: Annotated[int, typer.Option(min=1, help="How many draws of shots; their seeds are 0, 1, and so on.")] = 3,
    shots: Annotated[
        str,
        typer.Option(metavar="N|NORMAL,ABNORMAL", help="How many images a draw has: N of each class, or of the two."),
    ] = "16",
    patients: Patients = "auto",
    normal: NormalNames = None,
    abnormal: AbnormalNames = None,
    slices: Slices = "all",
    backbone: BackboneOption = DEFAULT_BACKBONE,
    objective: Objective = "medical image",
    recipe: RecipeName = None,
    change: Changes = None,
    grey_range: GreyRange = None,
    axis: AxisOption = "axial",
    tiles: Tiles = 0,
    folds: Folds = 4,
    operating_point: OperatingPoint = "youden",
    select: SelectOption = "last",
    same_patient: SamePatient = False,
    force: Force = False,
    device: Device = "auto",
    pool: Pool = "local",
    address: Address = None,
    workers: Workers = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="How many threads each process has; 1 where there are --workers.")
    ] = None,
    gpus: Gpus = 0,
    as_json: Json = False,
) -> None:
    """Fit and evaluate with several draws of shots.

    One draw of a few images says little: this says how much the draws differ.
    """
    from madclip.detector import MadCLIP
    from madclip.evaluation.repeat import repeat as repeated
    from madclip.fitting import Run
    from madclip.training.cache import TokenCache

    alone = pool == "local" and not (address or workers or threads or gpus)
    each = map if alone else executor_of(pool, address, workers, threads or 1, gpus).run
    check_runs(out, "repeat")
    if backbone == DEFAULT_BACKBONE:
        note(DEFAULT_NOTE)
    counts = parse_shots(shots)
    if not counts:
        raise RecipeError(f"repeat needs a number of shots: with --shots {shots} every draw is the same")
    chosen = parse_recipe(recipe, change, grey_range, axis, tiles, backbone=backbone)
    dataset = read_dataset(data, parse_reading(patients, normal, abnormal, slices, chosen.axis), force=force)
    detector = MadCLIP(chosen, backbone=backbone, objective=objective, device=device)
    with shown_progress() as progress:
        summary = repeated(
            detector,
            dataset,
            out,
            shots=counts,
            seeds=range(seeds),
            folds=folds,
            operating_point=operating_point,
            same_patient=same_patient,
            run=Run(TokenCache(), select=select, progress=progress),
            each=each,
        )
    if as_json:
        print_facts(True, summary, "")
        return
    print_table(["metric", "mean", "std", "95 % interval of the mean", "runs"], _metric_rows(summary))
    for mark in summary["marks"]:
        typer.echo(f"note: {mark}")


def _metric_rows(summary: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, found in summary.items():
        if isinstance(found, dict) and found.get("mean") is not None:
            interval = "" if found["ci"] is None else f"{found['ci'][0]:.3f} to {found['ci'][1]:.3f}"
            spread = "" if found["std"] is None else f"{found['std']:.3f}"
            each = " ".join("-" if value is None else f"{value:.3f}" for value in found["values"])
            rows.append(
                [
                    name + " (optimistic)" * found.get("optimistic", False),
                    f"{found['mean']:.3f}",
                    spread,
                    interval,
                    each,
                ]
            )
    return rows
