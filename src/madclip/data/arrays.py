"""Images and masks of any kind that Python code holds: files, arrays, tensors, pictures of Pillow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL.Image import Image as Picture

from madclip.data.readers import read_image, read_mask, to_mask
from madclip.data.readers.images import to_pixels
from madclip.data.readers.npy import stored_array
from madclip.data.readers.pillow import stored_picture
from madclip.data.readers.protocol import UNREADABLE, Stored, check_size
from madclip.data.ref import ImageRef
from madclip.errors import DataError
from madclip.files import first_line
from madclip.grey_range import parse_grey_range

if TYPE_CHECKING:
    import numpy.typing as npt

    from madclip.recipe import View

ImageLike: TypeAlias = "str | Path | ImageRef | npt.NDArray[Any] | torch.Tensor | Picture"
"""A file or a frame of one, an array [H, W] or [H, W, 3], a tensor [H, W], [1, H, W] or [3, H, W] (unsigned integers,
or floats in 0..1), or a picture of Pillow."""


def read_pixels(image: ImageLike, view: View) -> npt.NDArray[np.float32]:
    """An image of any kind as float32 [3, H, W] in 0..1, by the view's grey range.

    Raises:
        DataError: It is not an image, or its values have no known scale.
    """
    if isinstance(image, (str, Path, ImageRef)):
        return read_image(image, view.grey_range).pixels
    return to_pixels(_stored(image, mask=False), parse_grey_range(view.grey_range), "an image given directly")


def read_region(mask: ImageLike) -> npt.NDArray[np.bool_]:
    """A mask of any kind as bool [H, W]; in an array or tensor, 0 and any one other value are a mask, too.

    Raises:
        DataError: Its values are not those of a mask.
    """
    if isinstance(mask, (str, Path, ImageRef)):
        return read_mask(mask)
    what = "a mask given directly"
    stored = _stored(mask, mask=True)
    if not stored.opaque:
        raise DataError(f"{what}: its transparency varies; give it without alpha")
    values, white = stored.values, stored.full[1] if stored.full else None
    strongest = values if values.ndim == 2 else values.max(axis=2)
    if not isinstance(mask, Picture) and values.size and strongest.max() > 0:
        white = float(strongest.max()) if np.isin(strongest, (0, strongest.max())).all() else white
    return to_mask(values, white, what, labels=stored.labels)


def _stored(image: Any, *, mask: bool) -> Stored:
    if isinstance(image, Picture):
        check_size("a picture of Pillow", *image.size)
        try:
            return stored_picture(image, mask=mask)
        except UNREADABLE as error:
            raise DataError(f"a picture of Pillow: damaged or unsupported ({first_line(error)})") from error
    if isinstance(image, torch.Tensor):
        return stored_array(_from_tensor(image), "a tensor")
    values = np.asarray(image)
    if values.dtype.kind not in "buif":
        raise DataError(f"a {type(image).__name__} is not an image: give a file, an array, a tensor or a picture")
    return stored_array(values, "an array")


def _from_tensor(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """A tensor [H, W], [1, H, W] or [3, H, W] as an array with its channels last."""
    tensor = tensor.detach().cpu()
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3)):
        raise DataError(f"a tensor of shape {list(tensor.shape)} is not an image: give [H, W], [1, H, W] or [3, H, W]")
    values = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return values if values.ndim == 2 else np.moveaxis(values, 0, -1)
