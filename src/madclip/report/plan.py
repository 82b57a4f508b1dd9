"""What a run of predictions is made from, by which an unfinished run is known again, and how its maps are written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from madclip import __version__
from madclip.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

    from madclip.data.ref import ImageRef
    from madclip.detector import MadCLIP
    from madclip.report.dicom import Kind

RUN = "run.json"
FORMAT = 1
MapFormat = Literal["tiff", "npy", "none"]
SUFFIX = {"tiff": "tif", "npy": "npy"}


@dataclass(frozen=True)
class Output:
    """What is written beside the tables.

    Attributes:
        maps: Format of the raw maps, float32 at the size of the image; `none` writes none.
        overlays: Whether heatmaps are drawn over the images, in full size and as thumbnails for the page.
        grey_range: Which grey values are black and white in what is drawn; see `Recipe.grey_range`.
        dicom: Which DICOM objects are written of DICOM series; see `madclip.report.dicom.KINDS`.
        region: The value of a map from which a pixel belongs to a DICOM segmentation; None is the detector's own.
        resample: Whether a series with uneven gaps gets one heat map on an even grid, by interpolation.
        run: How often the study was predicted, as `Origin.run`.
    """

    maps: MapFormat = "tiff"
    overlays: bool = True
    grey_range: str = "file"
    dicom: tuple[Kind, ...] = ()
    region: float | None = None
    resample: bool = False
    run: int = 1


@dataclass(frozen=True)
class Plan:
    """Two runs with equal plans give the same predictions.

    Attributes:
        madclip: Version of the package.
        detector: What identifies the detector and the engine that computes.
        images: SHA-256 over the images in order: names, frames, sizes in bytes and times of change.
        count: Number of images.
        maps: Format of the raw maps.
        overlays: Whether heatmaps are drawn.
        dicom: Which DICOM objects are written, and the value that bounds their regions.
        resample: Whether uneven heat maps are interpolated.
    """

    madclip: str
    detector: str
    images: str
    count: int
    maps: str
    overlays: bool
    dicom: str = ""
    resample: bool = False

    @classmethod
    def of(cls, images: Sequence[ImageRef], detector: str, output: Output) -> Plan:
        """The plan of a run."""
        digest = hashlib.sha256()
        dicom = f"{','.join(output.dicom)} {output.region}" if output.dicom else ""
        for image in images:
            digest.update(json.dumps([str(image.path), image.mark, *_state(image.path)]).encode() + b"\n")
        count, drawn = len(images), (output.maps, output.overlays)
        return cls(__version__, detector, digest.hexdigest(), count, *drawn, dicom, output.resample)

    def write(self, folder: Path) -> None:
        """Write run.json.

        Raises:
            OSError: It cannot be written there.
        """
        write_whole(folder / RUN, json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")


def read_plan(folder: Path) -> Plan | None:
    """The plan of the run in a folder; None where there is none, or one that this version does not know."""
    try:
        facts: dict[str, Any] = json.loads((folder / RUN).read_text(encoding="utf-8"))
        if facts.pop("format") != FORMAT:
            return None
        return Plan(**facts)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def write_map(
    anomaly_map: npt.NDArray[np.float32],
    kind: MapFormat,
    file: IO[bytes],
    pixel_size: tuple[float, float] | None = None,
) -> None:
    """Write a map [H, W] as `tiff` or `npy`; a TIFF says the millimetres between rows and columns where given."""
    if kind == "npy":
        np.save(file, anomaly_map, allow_pickle=False)
        return
    import tifffile

    known = {"resolution": [10 / size for size in reversed(pixel_size)], "resolutionunit": 3} if pixel_size else {}
    tifffile.imwrite(file, anomaly_map, **known)


def detector_fingerprint(detector: MadCLIP, engine: str = "torch") -> str:
    """SHA-256 over all that a prediction depends on: backbone, what was learned, recipe, calibration and engine."""
    from madclip.export.engines import head_fingerprint

    backbone = detector.backbone
    facts = [backbone.fingerprint, str(backbone.dtype), head_fingerprint(detector), detector.recipe.to_dict(), engine]
    known = [detector.calibration, detector.state.series]
    calibrations = [asdict(one) if one else None for one in known]
    return hashlib.sha256(json.dumps([*facts, *calibrations], sort_keys=True, default=str).encode()).hexdigest()


def _state(path: Path) -> tuple[int | None, int | None]:
    """Size in bytes and time of change of a file; None for one that cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None, None
    return found.st_size, found.st_mtime_ns
