"""Predictions as files: predictions.jsonl and .csv, heatmap overlays, raw maps and a page; written as they come."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import fields, replace
from typing import IO, TYPE_CHECKING, Any, Self

from PIL import Image

from madclip import __version__
from madclip.data.inputs import Inputs
from madclip.data.readers import Image as Pixels
from madclip.data.readers import is_scanner_file, read_image
from madclip.data.ref import as_ref
from madclip.errors import DataError
from madclip.files import new_file
from madclip.heatmap import oriented, overlay, side_by_side
from madclip.prediction import Row
from madclip.progress import silent
from madclip.report.dicom import FOLDER as DICOM
from madclip.report.dicom import dicom_writer
from madclip.report.page import thumbnail_of, write_page
from madclip.report.plan import RUN, SUFFIX, Output, Plan, detector_fingerprint, read_plan, write_map
from madclip.report.series import SERIES, VOLUMES, SeriesResults, start_of_series
from madclip.report.study import PAGE as STUDY

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from madclip.data.ref import ImageRef
    from madclip.data.series import Series
    from madclip.detector import MadCLIP
    from madclip.prediction import Prediction
    from madclip.progress import Progress

JSONL, CSV, PAGE = "predictions.jsonl", "predictions.csv", "index.html"
PARTIAL = f"{JSONL}.partial"
"""Rows of a run that is not finished."""
FILES = (RUN, JSONL, CSV, PAGE, SERIES, STUDY, PARTIAL, f"{CSV}.partial")
FOLDERS = ("overlays", "maps", "thumbnails", VOLUMES, DICOM)
_ROW = [field.name for field in fields(Row)]
COLUMNS = (*(name for name in _ROW if name != "error"), "overlay", "map", "error")
"""Keys of every row, in order."""


def predict_folder(
    detector: MadCLIP,
    images: Inputs | Sequence[ImageRef | Path | str],
    folder: Path,
    *,
    output: Output | None = None,
    overwrite: bool = False,
    engine: str = "torch",
    about: dict[str, str] | None = None,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Score images into a folder, in constant memory; an unfinished run of the same call goes on where it stopped.

    For each series a heat map that lies on the scan is written, `volumes/NNN.nii.gz`, and a row of `series.jsonl`; the
    maps of one series at a time are held in memory.

    Args:
        detector: A fitted detector.
        images: What to score, once each; what `expand_inputs` found says which of them form a series.
        folder: As in `PredictionFolder`, like `output`, `overwrite` and `about`.
        output: What is written beside the tables.
        overwrite: Whether predictions that are there already are removed first.
        engine: What computes, in words: an exported model says other numbers than torch.
        about: Facts for the head of the page; objective and backbone are added.
        progress: Told of the stage `predict`.

    Returns:
        A row with all of `COLUMNS` for each image; where an image could not be used, its `error` is not None.

    Raises:
        DataError: See `PredictionFolder`.
    """
    known = detector_fingerprint(detector, engine)
    facts = {**(about or {}), "Objective": detector.objective, "Backbone": detector.backbone.spec.id, "Engine": engine}
    drawn = replace(output or Output(), grey_range=detector.recipe.grey_range)
    found = images if isinstance(images, Inputs) else Inputs(tuple(map(as_ref, images)), {})
    objects = dicom_writer(detector, known, folder, drawn)
    writing = PredictionFolder(
        folder, found.images, detector=known, output=drawn, overwrite=overwrite, about=facts, series=found.series
    )
    with writing as made:
        left = made.left
        whole = SeriesResults(folder, found.series, objects, detector.state.series, resample=drawn.resample)
        # Maps are scaled to the images' own size where they are written, and nowhere else.
        native = drawn.overlays or drawn.maps != "none" or bool(found.series)
        for image, result in zip(left, detector.predict_iter(left, native=native), strict=True):
            whole.add(image, result)  # before the row: a run that ends here goes on with this series
            made.add(image, result)
            progress("predict", len(made.rows), len(made.images))
        whole.write_tables(made.rows, facts | {"Version": __version__, "Detector's digest": known[:16]})
    return writing.rows


class PredictionFolder:
    """Writes predictions into a folder, one at a time; tables and page get their names when all is done.

    A folder that holds a run already is refused, with two exceptions: `overwrite` removes that run first, and an
    unfinished run with the same plan goes on where it stopped, its finished rows kept. What a killed process leaves is
    such a run. Names of output files are made of a running number and the harmless characters of the image's name, so
    that no name given from outside builds a path.

        with PredictionFolder(out, images, detector=fingerprint) as folder:
            for image, result in zip(folder.left, detector.predict_iter(folder.left)):
                folder.add(image, result)

    Args:
        folder: Made where it is missing.
        images: All images of the run in order, once each.
        detector: What identifies the detector and its engine, for example `detector_fingerprint`.
        output: What is written beside the tables.
        overwrite: Whether predictions that are there already are removed first.
        about: Facts for the head of the page, as words: the detector's folder, its backbone.
        series: Which images belong together; an unfinished run goes on at the start of one.

    Attributes:
        rows: The rows so far, those of the unfinished run included; each holds all of `COLUMNS`.

    Raises:
        DataError: On entering: the folder holds other things, or another run; an image lies in the folder; another
            process is writing there; or nothing can be written there.
    """

    numbered = False
    """Whether files and page name every image by its number alone."""

    def __init__(
        self,
        folder: Path,
        images: Sequence[ImageRef | Path | str],
        *,
        detector: str = "",
        output: Output | None = None,
        overwrite: bool = False,
        about: dict[str, str] | None = None,
        series: Sequence[Series] = (),
    ) -> None:
        self.series = series
        self.folder, self.images = folder, [as_ref(image) for image in images]
        self.output, self.overwrite, self.about = output or Output(), overwrite, dict(about or {})
        self.plan = Plan.of(self.images, detector, self.output)
        self.rows: list[dict[str, Any]] = []
        self._jsonl: IO[str] | None = None

    @property
    def left(self) -> list[ImageRef]:
        """The images that have no row yet."""
        return self.images[len(self.rows) :]

    def __enter__(self) -> Self:
        refuse_own_output(self.folder, self.images)
        try:
            self._prepare()
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._jsonl is not None:
                self._jsonl.close()
            if kind is None:
                self._finish()
        except OSError as failure:  # what was buffered found the disk full
            raise self._unwritable(failure) from failure
        # After an error the rows so far stay, and the same call goes on from there.

    def add(self, image: ImageRef | Path | str, result: Prediction | DataError) -> dict[str, Any]:
        """Write what is said of the next image, or why nothing is; returns its row.

        Raises:
            DataError: It cannot be written, or the image is not the next one of the run.
        """
        ref = as_ref(image)
        if not self.left or ref != self.left[0]:
            raise DataError(f"{ref}: not the next image of this run; results come in the order of the images")
        row: dict[str, Any] = dict.fromkeys(COLUMNS) | Row.of(ref, result).to_dict()
        try:
            if not isinstance(result, DataError):
                row |= self._draw(ref, result)
            self._write(row)
        except OSError as error:
            raise self._unwritable(error) from error
        return row

    def _draw(self, image: ImageRef, prediction: Prediction) -> dict[str, str]:
        """Overlay, thumbnail and map of one prediction; their paths in the folder."""
        # Names of scanner files often are a patient's.
        name = "" if self.numbered or is_scanner_file(image.path) else f"_{harmless(image.path.stem)}"
        stem = f"{len(self.rows):06d}{name}"
        made = {}
        if self.output.overlays:
            shown, heat = self._shown(image, prediction)
            picture = overlay(shown.pixels, heat)
            made["overlay"] = f"overlays/{stem}.png"
            with new_file(self.folder / made["overlay"]) as partial:
                # A tenth larger than at the usual level, in a third of the time, which was most of what drawing took.
                marked = oriented(picture, shown.sides, shown.spacing, at_detector=shown.at_detector)
                Image.fromarray(marked).save(partial, format="PNG", compress_level=1)
            with new_file(self.folder / str(thumbnail_of(made["overlay"]))) as partial:
                side_by_side(shown.pixels, picture).save(partial, format="JPEG", quality=82)
        if self.output.maps != "none":
            made["map"] = f"maps/{stem}.{SUFFIX[self.output.maps]}"
            with new_file(self.folder / made["map"]) as partial, partial.open("wb") as file:
                write_map(prediction.anomaly_map, self.output.maps, file, self._pixel_size(image, prediction))
        return made

    def _shown(self, image: ImageRef, prediction: Prediction) -> tuple[Pixels, npt.NDArray[np.float32]]:
        """What a map is drawn over, and the map at its size."""
        return read_image(image, self.output.grey_range), prediction.anomaly_map

    def _pixel_size(self, image: ImageRef, prediction: Prediction) -> tuple[float, float] | None:  # noqa: ARG002
        """Millimetres between rows and columns of a map, where its file is to say so."""
        return None

    def _write(self, row: dict[str, Any]) -> None:
        assert self._jsonl is not None, "use the folder in a with statement"  # noqa: S101
        self._jsonl.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._jsonl.flush()  # a process that is killed loses no row
        self.rows.append(row)

    def _prepare(self) -> None:
        """Take up the unfinished run that is there, or make room for a new one."""
        earlier = read_plan(self.folder)
        goes_on = earlier == self.plan and not self.overwrite and (self.folder / PARTIAL).is_file()
        if not goes_on:
            self._make_room(earlier)
        for name in ("", *self._subfolders()):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        if not goes_on:
            self.plan.write(self.folder)
        partial = self.folder / PARTIAL
        # Names of files need not be valid Unicode; a lone surrogate escaped like this is JSON still.
        self._jsonl = partial.open("a+", encoding="utf-8", errors="backslashreplace", newline="")
        try:
            lock(self._jsonl, self.folder)
            rows, ends = finished_rows(partial, self.images)
            kept = start_of_series(len(rows), self.images, self.series)
            self.rows = rows[:kept]
            self._jsonl.truncate(ends[kept])
        except BaseException:
            self._jsonl.close()
            raise

    def _subfolders(self) -> tuple[str, ...]:
        return (
            *(("overlays", "thumbnails") if self.output.overlays else ()),
            *(("maps",) * (self.output.maps != "none")),
        )

    def _make_room(self, earlier: Plan | None) -> None:
        """Remove the predictions that are there, if that is wanted; nothing else is ever removed."""
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return
        if not self.folder.is_dir():
            raise DataError(f"{self.folder}: cannot write there (it is a file; name a folder for the predictions)")
        ours = [name for name in FILES if (self.folder / name).exists()]
        if not ours:
            raise DataError(f"{self.folder}: exists and holds no predictions; name a new folder")
        if not self.overwrite:
            state = "an unfinished run with another detector, other images or settings"
            finished = (self.folder / JSONL).exists() or earlier is None
            raise DataError(
                f"{self.folder}: holds {'predictions already' if finished else state}; name a new folder, or say that "
                "it may be replaced (--overwrite)"
            )
        if (self.folder / PARTIAL).exists():
            with (self.folder / PARTIAL).open("a") as file:
                lock(file, self.folder)
        for name in FOLDERS:
            shutil.rmtree(self.folder / name, ignore_errors=True)
        for name in ours:
            (self.folder / name).unlink()

    def _finish(self) -> None:
        if self.left:
            raise DataError(f"{self.folder}: {len(self.left)} of {len(self.images)} images have no prediction yet")
        with new_file(self.folder / CSV) as partial:
            write_csv(self.rows, partial)
        write_page(self.folder / PAGE, self.rows, self.about, numbered=self.numbered)
        (self.folder / PARTIAL).replace(self.folder / JSONL)

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"{self.folder}: cannot write there ({error.strerror or error})")


def refuse_own_output(folder: Path, images: Sequence[ImageRef]) -> None:
    """Refuse images that lie in the folder of the results: they are, or would become, this program's own output.

    Raises:
        DataError: There are such images.
    """
    inside = folder.resolve()
    own = [image for image in images if inside in image.path.resolve().parents]
    if own:
        raise DataError(
            f"{own[0]}: lies in {folder}, where the predictions go, like {len(own)} of {len(images)} images; name "
            "another folder for the predictions, outside of the images"
        )


def finished_rows(table: Path, images: Sequence[ImageRef]) -> tuple[list[dict[str, Any]], list[int]]:
    """Rows of an unfinished run that are whole, and where in the file, in bytes, each begins and the last one ends.

    Raises:
        DataError: A row is not that of the image in its place.
    """
    rows: list[dict[str, Any]] = []
    ends = [0]
    for number, line in enumerate(table.read_bytes().splitlines(keepends=True)):
        if not line.endswith(b"\n"):
            break  # the process was killed while it wrote this
        try:
            row = json.loads(line)
            same = number < len(images) and [row["image"], row["frame"], row["axis"] or ""] == [
                str(images[number].path),
                images[number].frame,
                images[number].axis,
            ]
        except (ValueError, LookupError, TypeError):
            same = False
        if not same:
            raise DataError(f"{table}: line {number + 1} is damaged; start again (--overwrite)")
        rows.append(row)
        ends.append(ends[-1] + len(line))
    return rows, ends


def lock(file: IO[str], folder: Path) -> None:
    """Hold a file as long as it is open, where the system can.

    Raises:
        DataError: Another process holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where a file that is open cannot be replaced anyway
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise DataError(f"{folder}: another process is writing predictions there; wait for it or stop it") from error
    except OSError:
        return  # a file system without locks


def write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write rows as a table with the columns `COLUMNS`; what is missing is empty."""
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        table.writerows(rows)


def read_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of a finished run, in the order of its images.

    Raises:
        DataError: There are none.
    """
    try:
        lines = (folder / JSONL).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"{folder}: no finished predictions there ({error.strerror})") from error
    yield from (json.loads(line) for line in lines if line)


def harmless(stem: str) -> str:
    """What of a name can stand in any file name: ASCII letters, digits and . _ -, at most 80 of them."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:80].strip("._") or "image"
