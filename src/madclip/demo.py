"""The main job from end to end on images that need no download: fit, evaluate, report, a sheet to look at."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from madclip.data.readers import read_image, read_mask
from madclip.data.samples import Dataset, Sample, load_dataset
from madclip.detector import MadCLIP
from madclip.evaluation.protocol import evaluate
from madclip.files import new_file, write_whole
from madclip.fitting import Run
from madclip.phantoms.captions import OBJECTIVES
from madclip.phantoms.dataset import write_phantoms
from madclip.progress import Progress, silent
from madclip.report import write_report
from madclip.report.pictures import contact_sheet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from madclip.evaluation.result import EvaluationResult

MODALITIES = ("brain", "oct", "fundus")
SEED = 20_000
DIFFICULTY = 0.35
"""Phantoms of the demo come from seeds that pre-training never used."""
ROWS = ((1, 0.15), (1, 0.5), (1, 0.85), (0, 0.5))
"""Images on the sheet: label, and where the image stands among those of its label when they are ranked by score."""


@dataclass(frozen=True)
class DemoRun:
    """What came of one data set.

    Attributes:
        name: Of the data set.
        result: Measured on its test images.
        seconds: From the first shot to the last picture.
        detector: Folder.
        report: HTML page.
        sheet: PNG of images, heatmaps and masks.
    """

    name: str
    result: EvaluationResult
    seconds: float
    detector: Path
    report: Path
    sheet: Path


def run_demo(
    out: Path,
    *,
    data: Path | None = None,
    shots: int = 8,
    test: int = 200,
    objective: str | None = None,
    progress: Progress = silent,
) -> Iterator[DemoRun]:
    """Fit and evaluate on phantoms of three modalities, or on a folder of one's own.

    Args:
        out: Folder of everything that is made.
        data: A labelled data set in place of the phantoms.
        shots: Images of each class to learn from.
        test: Phantoms to evaluate on, half of them abnormal.
        objective: What the images of `data` show.
        progress: Told of every stage of every data set.
    """
    if data is not None:
        yield _run(load_dataset(data), data.name, objective or "medical image", out, shots, progress)
        return
    for modality in MODALITIES:
        folder = out / "images" / modality
        draw_once(folder, modality, test, shots)
        yield _run(load_dataset(folder), modality, OBJECTIVES[modality], out, shots, progress)


def draw_once(folder: Path, modality: str, test: int, shots: int) -> None:
    """Write phantoms into a folder; those of an earlier call stay only if they were drawn with the same settings."""
    settings = json.dumps({"test": test, "shots": shots, "seed": SEED, "difficulty": DIFFICULTY})
    drawn = folder.with_name(f"{modality}.json")
    if folder.exists() and drawn.exists() and drawn.read_text(encoding="utf-8") == settings:
        return
    drawn.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    write_phantoms(folder, modality, test // 2, test - test // 2, SEED, DIFFICULTY, shots=shots)
    write_whole(drawn, settings)


def _run(dataset: Dataset, name: str, objective: str, out: Path, shots: int, progress: Progress) -> DemoRun:
    start = time.monotonic()
    detector = MadCLIP(objective=objective)
    named = partial(_in_part, progress, name)
    detector.fit(dataset, shots=shots, folds=2, run=Run(progress=named))
    folder = out / name
    detector.save(folder / "detector")
    result = evaluate(detector, dataset, on_image=lambda done, total: named("evaluate", done, total))
    report = write_report(
        result, folder / "report.html", title=f"{name}: phantoms" if out in dataset.root.parents else name
    )
    sheet = folder / "sheet.png"
    _write_sheet(detector, dataset, result, sheet)
    return DemoRun(name, result, time.monotonic() - start, folder / "detector", report, sheet)


def _in_part(
    progress: Progress,
    name: str,
    stage: str,
    done: int,
    total: int,
    /,
    *,
    loss: float | None = None,
    part: str = "",
) -> None:
    """Tell of progress with the data set's name before the stage's."""
    progress(f"{name}: {stage}", done, total, loss=loss, part=part)


def _write_sheet(detector: MadCLIP, dataset: Dataset, result: EvaluationResult, path: Path) -> None:
    """Images at fixed ranks, so that the sheet shows what is usual and not what is best."""
    from PIL import Image

    by_name = {dataset.name(sample.image): sample for sample in dataset.test_pool}
    rows = []
    for label, rank in ROWS:
        ranked = sorted((row for row in result.rows if row.label == label), key=lambda row: -row.score)
        if not ranked:
            continue
        row = ranked[min(int(rank * len(ranked)), len(ranked) - 1)]
        sample = by_name[row.name]
        prediction = detector.predict(sample.image)
        said = f"{'abnormal' if label else 'normal'}, score {row.score:.3f}"
        rows.append((said, read_image(sample.image).pixels, prediction.anomaly_map, _mask(sample, prediction.size)))
    with new_file(path) as partial_file:
        Image.fromarray(contact_sheet(rows)).save(partial_file, format="PNG")


def _mask(sample: Sample, size: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None:
    if sample.mask is not None:
        return read_mask(sample.mask)
    return np.zeros(size, np.bool_) if sample.label == 0 else None
