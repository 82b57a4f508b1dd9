"""Arrays of NumPy in files, and what an array of an image means wherever it comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.data.readers.protocol import Stored, check_frame, check_size, depth_name, full_range
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from madclip.data.ref import ImageRef


class NumPy:
    """One array in a `.npy` file; nothing in it is ever unpickled."""

    name = "NumPy"
    suffixes = (".npy",)

    def recognises(self, head: bytes, path: Path) -> bool:  # noqa: ARG002  (the protocol's)
        """Whether a file has the signature of NumPy's format."""
        return head.startswith(b"\x93NUMPY")

    def frames(self, path: Path, axis: str) -> tuple[ImageRef, ...]:  # noqa: ARG002  (the protocol's)
        """None: the file holds one image."""
        return ()

    def read(self, image: ImageRef, *, mask: bool) -> Stored:  # noqa: ARG002  (values are stored alike)
        """One image [H, W], [H, W, 1] or [H, W, 3]."""
        check_frame(image, 1)
        with image.path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(file)
        check_array(shape, dtype, str(image))
        return stored_array(np.load(image.path, mmap_mode="r", allow_pickle=False), str(image))


def check_array(shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> None:
    """Refuses what is no image, from an array's shape and type alone.

    Raises:
        DataError: The array is not [H, W], [H, W, 1] or [H, W, 3] of numbers, or too large.
    """
    if dtype.kind not in "buif":
        raise DataError(f"{what}: an array of type {dtype} is not an image; give integers or floats")
    if len(shape) not in (2, 3) or (len(shape) == 3 and shape[2] not in (1, 3)):
        raise DataError(f"{what}: an array of shape {list(shape)} is not an image; give [H, W] or [H, W, 3]")
    check_size(what, shape[1], shape[0])


def stored_array(values: npt.NDArray[Any], what: str) -> Stored:
    """An image given as an array: uint8 and uint16 have their whole range, floats lie in 0..1.

    Raises:
        DataError: As `check_array` does.
    """
    check_array(values.shape, values.dtype, what)
    values = np.asarray(values)
    grey = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
    return Stored(grey, full_range(values.dtype), depth_name(values.dtype))
