"""Which mask belongs to which image: by name, in the mask folders of a data set."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from madclip.data.classes import MASK_FOLDERS
from madclip.data.readers.formats import READERS, open_volume
from madclip.data.readers.volume import VolumeReader
from madclip.data.walk import Walk, bare, folded, is_image
from madclip.errors import DataError, MadCLIPError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

MASK_ENDING = "_mask"
_LABEL_MAP = re.compile(r"(^|.*[-_. ])(masks?|labels?|seg|segmentations?|lesions?|roi|gt)")
_MOST_LABELS = 16
_VOLUMES = tuple(suffix for reader in READERS if isinstance(reader, VolumeReader) for suffix in reader.suffixes)


class Masks:
    """Masks of one class folder, by the path of the image that they are of.

    A mask has its image's path below the class folder (or below `img/`) as its own path below the mask folder; suffixes
    do not count, nor do upper and lower case and decomposed Unicode where no name is exactly the same.
    """

    def __init__(self) -> None:
        self._exact: dict[str, Path] = {}
        self._folded: dict[str, list[Path]] = defaultdict(list)
        self.folders: dict[Path, set[Path]] = defaultdict(set)
        """Mask folders with the masks in them."""

    def add(self, key: str, path: Path, folder: Path | None = None) -> None:
        """Add a mask under the name of its image.

        Raises:
            DataError: There is another mask of exactly that name.
        """
        if folder is not None:
            self.folders[folder].add(path)
            if self._exact.get(key, path) != path:
                raise DataError(f"{path}: a second mask of the same name as {self._exact[key]}; remove one")
        if key not in self._exact:
            self._exact[key] = path
            self._folded[folded(key)].append(path)

    def of(self, key: str) -> Path | None:
        """The mask of the image with this path below its class folder, without suffix.

        Raises:
            DataError: Several masks differ from the image's name in upper and lower case only.
        """
        for name in (key, key + MASK_ENDING):
            if name in self._exact:
                return self._exact[name]
        for name in (key, key + MASK_ENDING):
            alike = self._folded.get(folded(name), [])
            if len(alike) > 1:
                raise DataError(f"{alike[0]} and {alike[1]}: either may be the mask of {key}; rename one")
            if alike:
                return alike[0]
        return None


def label_maps(paths: Iterable[Path]) -> set[Path]:
    """The label maps beside volumes: files called `seg`, `CASE_label` and the like that hold a few whole values."""
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        if path.name.lower().endswith(_VOLUMES):
            folders[path.parent].append(path)
    found = set()
    for volumes in folders.values():
        named = {path for path in volumes if _LABEL_MAP.fullmatch(folded(bare(path).name))}
        if len(named) < len(volumes):
            found |= {path for path in named if _has_few_values(path)}
    return found


def _has_few_values(path: Path) -> bool:
    try:
        values = np.unique(open_volume(path).voxels)
    except MadCLIPError:
        return False  # whoever reads it says what is wrong
    return len(values) <= _MOST_LABELS and 0 in values and bool((values == np.round(values)).all())


def below_img(folder: Path, walk: Walk) -> Path:
    """The folder in a class folder in which its images are: `img/` where there is one."""
    names = ("img", "imgs", "image", "images")
    return next((path for path in walk.folders(folder) if folded(path.name) in names), folder)


def mask_part(path: Path, base: Path) -> int | None:
    """The place of the first mask folder in a path below `base`, or None."""
    parts = path.relative_to(base).parts[:-1]
    return next((place for place, part in enumerate(parts) if folded(part) in MASK_FOLDERS), None)


def find_masks(root: Path, around: Path, folder: Path, walk: Walk) -> Masks:
    """The masks that the images of a class folder may have.

    Args:
        root: Folder of the data set.
        around: The class folder's split folder, or the root.
        folder: The class folder.
        walk: What lists folders.

    Raises:
        DataError: Two masks have the same name.
    """
    masks = Masks()
    images = below_img(folder, walk)
    for path in walk.files(folder):
        place = mask_part(path, folder)
        if place is not None and is_image(path):
            mask_folder = folder.joinpath(*path.relative_to(folder).parts[: place + 1])
            beside = mask_folder.parent.relative_to(images if mask_folder.is_relative_to(images) else folder)
            masks.add(bare(beside / path.relative_to(mask_folder)).as_posix(), path, mask_folder)
    for parent in dict.fromkeys((around, root)):
        for base in _mask_folders(parent, root, around, folder, walk):
            for path in walk.images(base):
                masks.add(bare(path.relative_to(base)).as_posix(), path, base)
    for path in walk.files(images):
        if folded(bare(path).name).endswith(MASK_ENDING) and mask_part(path, images) is None and is_image(path):
            masks.add(bare(path.relative_to(images)).as_posix(), path)
    return masks


def _mask_folders(parent: Path, root: Path, around: Path, folder: Path, walk: Walk) -> Iterator[Path]:
    """Mask folders in the root or a split folder, or what in them is of this split and class."""
    for base in (path for path in walk.folders(parent) if folded(path.name) in MASK_FOLDERS):
        of_split = _child(base, around.name, walk) if parent == root != around else None
        of_class = _child(of_split or base, folder.name, walk)
        if of_class or of_split:
            yield of_class or of_split or base
        elif parent == around:
            # Masks beside the split folders name split or class, or training images would take those of test images.
            yield base


def _child(folder: Path, name: str, walk: Walk) -> Path | None:
    return next((path for path in walk.folders(folder) if folded(path.name) == folded(name)), None)
