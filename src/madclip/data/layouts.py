"""Data sets as folders: which folder is which split and class, and which images and masks lie in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from madclip.data.classes import (
    ABNORMAL_FOLDERS,
    MASK_FOLDERS,
    NORMAL_FOLDERS,
    SPLITS,
    folder_roles,
    meant,
    sounds_normal,
    unclear_names,
)
from madclip.data.masks import MASK_ENDING, below_img, find_masks, mask_part
from madclip.data.patients import find_patients
from madclip.data.samples import Dataset, Layout, Reading, Sample, Split, Unused, UnusedKind, in_order
from madclip.data.walk import Walk, bare, folded, is_image
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator
    from pathlib import Path

_DOCUMENT = re.compile(
    r"(?:readme|licen[sc]e|citation|source|changelog)(?:\.(?:md|txt|rst|pdf|html|cff))?$"
    r"|(?:captions\.jsonl|prepared\.json)$",
    re.IGNORECASE,
)
"""Files beside the classes that belong to a data set as a whole."""


class UnknownLayoutError(DataError):
    """The folders of a data set say nothing about classes."""


@dataclass(frozen=True)
class ClassFolder:
    """A folder with the images of one class.

    Attributes:
        path: The folder.
        label: 0 normal, 1 abnormal.
        split: The split that it is in, where there are splits.
        around: The split's folder, or the root.
    """

    path: Path
    label: int
    split: Split | None
    around: Path


@dataclass
class Found:
    """What was found in class folders.

    Attributes:
        samples: The images, each with its path below the class folder without suffix.
        unused: What belongs to no image.
        unmatched: Mask folders in which nothing matches.
    """

    samples: list[tuple[str, Sample]]
    unused: set[Unused]
    unmatched: set[Path]


def read_folders(root: Path, reading: Reading) -> Dataset:
    """Reads a data set in the layouts `bmad`, `folders` and `anomalib`; see `madclip.data.load.load_dataset`.

    Raises:
        DataError: The folder is empty, has no known layout or no images, or names of masks are ambiguous.
    """
    walk = Walk()
    places = split_folders(root, walk)
    layout, folders = _class_folders(root, places, reading, walk)
    found = collect(root, folders, walk)
    if not found.samples:
        raise DataError(f"{root}: layout {layout}, but its folders hold no image (PNG, JPEG, TIFF, ...)")
    found.unused |= {*_beside(root, places, folders, walk)}
    found.unused |= {Unused(path, "dead_link") for path in walk.dead}
    patients = find_patients(
        [key for key, _ in found.samples], [sample.label for _, sample in found.samples], reading.patients
    )
    return Dataset(
        root=root,
        layout=layout,
        samples=in_order(
            replace(sample, patient=patient) for (_, sample), patient in zip(found.samples, patients.of, strict=True)
        ),
        patients_from=patients.source,
        patients_note=patients.note,
        patients_guessed=patients.guessed,
        unused=tuple(sorted(found.unused)),
        passed_over=len(walk.hidden),
        unmatched=tuple(sorted(found.unmatched)),
    )


def split_folders(root: Path, walk: Walk) -> list[tuple[Split | None, Path]]:
    """The split folders of a data set, or the root alone where there are none."""
    splits = [(SPLITS[folded(path.name)], path) for path in walk.folders(root) if folded(path.name) in SPLITS]
    return [*splits] if splits else [(None, root)]


def class_like(place: Path, walk: Walk) -> list[Path]:
    """The folders in the root or a split folder that may be classes."""
    return [path for path in walk.folders(place) if folded(path.name) not in MASK_FOLDERS]


def collect(root: Path, folders: Iterable[ClassFolder], walk: Walk) -> Found:
    """Finds the images and masks of class folders.

    Raises:
        DataError: Two images have one mask, or two masks one name.
    """
    found = Found([], set(), set())
    owners: dict[Path, Path] = {}
    mask_folders: dict[Path, set[Path]] = {}
    # Abnormal images first: masks that several class folders share are theirs.
    for folder in sorted(folders, key=lambda folder: -folder.label):
        masks = find_masks(root, folder.around, folder.path, walk)
        for path, within in masks.folders.items():
            mask_folders.setdefault(path, set()).update(within)
        for key, image in _images(folder.path, found.unused, walk):
            mask = masks.of(key)
            if mask in owners and folder.label == 1:
                raise DataError(f"{mask}: is the mask of two images, {owners[mask]} and {image}; rename them")
            mask = None if mask in owners else mask
            if mask:
                owners[mask] = image
            found.samples.append((key, Sample(image, folder.label, mask, None, folder.split)))
    for place in dict.fromkeys((root, *(folder.around for folder in folders))):
        for path in walk.folders(place):
            if folded(path.name) in MASK_FOLDERS:
                mask_folders.setdefault(path, set(walk.images(path)))
    _leave_out(mask_folders, owners.keys(), found)
    return found


def _leave_out(mask_folders: dict[Path, set[Path]], used: Container[Path], found: Found) -> None:
    """Notes the masks that are no image's, and the folders that hold only such."""
    for path, within in mask_folders.items():
        left = {mask for mask in within if mask not in used}
        found.unused |= {Unused(mask, "no_image") for mask in left}
        if left and left == within:
            found.unmatched.add(path)
    found.unmatched -= {path.parent for path in found.unmatched}


def _class_folders(
    root: Path, places: list[tuple[Split | None, Path]], reading: Reading, walk: Walk
) -> tuple[Layout, list[ClassFolder]]:
    """The layout and the folders of its classes."""
    candidates = {place: class_like(place, walk) for _, place in places}
    names = {folded(path.name): path.name for paths in candidates.values() for path in paths}
    holding = {folded(path.name) for paths in candidates.values() for path in paths if walk.images(path)}
    try:
        roles = folder_roles(names, holding, reading)
    except DataError as error:
        raise DataError(f"{root}: {error}") from error
    layout: Layout = "folders"
    found: list[ClassFolder] = []
    named = bool(reading.normal or reading.abnormal)
    defects = False
    for split, place in places:
        here = {folded(path.name) for path in candidates[place]}
        if here & {"good", "ungood"} and layout == "folders":
            layout = "bmad"
        # Where no folder is called abnormal, every other name beside good/ is a kind of defect (anomalib, MVTec AD).
        all_defects = not named and split is not None and "good" in here and not here & ABNORMAL_FOLDERS
        for path in candidates[place]:
            label = roles.get(folded(path.name), 1 if all_defects else None)
            if label is not None:
                found.append(ClassFolder(path, label, split, place))
                defects = defects or folded(path.name) not in roles
    if defects:
        layout = "anomalib"
    labels = {folder.label for folder in found}
    others = [name for name in holding if name not in {folded(folder.path.name) for folder in found}]
    if not found or (len(labels) == 1 and others):
        raise _unknown_layout(root, [names[name] for name in sorted(holding)], walk)
    return layout, found


def _images(folder: Path, unused: set[Unused], walk: Walk) -> Iterator[tuple[str, Path]]:
    """Images of a class folder, by their path without suffix; masks beside them and mask folders are left out."""
    base = below_img(folder, walk)
    paths = [path for path in walk.files(base) if mask_part(path, base) is None]
    keys = {folded(bare(path).as_posix()) for path in paths}
    for path in paths:
        name = folded(bare(path).as_posix())
        if not is_image(path):
            unused.add(Unused(path, "format"))
        elif not (name.endswith(MASK_ENDING) and name.removesuffix(MASK_ENDING) in keys):
            yield bare(path.relative_to(base)).as_posix(), path
    if base != folder:
        beside = [path for path in walk.files(folder) if not path.is_relative_to(base)]
        unused |= {Unused(path, "beside_img") for path in beside if mask_part(path, folder) is None}


def _beside(
    root: Path, places: list[tuple[Split | None, Path]], folders: list[ClassFolder], walk: Walk
) -> Iterator[Unused]:
    """What lies in the root and in the split folders and is neither split, class nor masks."""
    classes = {folder.path for folder in folders}
    inside = {place for _, place in places}
    for place in dict.fromkeys((root, *inside)):
        kind: UnusedKind = "not_a_class" if place in inside else "beside_splits"
        words = [*SPLITS] if place == root else []
        words += [*NORMAL_FOLDERS, *ABNORMAL_FOLDERS] if place in inside else []
        for path in class_like(place, walk):
            if path not in classes and path not in inside:
                yield Unused(path, kind, meant(path.name, words))
        for path in walk.loose(place):
            if not _DOCUMENT.match(path.name):
                yield Unused(path, "loose")


def _unknown_layout(root: Path, holding: list[str], walk: Walk) -> UnknownLayoutError:
    """The refusal of folders that are not understood: what was found, and the command that goes on."""
    folders, files = walk.folders(root), walk.loose(root)
    if not folders and not files:
        hidden = " (hidden files only)" if walk.hidden else ""
        return UnknownLayoutError(f"{root}: the folder is empty{hidden}")
    listed = [f"{path.name}/" for path in folders] + [path.name for path in files]
    shown = ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
    start = f"{root}: no known layout (found {shown}); "
    hints = [f"{path.name}/: {hint}" for path in folders if (hint := meant(path.name, SPLITS))]
    if hints:
        return UnknownLayoutError(start + hints[0])
    if (inner := _only_folder(root, walk)) is not None:
        return UnknownLayoutError(f"{start}the data set is in it: madclip data check {shlex.quote(str(inner))}")
    tables = [path for path in files if path.suffix.lower() in (".csv", ".tsv", ".jsonl", ".xlsx", ".xls")]
    listing = f"; or give the list: madclip data check {shlex.quote(str(tables[0]))}" if tables else ""
    write = f"madclip data manifest {shlex.quote(str(root))}"
    if not 2 <= len(holding) <= 12:
        return UnknownLayoutError(
            f"{start}sort images into normal/ and abnormal/ (in valid/ and test/, or directly), "
            f"or write a list to correct: {write}{listing}"
        )
    unclear = unclear_names(holding, Reading())
    clear = [name for name in holding if name not in unclear]
    normal = [name for name in clear if sounds_normal(name)] or clear[:1]
    options = [f"--normal {shlex.quote(name)}" for name in normal]
    options += [f"--abnormal {shlex.quote(name)}" for name in clear if name not in normal]
    options += [f"and --normal {name} or --abnormal {name}, which only you know" for name in sorted(unclear)]
    return UnknownLayoutError(
        f"{start}say which images are normal, as in: madclip data check {shlex.quote(str(root))} {' '.join(options)} "
        f"(fit and evaluate take the same options), or write a list to correct: {write}{listing}"
    )


def _only_folder(root: Path, walk: Walk) -> Path | None:
    """The one folder in the root, where it is a data set itself: archives often hold such a folder."""
    folders = walk.folders(root)
    if len(folders) != 1 or walk.loose(root):
        return None
    try:
        _class_folders(folders[0], split_folders(folders[0], walk), Reading(), walk)
    except UnknownLayoutError:
        return _only_folder(folders[0], walk)
    return folders[0]
