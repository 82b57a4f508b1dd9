"""What a user names on the command line, as files."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING

from madclip.data.readers import IMAGE_SUFFIXES
from madclip.data.samples import MASK_FOLDERS
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def expand_inputs(inputs: Sequence[str | Path]) -> list[Path]:
    """Image files from files, folders (searched at all depths) and glob patterns; sorted, each once.

    A file that is named is taken whatever its suffix; in folders and patterns only image suffixes count. Hidden files
    and the folders in which data sets keep masks (`anomaly_mask/`, `masks/`, ...) are passed over, unless named.

    Raises:
        DataError: Nothing is named, an input does not exist, or nothing is found in it.
    """
    if not inputs:
        raise DataError("no input: name images, folders or patterns such as 'scans/*.png'")
    found: dict[str, Path] = {}
    for entry in inputs:
        for path in _expand(entry):
            found.setdefault(os.path.abspath(path), path)  # noqa: PTH100  (resolve() would follow links)
    return [found[key] for key in sorted(found)]


def _expand(entry: str | Path) -> list[Path]:
    path = Path(entry)
    if path.is_file():
        return [path]
    if path.is_dir():
        images = list(_search(path))
        if not images:
            raise DataError(f"{path}: no images (PNG, JPEG, TIFF, BMP) in this folder")
        return images
    if glob.has_magic(str(entry)):
        matches = [Path(match) for match in glob.glob(str(entry), recursive=True)]  # noqa: PTH207  (absolute patterns)
        images = [match for match in matches if match.is_file() and match.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise DataError(f"{entry}: no image matches this pattern")
        return images
    raise DataError(f"{path}: no such file or folder")


def _search(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name.lower() not in MASK_FOLDERS and not name.startswith(".")]
        for name in names:
            if Path(name).suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                yield Path(parent, name)
