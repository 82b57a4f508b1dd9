"""What lies in a folder: one walk for data sets and for the inputs of `predict`."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from madclip.data.readers import IMAGE_SUFFIXES, holds_image
from madclip.errors import DataError

TOOL_NAMES = frozenset(
    {
        *("@eadir", "#recycle", "#snapshot", "@recycle", "$recycle.bin", "system volume information", "lost+found"),
        *("__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "desktop.ini", "__pycache__"),
    }
)
"""Files and folders that file managers, network drives and programs leave behind, in small letters."""
TOOL_SUFFIXES = ("~", ".bak", ".swp", ".tmp", ".part", ".partial", ".crdownload")
"""Endings of copies that editors keep and of downloads that are not finished."""


def folded(name: str) -> str:
    """A name as it is compared: composed Unicode (NFC), without upper and lower case."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def bare(path: Path) -> Path:
    """A path without its suffix; `.nii.gz` is one."""
    return path.with_suffix("").with_suffix("") if path.name.lower().endswith(".nii.gz") else path.with_suffix("")


def is_passed_over(name: str) -> bool:
    """Whether a file or folder of this name is hidden or was left behind by a tool: nobody means it as an image."""
    small = name.lower()
    return small.startswith(".") or small in TOOL_NAMES or small.endswith(TOOL_SUFFIXES)


def is_image(path: Path) -> bool:
    """Whether a file counts as an image: by its suffix if that is an image's, else by its content."""
    return path.suffix.lower() in IMAGE_SUFFIXES or holds_image(path)


class Walk:
    """Lists folders, follows links to folders, and remembers what it passed over.

    Attributes:
        hidden: Hidden files and folders, and those of tools (`.ipynb_checkpoints`, `@eaDir`, `Thumbs.db`, ...).
        dead: Links that lead nowhere, or back to a folder that was listed already.
    """

    def __init__(self) -> None:
        self.hidden: set[Path] = set()
        self.dead: set[Path] = set()
        self._files: dict[Path, list[Path]] = {}

    def folders(self, parent: Path) -> list[Path]:
        """The folders in a folder, in the order of their names."""
        return self._list(parent)[0]

    def loose(self, parent: Path) -> list[Path]:
        """The files in a folder, in the order of their names, without those in folders below it."""
        return self._list(parent)[1]

    def files(self, base: Path) -> list[Path]:
        """The files at all depths below a folder, in the order of their names.

        Each real folder is listed once, under its own path where that lies below `base`: a link to a folder above, or
        to one that was listed, is not followed.

        Raises:
            DataError: A folder cannot be listed.
        """
        if base not in self._files:
            real = Path(os.path.realpath(base))
            seen = {real, *real.parents}
            found: list[Path] = []
            own, links = [base], list[Path]()
            while own or links:
                folder = own.pop() if own else links.pop(0)
                if folder != base:
                    real = Path(os.path.realpath(folder))
                    if real in seen:
                        self.dead.add(folder)
                        continue
                    seen.add(real)
                below, files = self._list(folder)
                found += files
                own += [path for path in below if not path.is_symlink()]
                links += [path for path in below if path.is_symlink()]
            self._files[base] = sorted(found)
        return self._files[base]

    def images(self, base: Path) -> list[Path]:
        """The images among `files`."""
        return [path for path in self.files(base) if is_image(path)]

    def _list(self, parent: Path) -> tuple[list[Path], list[Path]]:
        folders: list[Path] = []
        files: list[Path] = []
        try:
            with os.scandir(parent) as entries:
                for entry in entries:
                    path = parent / entry.name
                    if is_passed_over(entry.name):
                        self.hidden.add(path)
                    elif entry.is_dir():
                        folders.append(path)
                    elif entry.is_file():
                        files.append(path)
                    else:
                        self.dead.add(path)
        except OSError as error:
            raise DataError(f"{parent}: cannot be listed ({error.strerror or error})") from error
        return sorted(folders), sorted(files)
