"""Predictions as files: predictions.jsonl and .csv, heatmap overlays, raw maps; written as they come."""

from __future__ import annotations

import csv
import json
import re
from typing import TYPE_CHECKING, Any, Literal, Self, TextIO

import numpy as np
from PIL import Image

from madclip.errors import DataError
from madclip.report.pictures import overlay

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from madclip.prediction import Prediction

MapFormat = Literal["tiff", "npy", "none"]
_TABLES = ("predictions.jsonl", "predictions.csv")
_FIELDS = ("image", "score", "probability", "p_value", "verdict", "overlay", "map", "error")


class PredictionFolder:
    """Writes predictions into a folder, one at a time; tables get their final names when all is done.

    Names of output files are made of a running number and the harmless characters of the image's name, so that no
    name given from outside builds a path.

    Args:
        folder: Made where it is missing; files of an earlier run are replaced.
        maps: Format of the raw maps, float32 at the size of the image.
        overlays: Whether heatmaps are drawn over the images.
    """

    def __init__(self, folder: Path, *, maps: MapFormat = "tiff", overlays: bool = True) -> None:
        self.folder, self.maps, self.overlays = folder, maps, overlays
        self.count = 0

    def __enter__(self) -> Self:
        try:
            for name, wanted in (("", True), ("overlays", self.overlays), ("maps", self.maps != "none")):
                if wanted:
                    (self.folder / name).mkdir(parents=True, exist_ok=True)
            self._jsonl, self._csv = (_open(self.folder / f"{name}.partial") for name in _TABLES)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot write there ({error.strerror})") from error
        self._table = csv.DictWriter(self._csv, _FIELDS, restval="")
        self._table.writeheader()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._jsonl.close()
            self._csv.close()
        except OSError as failure:  # what was buffered found the disk full
            raise DataError(f"{self.folder}: cannot write there ({failure.strerror})") from failure
        for name in _TABLES:
            partial = self.folder / f"{name}.partial"
            if kind is None:
                partial.replace(self.folder / name)
            # After an error the partial tables stay: nothing that was computed is lost.

    def add(self, image: Path, prediction: Prediction) -> dict[str, Any]:
        """Write one prediction; returns its row."""
        stem = f"{self.count:06d}_{_harmless(image.stem)}"
        row: dict[str, Any] = {"image": str(image), "score": prediction.score}
        for name in ("probability", "p_value", "verdict"):
            if getattr(prediction, name) is not None:
                row[name] = getattr(prediction, name)
        try:
            if self.overlays:
                row["overlay"] = f"overlays/{stem}.png"
                _save_png(overlay(_pixels(image), prediction.anomaly_map), self.folder / row["overlay"])
            if self.maps != "none":
                row["map"] = f"maps/{stem}.{ {'tiff': 'tif', 'npy': 'npy'}[self.maps] }"
                _save_map(prediction.anomaly_map, self.folder / row["map"])
            self._write(row)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot write there ({error.strerror or error})") from error
        return row

    def fail(self, image: Path, error: DataError) -> dict[str, Any]:
        """Record an image that could not be read; returns its row."""
        row = {"image": str(image), "error": str(error)}
        self._write(row)
        return row

    def _write(self, row: dict[str, Any]) -> None:
        self._jsonl.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._table.writerow(row)
        self.count += 1


def _open(table: Path) -> TextIO:
    # Names of files need not be valid Unicode; a lone surrogate escaped like this is JSON still.
    return table.open("w", encoding="utf-8", errors="backslashreplace", newline="")


def _harmless(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:80].strip("._") or "image"


def _pixels(image: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    from madclip.data.readers import read_image

    return read_image(image).pixels


def _save_png(picture: np.ndarray[Any, np.dtype[np.uint8]], path: Path) -> None:
    partial = path.with_suffix(".png.partial")
    Image.fromarray(picture).save(partial, format="PNG")
    partial.replace(path)


def _save_map(anomaly_map: np.ndarray[Any, np.dtype[np.float32]], path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            if path.suffix == ".npy":
                np.save(file, anomaly_map, allow_pickle=False)
            else:
                import tifffile

                tifffile.imwrite(file, anomaly_map)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
