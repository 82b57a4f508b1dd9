"""How one image is named: everywhere that an image is meant, and not a file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, order=True)
class ImageRef:
    """The name of one image: a file, and the frame or slice in it where the file holds several.

    Attributes:
        path: The file.
        frame: Index from 0, or None where the file is one image.
    """

    path: Path
    frame: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.frame is None else f"{self.path}#{self.frame}"

    @property
    def name(self) -> str:
        """The file's name without its folder, with the frame behind it."""
        return self.path.name if self.frame is None else f"{self.path.name}#{self.frame}"

    def digest(self) -> str:
        """SHA-256 of the file's bytes and of the frame: the image's identity, by which what was seen is known again.

        Raises:
            OSError: The file cannot be read.
        """
        with self.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256")
        if self.frame is not None:
            found.update(f"#{self.frame}".encode())
        return found.hexdigest()


def as_ref(image: ImageRef | Path | str) -> ImageRef:
    """An image named by a path alone is the whole file."""
    return image if isinstance(image, ImageRef) else ImageRef(Path(image))
