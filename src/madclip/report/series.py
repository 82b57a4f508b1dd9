"""What is said of a whole volume or series: its row, and the heat map that lies on the scan."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.clinical.geometry import affine_of, even_places, even_runs, interpolated
from madclip.clinical.nifti import write_heatmap
from madclip.data.readers.formats import is_volume, open_volume
from madclip.data.readers.volume import PLANES
from madclip.errors import DataError
from madclip.files import write_whole
from madclip.prediction import SHARED, Prediction, Row, judged
from madclip.report.study import write_study_page

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from madclip.calibration.calibration import Calibration
    from madclip.data.ref import ImageRef
    from madclip.data.series import Series
    from madclip.report.dicom import DicomWriter

SERIES, VOLUMES = "series.jsonl", "volumes"
_NO_MAP = np.zeros((0, 0), np.float32)


class SeriesResults:
    """Collects the maps of the series at hand, and writes its heat map when its last slice has come.

    Args:
        folder: Where predictions go.
        series: All series of the run, whose images come one after the other.
        dicom: Writes the DICOM objects of a series; None writes none.
        calibration: What whole series have said of their highest scores; None where none have.
        resample: Whether unevenly spaced slices give one heat map at even distances, not one for each even stretch.
    """

    def __init__(
        self,
        folder: Path,
        series: Sequence[Series],
        dicom: DicomWriter | None = None,
        calibration: Calibration | None = None,
        *,
        resample: bool = False,
    ) -> None:
        self.folder, self.series, self.dicom, self.calibration = folder, series, dicom, calibration
        self.resample = resample
        self._of = {image: number for number, one in enumerate(series) for image in one.images}
        self._found: list[Prediction | DataError] = []

    def add(self, image: ImageRef, result: Prediction | DataError) -> None:
        """Takes the map of the next image; nothing is done where it belongs to no series."""
        number = self._of.get(image)
        if number is None or not self._held(self.series[number]):
            return
        one = self.series[number]
        if image == one.images[0]:
            self._found = []
        self._found.append(result)
        if image == one.images[-1]:
            self._write(number, one)
            self._found = []

    def _held(self, one: Series) -> bool:
        """Whether anything is made of the maps of a series."""
        return bool(self.dicom and one.study) or self._is_volume(one)

    @staticmethod
    def _is_volume(one: Series) -> bool:
        return len(one.images) > 1 and (one.places is not None or is_volume(one.images[0].path))

    def write_tables(self, rows: Sequence[dict[str, Any]], about: dict[str, str]) -> None:
        """Writes a row for each series from the rows of its images, in the order of the run, and a page to look at."""
        if not self.series:
            return
        said: dict[int, list[dict[str, Any]]] = {}
        images = (image for one in self.series for image in one.images)
        known = {(str(image.path), image.frame, image.axis or None): self._of[image] for image in images}
        for row in rows:
            number = known.get((row["image"], row["frame"], row["axis"]))
            if number is not None:
                said.setdefault(number, []).append(row)
        made = [
            series_row(one, said[number], self.calibration, self._notes(number, one)) | self._written(number)
            for number, one in enumerate(self.series)
        ]
        write_study_page(self.folder, made, [said[number] for number in range(len(made))], about)
        lines = [json.dumps(row, ensure_ascii=False) for row in made]
        write_whole(self.folder / SERIES, ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))

    def _written(self, number: int) -> dict[str, list[str]]:
        names = (f"{number:03d}.nii.gz", f"{number:03d}_*.nii.gz")
        maps = sorted(f"{VOLUMES}/{path.name}" for name in names for path in (self.folder / VOLUMES).glob(name))
        return {"map": maps, "dicom": self.dicom.names(number) if self.dicom else []}

    def _notes(self, number: int, one: Series) -> list[str]:
        """What could not be written of a series, and what was interpolated."""
        refused = list(self.dicom.refused(number)) if self.dicom else []
        if not self.resample or not one.places or len(even_runs(one.places)) == 1:
            return refused
        even = even_places(one.places)
        if even is None:
            return [*refused, "Its slices lie on no line, so that its heat map could not be resampled."]
        step = np.linalg.norm(np.subtract(even[1].corner, even[0].corner))
        return [*refused, f"Its heat map is interpolated linearly onto {len(even)} slices {step:.2f} mm apart."]

    def _write(self, number: int, one: Series) -> None:
        """The heat map of a series: one file, or one for each evenly spaced stretch of slices."""
        found = [None if isinstance(one, DataError) else one.anomaly_map for one in self._found]
        shape = next((heat.shape for heat in found if heat is not None), None)
        if shape is None:
            return  # no slice could be read
        maps = np.stack([np.zeros(shape, np.float32) if heat is None else heat for heat in found])
        if self.dicom and one.study:
            self.dicom.write(number, one, maps, self._found)
        if self._is_volume(one):
            self._write_volume(number, one, maps)

    def _write_volume(self, number: int, one: Series, maps: npt.NDArray[np.float32]) -> None:
        (self.folder / VOLUMES).mkdir(exist_ok=True)
        if one.places is None:
            volume = open_volume(one.images[0].path)
            restored = volume.restored(PLANES.index(one.images[0].axis or "axial"), maps)
            write_heatmap(self.folder / VOLUMES / f"{number:03d}.nii.gz", restored, volume.affine)
            return
        runs = even_runs(one.places)
        even = even_places(one.places) if self.resample and len(runs) > 1 else None
        if even is not None:
            between = interpolated(maps, one.places, even).transpose(2, 1, 0)
            path = self.folder / VOLUMES / f"{number:03d}.nii.gz"
            write_heatmap(path, between, affine_of(even), "anomaly map, slices interpolated")
            return
        for part, run in enumerate(runs):
            name = f"{number:03d}.nii.gz" if len(runs) == 1 else f"{number:03d}_{part:02d}.nii.gz"
            places = one.places[run.start : run.stop]
            # Columns, rows, slices: the order of the matrix.
            write_heatmap(
                self.folder / VOLUMES / name, maps[run.start : run.stop].transpose(2, 1, 0), affine_of(places)
            )


def start_of_series(count: int, images: Sequence[ImageRef], series: Sequence[Series]) -> int:
    """How many of `count` finished images stay where a series that was begun is begun anew: its map needs them all."""
    if not 0 < count < len(images):
        return count
    for one in series:
        if images[count] in one.images[1:]:
            return count - one.images.index(images[count])
    return count


def series_row(
    series: Series,
    rows: Sequence[dict[str, Any]],
    calibration: Calibration | None = None,
    refused: Sequence[str] = (),
) -> dict[str, Any]:
    """What is said of a series from what is said of its images: the highest score counts.

    A threshold for one image is passed by chance somewhere among many, so that there is a decision only where whole
    normal series, enough for what their threshold promises, were calibrated on.

    Args:
        series: Which images belong together.
        rows: One for each of them.
        calibration: What whole series have said of their highest scores.
        refused: What could not be written of the series and why, and what was interpolated.
    """
    scored = [row for row in rows if row["error"] is None]
    first = series.images[0]
    name = str(first.path if len({image.path for image in series.images}) == 1 else first.path.parent)
    extra = {"images": len(rows), "failed": len(rows) - len(scored), "notes": [*series.notes, *refused]}
    if not scored:
        return Row(name, error=f"none of {len(rows)} images could be scored").to_dict() | extra | {"highest": None}
    if len(rows) == 1:
        return Row(name, **{field: rows[0][field] for field in SHARED}).to_dict() | extra | {"highest": 0}
    worst = max(range(len(rows)), key=lambda place: -1 if rows[place]["score"] is None else rows[place]["score"])
    familiar = sum(bool(row["familiar"]) for row in scored)
    failed = f" {extra['failed']} images failed; their part of the heat map is 0." if extra["failed"] else ""
    enough = calibration if calibration and not calibration.note else None
    note = f"The highest score of {len(rows)} images, that of image {worst + 1}.{failed}"
    plain = Prediction(rows[worst]["score"], _NO_MAP, (0, 0), familiar=2 * familiar >= len(scored), note=note)
    row = Row.of(name, judged(plain, enough, "There is no threshold for whole series.", units="series"))
    return row.to_dict() | extra | {"highest": worst}
