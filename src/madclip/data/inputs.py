"""What a user names on the command line, as files."""

from __future__ import annotations

import glob
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from madclip.data.classes import MASK_FOLDERS
from madclip.data.masks import MASK_ENDING
from madclip.data.walk import Walk, folded, is_image, is_passed_over
from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass(frozen=True)
class Inputs:
    """Images to predict, and what was passed over in finding them.

    Attributes:
        images: The files, sorted, each once.
        passed_over: Number of files that are no images to predict, by suffix (`.dcm`, or `no suffix`) or by reason
            (`hidden or of a tool`, `masks`, `dead links`), the most frequent first.
        empty: Folders and patterns in which there is no image, as they were named.
    """

    images: tuple[Path, ...]
    passed_over: dict[str, int]
    empty: tuple[str, ...] = ()

    def said(self) -> str:
        """One line on what was passed over and what was empty, or an empty string where there is nothing."""
        counts = ", ".join(f"{number:,} {reason}" for reason, number in self.passed_over.items())
        parts = [f"passed over: {counts}"] if counts else []
        parts += [f"no image in {', '.join(self.empty)}"] if self.empty else []
        return "; ".join(parts)


def expand_inputs(inputs: Sequence[str | Path]) -> Inputs:
    """Image files from files, folders (searched at all depths) and glob patterns.

    A file that is named is taken whatever it is. In folders and patterns the content decides where the suffix is not
    that of an image; hidden files, those of tools, and masks (in folders such as `masks/`, or `NAME_mask` beside
    `NAME`) are passed over and counted. Links to folders are followed.

    Raises:
        DataError: Nothing is named, an input does not exist, or nothing is found in any of them.
    """
    if not inputs:
        raise DataError("no input: name images, folders or patterns such as 'scans/*.png'")
    found: dict[str, Path] = {}
    passed: dict[Path, str] = {}
    empty: dict[str, str] = {}
    for entry in inputs:
        images, reason = _expand(entry, passed)
        for path in images:
            found.setdefault(os.path.abspath(path), path)  # noqa: PTH100  (resolve() would follow links)
        if not images:
            empty[str(entry)] = reason
    if not found:
        raise DataError("; ".join(f"{entry}: {reason}" for entry, reason in empty.items()))
    counts = Counter(reason for path, reason in passed.items() if os.path.abspath(path) not in found)  # noqa: PTH100
    return Inputs(tuple(found[key] for key in sorted(found)), dict(counts.most_common()), tuple(empty))


def _expand(entry: str | Path, passed: dict[Path, str]) -> tuple[list[Path], str]:
    """The images that an entry stands for, and what to say where there are none."""
    path = Path(entry)
    if path.is_file():
        return [path], ""
    if path.is_dir():
        walk = Walk()
        images = _sorted_out(path, walk.files(path), passed)
        passed.update(dict.fromkeys(walk.hidden, "hidden or of a tool"))
        passed.update(dict.fromkeys(walk.dead, "dead links"))
        return images, f"no images (PNG, JPEG, TIFF, ...) in this folder{_summary(path, passed)}"
    if glob.has_magic(str(entry)):
        matches = [Path(match) for match in glob.glob(str(entry), recursive=True)]  # noqa: PTH207  (absolute patterns)
        fixed = next(place for place, part in enumerate(path.parts) if glob.has_magic(part))
        tools = [match for match in matches if any(map(is_passed_over, match.parts[fixed:]))]
        passed.update(dict.fromkeys(tools, "hidden or of a tool"))
        kept = [match for match in matches if match.is_file() and match not in set(tools)]
        return _sorted_out(None, kept, passed), "no image matches this pattern"
    raise DataError(f"{path}: no such file or folder")


def _sorted_out(folder: Path | None, paths: Iterable[Path], passed: dict[Path, str]) -> list[Path]:
    """The images among files; all others are noted with the reason."""
    paths = list(paths)
    names = {folded(path.with_suffix("").as_posix()) for path in paths}
    images = []
    for path in paths:
        name = folded(path.with_suffix("").as_posix())
        below = path.relative_to(folder).parts[:-1] if folder else ()
        is_mask = name.endswith(MASK_ENDING) and name.removesuffix(MASK_ENDING) in names
        if is_mask or any(folded(part) in MASK_FOLDERS for part in below):
            passed[path] = "masks"
        elif is_image(path):
            images.append(path)
        else:
            passed[path] = path.suffix.lower() or "no suffix"
    return images


def _summary(folder: Path, passed: dict[Path, str]) -> str:
    counts = Counter(reason for path, reason in passed.items() if path.is_relative_to(folder))
    listed = ", ".join(f"{number:,} {reason}" for reason, number in counts.most_common(4))
    return f", only {listed}" if listed else ""
