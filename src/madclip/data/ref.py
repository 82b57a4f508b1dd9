"""How one image is named: everywhere that an image is meant, and not a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from madclip.files import digest, until_changed


@dataclass(frozen=True, order=True)
class ImageRef:
    """The name of one image: a file, and the frame or slice in it where the file holds several.

    Attributes:
        path: The file.
        frame: Index from 0, or None where the file is one image.
        axis: `coronal` or `sagittal` where a volume is cut so; empty for axial slices and for all that is no volume.
    """

    path: Path
    frame: int | None = None
    axis: str = ""

    def __str__(self) -> str:
        return f"{self.path}{self.mark}"

    @property
    def name(self) -> str:
        """The file's name without its folder, with the frame behind it."""
        return f"{self.path.name}{self.mark}"

    @property
    def mark(self) -> str:
        """What stands behind the file's name, such as `#64` or `#coronal64`; nothing where the file is one image."""
        return "" if self.frame is None else f"#{self.axis}{self.frame}"

    def digest(self) -> str:
        """SHA-256 of the file's bytes and of the frame: the image's identity, by which what was seen is known again.

        Frames of the axial plane and of what is no volume are their number; other planes stand before it.

        Raises:
            OSError: The file cannot be read.
        """
        if self.frame is None:
            return digest(self.path)
        found = _hashed(self.path).copy()
        found.update(self.mark.encode())
        return str(found.hexdigest())


@until_changed(8)
def _hashed(path: Path) -> Any:
    """The hash of a file that holds many images, to which each adds its mark."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def as_ref(image: ImageRef | Path | str) -> ImageRef:
    """An image named by a path alone is the whole file."""
    return image if isinstance(image, ImageRef) else ImageRef(Path(image))
