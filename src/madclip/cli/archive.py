"""`madclip predict --table parquet`: images of an archive, on this machine or on a Ray cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from madclip.cli.console import note, print_facts, shown_progress
from madclip.cli.joint import why_uncalibrated
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.report.plan import MapFormat
    from madclip.scale.executor import Executor
    from madclip.scale.listing import Source
    from madclip.scale.scoring import SavedDetector


def saved_detector(folder: Path, axis: str | None, engine: str, backbone: str | None, device: str) -> SavedDetector:
    """The detector that every worker opens, as the options of `madclip predict` say; what it lacks is said."""
    from madclip import storage
    from madclip.scale.scoring import SavedDetector, detector_digest

    saved = storage.read(folder)
    for said in why_uncalibrated(saved):
        note(said)
    chosen = _engine(folder, engine, backbone, device)
    return SavedDetector(folder.resolve(), detector_digest(folder), axis or saved.recipe.axis, chosen, backbone, device)


def predict_archive(
    scoring: SavedDetector,
    inputs: Sequence[str],
    out: Path,
    executor: Executor,
    maps: MapFormat,
    *,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Score images into a Parquet data set, as the options of `madclip predict` say."""
    from madclip.scale.archive import ROWS
    from madclip.scale.archive import predict_archive as predict

    source = _source(inputs, out, scoring.axis, overwrite=overwrite)
    with shown_progress() as progress:
        counts = predict(
            source,
            inputs[0],
            out.resolve(),
            scoring,
            executor=executor,
            maps=maps,
            overwrite=overwrite,
            progress=progress,
        )
    scored = counts.rows - counts.failed
    facts = {"out": str(out), "engine": scoring.engine, "entries": counts.entries, "scored": scored}
    text = f"{out / ROWS}: {scored:,} images scored, {counts.failed:,} failed; their rows say why in the column error"
    print_facts(as_json, {**facts, "failed": counts.failed}, text)
    if counts.failed:
        raise typer.Exit(2)


def _source(inputs: Sequence[str], out: Path, axis: str, *, overwrite: bool) -> Source:
    """The rows of a listing, or the images that files, folders and patterns stand for."""
    from madclip.cli.predict import at_hand
    from madclip.data.inputs import expand_inputs
    from madclip.scale.listing import found, is_listing, is_url, listing

    named = [one for one in inputs if is_url(one) and not one.startswith("dicomweb+")]
    named += [one for one in inputs if is_listing(one) and not is_url(one) and not Path(one).is_dir()]
    if not named:
        with shown_progress() as progress:
            local = [at_hand(one, out, progress, afresh=overwrite) for one in inputs]
        images = expand_inputs(local, axis)
        if said := images.said():
            note(said)
        return found(images.images)
    if len(inputs) > 1:
        raise DataError(f"{named[0]}: a listing is given alone; name the other images in it")
    if not is_listing(named[0]):
        raise DataError(f"{named[0]}: list URLs of images in a CSV or Parquet file with a column image, and give that")
    return listing(named[0])


def _engine(detector: Path, wanted: str, backbone: str | None, device: str) -> str:
    """What computes, the same for every worker: `auto` is decided here, once."""
    from madclip.export.use import ENGINES, choose_engine

    if wanted != "auto":
        return wanted
    if not (detector / ENGINES).is_dir():
        return "torch"
    from madclip.detector import MadCLIP

    export, passed = choose_engine(MadCLIP.load(detector, backbone=backbone, device=device), detector, wanted)
    for reason in passed:
        note(f"note: {reason}")
    return "torch" if export is None else str(export.resolve())
