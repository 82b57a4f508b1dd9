"""The main job from end to end on images that need no download: fit, evaluate, report, a sheet to look at."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from madclip.data.load import load_dataset
from madclip.data.readers import read_image, read_mask
from madclip.detector import MadCLIP
from madclip.errors import DataError
from madclip.evaluation.protocol import evaluate
from madclip.files import new_file, write_whole
from madclip.fitting import Run
from madclip.phantoms.captions import OBJECTIVES
from madclip.phantoms.dataset import write_phantoms
from madclip.progress import silent
from madclip.report import write_report
from madclip.report.sheet import contact_sheet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from madclip.data.samples import Dataset, Sample
    from madclip.evaluation.result import EvaluationResult
    from madclip.progress import Progress

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
        name: The data set's name.
        result: What was measured on its test images.
        seconds: Time from the first shot to the last picture.
        detector: Folder of the detector.
        report: The evaluation as an HTML page.
        sheet: A PNG of images, heatmaps and masks.
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
        progress: Told of each stage of each data set.

    Raises:
        DataError: There are images in `out` of which it is not known how they were drawn.
    """
    if data is not None:
        yield _run(load_dataset(data), data.name, objective or "medical image", out, shots, progress)
        return
    for modality in MODALITIES:
        folder = out / "images" / modality
        draw_images(folder, modality, shots, test)
        yield _run(load_dataset(folder), modality, OBJECTIVES[modality], out, shots, progress)


def draw_images(folder: Path, modality: str, shots: int, test: int) -> None:
    """Draw the phantoms of a modality; those of an earlier call are used where their settings were the same.

    The settings stand beside the folder, in a file of its name with `.json`. Images of other settings are drawn anew.

    Raises:
        DataError: The folder is there without its settings, so it may be anybody's; or it cannot be written.
    """
    normal = test // 2
    settings = {
        "modality": modality,
        "normal": normal,
        "abnormal": test - normal,
        "shots": shots,
        "seed": SEED,
        "difficulty": DIFFICULTY,
    }
    beside = folder.with_name(f"{folder.name}.json")
    if folder.exists():
        try:
            known = json.loads(beside.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DataError(
                f"{folder}: exists, and {beside.name}, which says how it was drawn, cannot be read; remove it or give "
                "another --out"
            ) from None
        if known == settings:
            return
        beside.unlink()
        shutil.rmtree(folder)
    try:
        write_whole(beside, json.dumps(settings, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{folder}: cannot write there ({error.strerror})") from error
    write_phantoms(folder, modality, normal, test - normal, SEED, DIFFICULTY, shots=shots)


def _run(dataset: Dataset, name: str, objective: str, out: Path, shots: int, progress: Progress) -> DemoRun:
    def told(stage: str, done: int, total: int, /, *, loss: float | None = None, part: str = "") -> None:
        progress(f"{name}: {stage}", done, total, loss=loss, part=part)

    start = time.monotonic()
    detector = MadCLIP(objective=objective)
    detector.fit(dataset, shots=shots, folds=2, run=Run(progress=told))
    folder = out / name
    detector.save(folder / "detector")
    result = evaluate(detector, dataset, progress=told)
    own = out in dataset.root.parents
    report = write_report(
        result, folder / "report.html", title=f"{name}: phantoms" if own else name, detector=str(folder / "detector")
    )
    sheet = folder / "sheet.png"
    _write_sheet(detector, dataset, result, sheet)
    return DemoRun(name, result, time.monotonic() - start, folder / "detector", report, sheet)


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
    with new_file(path) as partial:
        Image.fromarray(contact_sheet(rows)).save(partial, format="PNG")


def _mask(sample: Sample, size: tuple[int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]] | None:
    if sample.mask is not None:
        return read_mask(sample.mask)
    return np.zeros(size, np.bool_) if sample.label == 0 else None
