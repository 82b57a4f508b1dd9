"""What the predicting process does: answers for programs, and maps at the size of their images."""

from __future__ import annotations

import base64
import io
import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image as Picture

from madclip.data.geometry import restore_map
from madclip.data.inputs import expand_inputs
from madclip.data.readers import read_image
from madclip.data.readers.formats import is_volume
from madclip.data.ref import ImageRef
from madclip.data.zips import is_zip, unpack
from madclip.detector import MadCLIP
from madclip.errors import DataError
from madclip.heatmap import heat, png, stretch
from madclip.heatmap import overlay as over
from madclip.prediction import Row
from madclip.report.series import series_row
from madclip.serve.volumes import chosen, counts_of, packed, parts, parts_of
from madclip.serve.wire import Answer, answer
from madclip.storage import read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from madclip.data.series import Series
    from madclip.recipe import View

MOST_IMAGES = 2_000
"""Images in one request; more belong into the project."""
MOST_MAPS = 2**28
"""Bytes of the maps in one answer."""


@lru_cache(maxsize=2)
def _detector(folder: str, changed: int) -> MadCLIP:  # noqa: ARG001  (tells one state of a folder from the next)
    return MadCLIP.load(folder)


def _loaded(folder: str) -> MadCLIP:
    return _detector(folder, (Path(folder) / "detector.json").stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _view(folder: str) -> View:
    return read(Path(folder)).recipe.view


def _native(detector: str, kept: str, size: Sequence[int]) -> npt.NDArray[np.float32]:
    """A kept map at the size (height, width) of its image."""
    square = torch.from_numpy(np.load(kept, allow_pickle=False).astype(np.float32))
    return restore_map(square, (size[0], size[1]), _view(detector)).clip(0, 1)


def heat_map(detector: str, kept: str, size: list[int]) -> Answer:
    """A map, float32 [H, W]."""
    made = _native(detector, kept, size)
    return {"shape": list(made.shape)}, np.ascontiguousarray(made, "<f4").tobytes()


def overlay(
    detector: str,
    kept: str,
    size: list[int],
    path: str,
    frame: int | None,
    axis: str,
    threshold: float | None,
) -> Answer:
    """A map over its image as PNG, with the outline of what reaches a threshold."""
    pixels = read_image(ImageRef(Path(path), frame, axis), _view(detector).grey_range).pixels
    made = _native(detector, kept, size)
    if made.shape != pixels.shape[1:]:
        raise DataError("the image has changed since it was predicted")
    picture = over(pixels, made)
    if threshold is not None:
        picture[_outline(made >= threshold)] = (255, 255, 255)
    return {}, png(picture)


def _outline(region: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels of a region that touch what is outside of it."""
    padded = np.pad(region, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.asarray(region & ~inner)


def heat_volume(
    detector: str, maps: list[str | None], images: list[Any], stretch: int | None, size: list[int]
) -> Answer:
    """The maps of a volume's slices on its grid, as .nii.gz in float32; slices without a map are 0."""
    found = parts_of(images)
    part = chosen(found, stretch)
    if part is None:
        return counts_of(found), b""
    grid = part.grid()
    shown = grid.empty(size[0], size[1], np.float32)
    for index, one in zip(grid.index, part.of(maps), strict=True):
        if one is not None:
            shown[index] = _native(detector, one, size)
    return {}, packed(grid.volume(shown), grid.affine, shown=(0, 1))


def predict(detector: str, path: str, name: str, work: str, wanted: str) -> Answer:
    """What a detector says of a file: an image, a volume, or an archive of a study; JSON in the body.

    Args:
        detector: Its folder.
        path: The file.
        name: What the client calls it.
        work: A folder that does not exist, for what is unpacked.
        wanted: `none`, `png`, `npy` or `nifti`.
    """
    model, file = _loaded(detector), Path(path)
    try:
        if is_zip(file):
            Path(work).mkdir(mode=0o700)
            unpack(file, Path(work))
            file = Path(work)
        return {}, json.dumps(_predicted(model, file, name, wanted), allow_nan=False).encode()
    except DataError as error:
        raise DataError(_renamed(str(error), path, work, name)) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _renamed(text: str, path: str, work: str, name: str) -> str:
    return text.replace(f"{work}/", "").replace(path, name)


def _predicted(model: MadCLIP, file: Path, name: str, kind: str) -> dict[str, Any]:
    found = expand_inputs([file], model.recipe.axis)
    if len(found.images) > MOST_IMAGES:
        raise DataError(f"{file}: {len(found.images)} images in one request; send at most {MOST_IMAGES}")
    rows, maps, size = [], [], 0
    heats: list[npt.NDArray[np.float32] | None] = []
    for ref, result in zip(found.images, model.predict_iter(found.images), strict=True):
        called = name if file.is_file() else ref.path.name
        row = Row.of(ref, result).to_dict() | {"image": called}
        if isinstance(result, DataError):
            row["error"] = str(result).replace(str(ref.path), called)
            heats.append(None)
        else:
            size += result.anomaly_map.nbytes * (kind != "none")
            heats.append(result.anomaly_map if kind != "none" else None)
        if size > MOST_MAPS:
            raise DataError(f"{file}: maps of more than {MOST_MAPS // 2**20} MB in one answer; ask with map=none")
        rows.append(row)
        maps.append(None if heats[-1] is None or kind == "nifti" else _encoded(heats[-1], kind))
    place = {image: number for number, image in enumerate(found.images)}
    series = []
    for one in found.series:
        members = [place[image] for image in one.images]
        said = series_row(one, [rows[number] for number in members])
        series.append(said | {"image": name, "maps": _volumes(one, [heats[n] for n in members], kind)})
    return {"rows": rows, "maps": maps, "series": series}


def _encoded(made: npt.NDArray[np.float32], kind: str) -> str:
    """A map as base64: PNG of 8 bits in colours, or NumPy's own format."""
    out = io.BytesIO()
    if kind == "png":
        Picture.fromarray(heat(stretch(made))).save(out, "PNG")
    else:
        np.save(out, made, allow_pickle=False)
    return base64.b64encode(out.getvalue()).decode()


def _volumes(series: Series, heats: Sequence[Any], kind: str) -> list[str]:
    """The maps of a series as base64 of .nii.gz, one for each stretch of evenly spaced slices, where that is wanted."""
    shape = next((one.shape for one in heats if one is not None), None)
    if kind != "nifti" or shape is None:
        return []
    whole = is_volume(series.images[0].path)
    if series.places is None and not whole:  # it does not say where it lies
        return []
    made = []
    for part in parts(series.images, None if whole else series.places):
        grid = part.grid()
        shown = grid.empty(shape[0], shape[1], np.float32)
        for index, one in zip(grid.index, part.of(heats), strict=True):
            if one is not None:
                shown[index] = one
        made.append(base64.b64encode(packed(grid.volume(shown), grid.affine, shown=(0, 1))).decode())
    return made


def main() -> None:
    """Answers until the server ends."""
    commands: dict[str, Callable[..., Answer]] = {
        "heat": heat_map,
        "overlay": overlay,
        "heat_volume": heat_volume,
        "predict": predict,
    }
    answer(commands)


if __name__ == "__main__":
    main()
