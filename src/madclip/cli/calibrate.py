"""`madclip calibrate`: thresholds of a detector from further images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from madclip.cli.console import print_facts
from madclip.cli.options import (
    AbnormalNames,
    Data,
    Detector,
    Device,
    Json,
    NormalNames,
    Overwrite,
    Patients,
    SavedBackbone,
    Slices,
    parse_reading,
)
from madclip.cli.outputs import check_detector


def calibrate(
    detector: Detector,
    data: Data,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="A new folder for the detector with new thresholds; without it, the old one gives way."
        ),
    ] = None,
    operating_point: Annotated[
        str | None,
        typer.Option(
            metavar="youden|sens=X|spec=X", help="What the threshold aims at; without it what it aimed at before."
        ),
    ] = None,
    modality: Annotated[
        str | None, typer.Option(help="Which modality of a joint detector all images are of; each has its thresholds.")
    ] = None,
    patients: Patients = "auto",
    normal: NormalNames = None,
    abnormal: AbnormalNames = None,
    slices: Slices = "all",
    overwrite: Overwrite = False,
    backbone: SavedBackbone = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Add labelled images to a detector's thresholds.

    Nothing else is learned from them. All of them are used, and evaluation leaves them out.
    """
    from madclip.data.load import scan_dataset
    from madclip.detector import MadCLIP

    target = out or detector
    check_detector(target, overwrite=overwrite or out is None)
    model = MadCLIP.load(detector, backbone=backbone, device=device)
    before = model.state.of(modality).provenance.calibrated_on
    reading = parse_reading(patients, normal, abnormal, slices, model.recipe.axis)
    found = scan_dataset(data, reading)
    model.calibrate(found, operating_point=operating_point, modality=modality)
    model.save(target)
    state = model.state.of(modality)
    known = state.calibration
    assert known is not None  # noqa: S101  (it was made just now)
    zeros, ones = len(known.normal_scores), len(known.abnormal_scores)
    new = len(set(state.provenance.calibrated_on) - set(before))
    facts = {
        "detector": str(target),
        "modality": modality,
        "operating_point": known.operating_point,
        "threshold": known.threshold,
        "normal": zeros,
        "abnormal": ones,
        "new": new,
        "note": known.note,
    }
    whose = f" of {modality}" if modality else ""
    rests = known.rests() or f"The calibration rests on {zeros} normal and {ones} abnormal images."
    lines = [f"{target}: threshold{whose} {known.threshold:.4f} ({known.operating_point}), with {new} further images"]
    print_facts(as_json, facts, "\n".join([*lines, rests, *([f"note: {known.note}"] if known.note else [])]))
