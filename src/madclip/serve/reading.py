"""What the reading processes do: every file from outside is opened here, in bounded memory, and never in the server."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Picture

from madclip.data.inputs import expand_inputs
from madclip.data.readers import frames_of, read_image
from madclip.data.readers.formats import read_stored, reader_of
from madclip.data.readers.images import to_pixels
from madclip.data.readers.masks import to_mask
from madclip.data.ref import ImageRef
from madclip.data.series import facts_of
from madclip.errors import DataError
from madclip.files import new_file
from madclip.grey_range import GreyRange, parse_grey_range
from madclip.heatmap import png
from madclip.serve.volumes import image_volume, mask_slices, mask_volume, stretches
from madclip.serve.wire import Answer, answer, limit_memory

if TYPE_CHECKING:
    import numpy.typing as npt

    from madclip.data.readers.protocol import Stored
    from madclip.data.series import Series

MEMORY = 4 * 2**30
THUMBNAIL = 192
"""Longer side of a thumbnail, pixels."""
_SUFFIXES = {"DICOM": ".dcm", "NIfTI": ".nii", "NumPy": ".npy"}


def kind(path: str) -> Answer:
    """The suffix that a file should have by its content.

    Raises:
        DataError: It is no image.
    """
    file = Path(path)
    reader = reader_of(file)
    suffix = _SUFFIXES.get(reader.name, reader.suffixes[0])
    with file.open("rb") as opened:
        packed = opened.read(2) == b"\x1f\x8b"
    return {"suffix": f"{suffix}.gz" if packed and suffix == ".nii" else suffix}, b""


def look(paths: list[str], named: bool = False) -> Answer:
    """The images in files or folders, as JSON in the body: `images`, `volumes`, `passed_over`.

    Args:
        paths: Files or folders.
        named: Whether each is a file that must be an image.

    Raises:
        DataError: There is no image; or a file that is named cannot be used.
    """
    if named:
        for path in paths:
            frames_of(path)  # its error is the answer
    found = expand_inputs([*paths])
    place = {image: number for number, image in enumerate(found.images)}
    patients = {path: _patient(path) for path in {image.path for image in found.images}}
    images = [[str(one.path), one.frame, one.axis, patients[one.path]] for one in found.images]
    volumes = [
        {"key": _key(one), "kind": _kind(one), "images": [place[image] for image in one.images]}
        for one in found.series
        if len(one.images) > 1 or one.study
    ]
    body = {"images": images, "volumes": volumes, "passed_over": found.passed_over}
    return {}, json.dumps(body).encode("utf-8", "surrogatepass")


def _patient(path: Path) -> str | None:
    """The digest of the patient's id, which itself is not kept."""
    try:
        facts = facts_of(path)
    except DataError:
        return None
    return facts.patient if facts else None


def _kind(series: Series) -> str:
    reader = reader_of(series.images[0].path).name
    return {"DICOM": "dicom", "NIfTI": "nifti"}.get(reader, "stack")


def _key(series: Series) -> str:
    """What slices of one volume share, also those that come later."""
    first = series.images[0]
    facts = facts_of(first.path)
    if facts is None or facts.series is None or len({image.path for image in series.images}) == 1 < len(series.images):
        return hashlib.sha256(f"{first.path} {first.axis}".encode("utf-8", "surrogatepass")).hexdigest()[:32]
    direction = [round(float(x), 1) + 0.0 for x in facts.places[0].normal] if facts.places else None
    return hashlib.sha256(f"{facts.series} {facts.kind} {direction}".encode()).hexdigest()[:32]


def thumbnail(path: str, frame: int | None, axis: str, grey: str, out: str) -> Answer:
    """Writes a small JPEG of an image; answers the image's own size."""
    pixels = read_image(ImageRef(Path(path), frame, axis), grey).pixels
    height, width = pixels.shape[1:]
    scale = min(1.0, THUMBNAIL / max(height, width))
    small = _picture(pixels).resize((max(1, round(width * scale)), max(1, round(height * scale))), _SMOOTH)
    with new_file(Path(out), 0o600) as partial:
        small.save(partial, "JPEG", quality=82)
    return {"width": width, "height": height}, b""


_SMOOTH = Picture.Resampling.LANCZOS


def picture(path: str, frame: int | None, axis: str, grey: str) -> Answer:
    """An image of 8 bits as PNG, in its own size; `grey` is a rule as `parse_grey_range` has it."""
    pixels = read_image(ImageRef(Path(path), frame, axis), grey).pixels
    out = io.BytesIO()
    drawn = _picture(pixels)
    drawn.save(out, "PNG", compress_level=1)
    return {"width": drawn.width, "height": drawn.height}, out.getvalue()


def _picture(pixels: npt.NDArray[np.float32]) -> Picture.Image:
    values = (pixels * 255).round().astype(np.uint8)
    grey = np.array_equal(values[0], values[1]) and np.array_equal(values[0], values[2])
    return Picture.fromarray(values[0] if grey else np.ascontiguousarray(np.moveaxis(values, 0, -1)))


def pixels(path: str, frame: int | None, axis: str, grey: str) -> Answer:
    """Stored grey values float32 [H, W] (of colours, their mean), and which of them are black and white."""
    image = ImageRef(Path(path), frame, axis)
    stored, rule = read_stored(image), parse_grey_range(grey)
    to_pixels(stored, rule, str(image))  # raises what reading it would
    limits = rule.limits(stored.values, stored.full, stored.named, stored.percentiles)
    if stored.curve is not None and rule.kind == "file":
        stored, limits = _curved(stored, rule, image), (0.0, 1.0)
    if limits is None:
        raise DataError(f"{image}: values of type {stored.values.dtype} have no known scale")
    values = stored.values.astype(np.float32)
    if values.ndim == 3:
        values = values.mean(2)
    low, high = limits[::-1] if stored.inverted else limits
    shape = [int(side) for side in values.shape]
    return {"shape": shape, "range": [float(low), float(high)]}, np.ascontiguousarray(values, "<f4").tobytes()


def _curved(stored: Stored, rule: GreyRange, image: ImageRef) -> Stored:
    """Values that only a curve of the file's own makes sense of, with the curve applied."""
    shown = to_pixels(stored, rule, str(image))[0]
    return replace(stored, values=shown, curve=None, inverted=False)


def mask(body: bytes, size: list[int] | None) -> Answer:
    """A painted mask as it is kept: PNG of 8 bits, 0 and 255; and whether it marks anything.

    Args:
        body: A PNG.
        size: Width and height that it must have; None leaves it open.

    Raises:
        DataError: It is no PNG, of another size, or holds other values.
    """
    if not body.startswith(b"\x89PNG\r\n\x1a\n"):
        raise DataError("a mask is a PNG of 8 bits, 0 and 255")
    try:
        opened = Picture.open(io.BytesIO(body), formats=["PNG"])
        if size is not None and list(opened.size) != size:
            raise DataError(f"a mask of {opened.width} x {opened.height} pixels for an image of {size[0]} x {size[1]}")
        if opened.mode not in ("1", "L"):
            raise DataError("a mask is a PNG of 8 bits, 0 and 255, without colours or transparency")
        values = np.asarray(opened.convert("L"))
    except (OSError, SyntaxError, ValueError, Picture.DecompressionBombError) as error:
        raise DataError(f"a mask that cannot be read ({type(error).__name__})") from None
    found = to_mask(values, 255, "the mask")
    return {"empty": not found.any()}, png(found.astype(np.uint8) * 255)


def mask_of_file(path: str, size: list[int]) -> Answer:
    """A mask in a file of an opened folder, as it is kept."""
    from madclip.data.readers import read_mask

    found = read_mask(Path(path))
    if list(found.shape[::-1]) != size:
        raise DataError(f"a mask of {found.shape[1]} x {found.shape[0]} pixels for an image of {size[0]} x {size[1]}")
    return {"empty": not found.any()}, png(found.astype(np.uint8) * 255)


def size_of_image(path: str, frame: int | None, axis: str) -> Answer:
    """Width and height of an image."""
    height, width = read_stored(ImageRef(Path(path), frame, axis)).values.shape[:2]
    return {"width": int(width), "height": int(height)}, b""


def main() -> Any:
    """Answers until the server ends."""
    commands = (kind, look, thumbnail, picture, pixels, mask, mask_of_file, size_of_image)
    commands += (image_volume, mask_slices, mask_volume, stretches)  # type: ignore[assignment]
    limit_memory(MEMORY)
    answer({one.__name__: one for one in commands})


if __name__ == "__main__":
    main()
