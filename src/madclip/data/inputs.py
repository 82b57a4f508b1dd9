"""What a user names on the command line, as images."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from madclip.data.classes import MASK_FOLDERS
from madclip.data.masks import MASK_ENDING, label_maps
from madclip.data.readers import frames_of
from madclip.data.ref import ImageRef
from madclip.data.series import Facts, Series, facts_of, sorted_series
from madclip.data.walk import Walk, bare, folded, is_image, is_passed_over
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

_AS_STORED = "Its slices are taken as they are stored: a DICOM series is not cut along another axis."
_FRAME = re.compile(r"(?P<path>.+)#(?P<axis>axial|coronal|sagittal)?(?P<frame>[0-9]{1,9})")


@dataclass(frozen=True)
class Inputs:
    """Images to predict, and what was passed over in finding them.

    Attributes:
        images: Files, frames, pages and slices, each once, sorted; those of a series as they lie in the patient.
        passed_over: Number of files that are no images to predict, by suffix (`.pdf`, or `no suffix`) or by reason
            (`hidden or of a tool`, `masks`, `dead links`, ...), the most frequent first.
        empty: Folders and patterns in which there is no image, as they were named.
        series: The DICOM series, volumes and files of several images among them.
    """

    images: tuple[ImageRef, ...]
    passed_over: dict[str, int]
    empty: tuple[str, ...] = ()
    series: tuple[Series, ...] = ()

    def said(self) -> str:
        """One line on what was passed over, was empty or is odd, or an empty string where there is nothing."""
        counts = ", ".join(f"{number:,} {reason}" for reason, number in self.passed_over.items())
        parts = [f"passed over: {counts}"] if counts else []
        parts += [f"no image in {', '.join(self.empty)}"] if self.empty else []
        for number, one in enumerate(self.series):
            parts += [f"series {number} of {len(one.images)} images: {' '.join(one.notes)}"] if one.notes else []
        return "; ".join(parts)


def expand_inputs(inputs: Sequence[str | Path], axis: str = "axial") -> Inputs:
    """Images from files, folders (searched at all depths) and glob patterns.

    A file that is named is taken whatever it is. In folders and patterns the content decides where the suffix is not
    that of an image; hidden files, those of tools, DICOM objects without an image, and masks (in folders such as
    `masks/`, `NAME_mask` beside `NAME`, or label maps beside volumes) are passed over and counted. Links to folders are
    followed. A file that holds several images stands for all of them; FILE#N names one. A DICOMDIR stands for the
    folder that it lies in.

    Args:
        inputs: What the user named.
        axis: How volumes are cut, as in `frames_of`.

    Raises:
        DataError: Nothing is named, an input does not exist, or nothing is found in any of them.
    """
    if not inputs:
        raise DataError("no input: name images, folders or patterns such as 'scans/*.png'")
    found: dict[str, Path] = {}
    single: dict[str, ImageRef] = {}
    passed: dict[Path, str] = {}
    empty: dict[str, str] = {}
    for entry in inputs:
        one = _single(str(entry))
        if one is not None:
            single.setdefault(_key(one.path) + one.mark, one)
            continue
        paths, reason = _expand(entry, passed)
        for path in paths:
            found.setdefault(_key(path), path)
        if not paths:
            empty[str(entry)] = reason
    named = {_key(Path(entry)) for entry in inputs if not _is_index(Path(entry))}
    images, series = _frames([found[key] for key in sorted(found)], named, axis, passed)
    known = set(images)
    images += [one for one in single.values() if one not in known]
    if not images:
        empty = empty or {str(entry): f"no image{_summary(None, passed)}" for entry in inputs[:1]}
        raise DataError("; ".join(f"{entry}: {reason}" for entry, reason in empty.items()))
    taken = {_key(image.path) for image in images}
    counts = Counter(reason for path, reason in passed.items() if _key(path) not in taken)
    return Inputs(tuple(images), dict(counts.most_common()), tuple(empty), tuple(series))


def _is_index(path: Path) -> bool:
    return path.name.upper() == "DICOMDIR" and path.is_file()


def _key(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  (resolve() would follow links)


def _single(entry: str) -> ImageRef | None:
    """The image that FILE#N, FILE#coronalN or FILE#sagittalN names, where there is no file of that very name."""
    match = _FRAME.fullmatch(entry)
    if match is None or Path(entry).exists() or not Path(match["path"]).is_file():
        return None
    axis = match["axis"] or ""
    return ImageRef(Path(match["path"]), int(match["frame"]), "" if axis == "axial" else axis)


def _frames(
    paths: Iterable[Path], named: Container[str], axis: str, passed: dict[Path, str]
) -> tuple[list[ImageRef], list[Series]]:
    """The images in files, and those of them that belong together; what turns out to be none is noted."""
    placed: list[tuple[int, Series]] = []
    place_of: dict[ImageRef, int] = {}
    headers: list[Facts] = []
    for place, path in enumerate(paths):
        try:
            facts = facts_of(path)
            if facts is None:
                placed.append((place, Series(frames_of(path, axis))))
            elif facts.images:
                headers.append(facts)
                place_of |= dict.fromkeys(facts.images, place)
            elif _key(path) in named:
                placed.append((place, Series((ImageRef(path),))))  # whoever reads it says what it is
            else:
                passed[path] = "DICOM without an image"
        except DataError:
            placed.append((place, Series((ImageRef(path),))))  # its error is told where it is read
    for one in sorted_series(headers):
        said = (_AS_STORED,) if axis != "axial" and len(one.images) > 1 else ()
        placed.append((min(place_of[image] for image in one.images), replace(one, notes=(*one.notes, *said))))
    found = [one for _, one in sorted(placed, key=lambda one: one[0])]
    return [image for one in found for image in one.images], [one for one in found if len(one.images) > 1 or one.study]


def _expand(entry: str | Path, passed: dict[Path, str]) -> tuple[list[Path], str]:
    """The files that an entry stands for, and what to say where there are none."""
    path = Path(entry)
    if _is_index(path):
        path = path.parent  # a medium's index: its files say themselves what they are
    if path.is_file():
        return [path], ""
    if path.is_dir():
        walk = Walk()
        images = _sorted_out(path, walk.files(path), passed)
        _note_of_walk(walk, passed)
        return images, f"no images (PNG, DICOM, NIfTI, ...) in this folder{_summary(path, passed)}"
    if glob.has_magic(str(entry)):
        images = _matching(path, passed)
        return images, "no image matches this pattern"
    raise DataError(f"{path}: no such file or folder")


def _matching(pattern: Path, passed: dict[Path, str]) -> list[Path]:
    """The images that a pattern stands for; a folder that matches stands for all that is in it."""
    fixed = next(place for place, part in enumerate(pattern.parts) if glob.has_magic(part))
    walk = Walk()
    found: list[Path] = []
    for match in map(Path, glob.glob(str(pattern), recursive=True)):  # noqa: PTH207  (absolute patterns)
        if any(map(is_passed_over, match.parts[fixed:])):
            passed[match] = "hidden or of a tool"
        else:
            found += walk.files(match) if match.is_dir() else [match]
    _note_of_walk(walk, passed)
    return _sorted_out(Path(*pattern.parts[:fixed]), sorted({*found}), passed)


def _note_of_walk(walk: Walk, passed: dict[Path, str]) -> None:
    passed.update(dict.fromkeys(walk.hidden, "hidden or of a tool"))
    passed.update(dict.fromkeys(walk.dead, "dead links"))


def _sorted_out(folder: Path, paths: Iterable[Path], passed: dict[Path, str]) -> list[Path]:
    """The images among files below a folder; all others are noted with the reason."""
    paths = list(paths)
    names = {folded(bare(path).as_posix()) for path in paths}
    images = []
    for path in paths:
        name = folded(bare(path).as_posix())
        is_mask = name.endswith(MASK_ENDING) and name.removesuffix(MASK_ENDING) in names
        if is_mask or any(folded(part) in MASK_FOLDERS for part in path.relative_to(folder).parts[:-1]):
            passed[path] = "masks"
        elif is_image(path):
            images.append(path)
        else:
            passed[path] = path.suffix.lower() or "no suffix"
    maps = label_maps(images)
    passed.update(dict.fromkeys(maps, "masks"))
    return [path for path in images if path not in maps]


def _summary(folder: Path | None, passed: dict[Path, str]) -> str:
    counts = Counter(reason for path, reason in passed.items() if folder is None or path.is_relative_to(folder))
    listed = ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common(4))
    return f", only {listed}" if listed else ""
