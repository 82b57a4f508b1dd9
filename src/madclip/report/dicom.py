"""DICOM objects of a run of predictions: for each series what was asked for, in files that are numbered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from madclip import __version__
from madclip.clinical.objects import (
    Finding,
    Origin,
    fractional,
    headers_for,
    parametric_map,
    picture,
    report,
    segmentation,
)
from madclip.data.readers import read_image
from madclip.data.readers.dicom import read_header
from madclip.errors import DataError, RecipeError
from madclip.files import new_file, write_whole
from madclip.heatmap import overlay
from madclip.prediction import Row
from madclip.report.series import series_row

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from madclip.calibration.calibration import Calibration
    from madclip.data.series import Series
    from madclip.detector import MadCLIP
    from madclip.prediction import Prediction
    from madclip.report.plan import Output

FOLDER = "dicom"
Kind = Literal["seg", "map", "picture", "report"]
KINDS: tuple[Kind, ...] = ("seg", "map", "picture", "report")


def parse_kinds(text: str) -> tuple[Kind, ...]:
    """Kinds of objects as typed: `seg`, or several with commas between them; an empty text is none.

    Raises:
        RecipeError: A kind is unknown.
    """
    asked = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in asked if part not in KINDS]
    if unknown:
        raise RecipeError(f"--dicom {unknown[0]!r}: choose among {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in asked)


@dataclass(frozen=True)
class DicomWriter:
    """Writes the objects of one series after the other.

    Attributes:
        folder: Where predictions go.
        kinds: What is written of each series.
        origin: What makes the results.
        grey_range: How images are shown below an overlay.
        calibration: What whole series have said of their highest scores; None where none have.
    """

    folder: Path
    kinds: tuple[Kind, ...]
    origin: Origin
    grey_range: str = "file"
    calibration: Calibration | None = None

    def write(
        self, number: int, series: Series, maps: npt.NDArray[np.float32], found: Sequence[Prediction | DataError]
    ) -> None:
        """Writes what can be said of a series; for an object that it cannot have, a line that says why.

        Args:
            number: The place of the series in the run.
            series: A DICOM series.
            maps: [N, H, W], one for each of its images.
            found: What was predicted of each.
        """
        headers = [read_header(path) for path in dict.fromkeys(image.path for image in series.images)]
        scored = [(one.score, place) for place, one in enumerate(found) if not isinstance(one, DataError)]
        if not scored:
            return
        worst = max(scored, key=lambda one: one[0])[1]  # the first of equals, as in the table
        folder = self.folder / FOLDER
        folder.mkdir(exist_ok=True)
        for kind in self.kinds:
            start = f"{number:03d}_{kind}"
            try:
                made = self._made(kind, series, headers_for(headers), maps, found, worst)
            except DataError as error:
                write_whole(folder / f"{start}.txt", f"no {kind}: {error}\n")
                continue
            for part, one in enumerate(made):
                name = f"{start}.dcm" if len(made) == 1 else f"{start}_{part:03d}.dcm"
                with new_file(folder / name) as partial:
                    one.save_as(partial, enforce_file_format=True)

    def _made(
        self,
        kind: Kind,
        series: Series,
        sources: Sequence[Dataset],
        maps: npt.NDArray[np.float32],
        found: Sequence[Prediction | DataError],
        worst: int,
    ) -> list[Dataset]:
        """The objects of one kind: one, or one for each of several radiographs."""
        if kind == "seg" and series.places is None and len(sources) == len(maps):
            return [fractional(source, heat, self.origin) for source, heat in zip(sources, maps, strict=True)]
        if kind in ("seg", "map"):
            placed = maps[np.argsort([image.frame or 0 for image in series.images])] if len(sources) == 1 else maps
            if kind == "map":
                return [parametric_map(sources, placed, self.origin)]
            return [segmentation(sources, placed >= self.origin.threshold, self.origin)]
        if kind == "picture":
            pixels = read_image(series.images[worst], self.grey_range).pixels
            source = sources[worst if len(sources) == len(maps) else 0]
            return [picture(source, np.asarray(overlay(pixels, maps[worst])), self.origin)]
        return [report(sources, self._finding(series, sources, found, worst), self.origin)]

    def _finding(
        self, series: Series, sources: Sequence[Dataset], found: Sequence[Prediction | DataError], worst: int
    ) -> Finding:
        rows = [Row.of(image, one).to_dict() for image, one in zip(series.images, found, strict=True)]
        said = series_row(series, rows, self.calibration)
        sure = (
            "The verdict is at the error rates that the detector's calibration can promise." if said["verdict"] else ""
        )
        place, frame = worst if len(sources) == len(found) else 0, series.images[worst].frame
        number = f"instance number {sources[place].get('InstanceNumber')}" if frame is None else f"frame {frame + 1}"
        where = f"It is {number} of its series." if len(found) > 1 else ""
        statement = " ".join(filter(None, [said["note"], where, sure]))
        return Finding(said["score"], said["threshold"], said["verdict"], statement, place)

    def names(self, number: int) -> list[str]:
        """The objects that there are of a series, below the folder of the predictions."""
        return sorted(f"{FOLDER}/{path.name}" for path in (self.folder / FOLDER).glob(f"{number:03d}_*.dcm"))

    def refused(self, number: int) -> list[str]:
        """Why there is no object of some kinds, a line each."""
        paths = sorted((self.folder / FOLDER).glob(f"{number:03d}_*.txt"))
        return [path.read_text(encoding="utf-8").strip() for path in paths]


def dicom_writer(detector: MadCLIP, known: str, folder: Path, output: Output) -> DicomWriter | None:
    """What writes the DICOM objects that are asked for, or None where none are.

    Args:
        detector: Whose pixel threshold bounds the regions, where `output` names none.
        known: The detector's fingerprint.
        folder: Where predictions go.
        output: What is written.

    Raises:
        DataError: Nothing says where a region ends.
    """
    if not output.dicom:
        return None
    own = detector.calibration.pixel_threshold if detector.calibration else None
    region = own if output.region is None else output.region
    if region is None:
        raise DataError(
            "the detector has no threshold for pixels (no masks, or not calibrated), which a DICOM segmentation needs; "
            "name one: --region 0.5"
        )
    origin = Origin(known, __version__, region, detector.objective, output.run)
    return DicomWriter(folder, output.dicom, origin, output.grey_range, detector.state.series)
