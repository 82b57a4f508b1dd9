"""ZIP archives of images, unpacked with bounds: what is in them is counted, and their names build no path."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from typing import IO, TYPE_CHECKING

from madclip.data.classes import MASK_FOLDERS
from madclip.data.walk import folded, is_passed_over
from madclip.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

MAX_FILES, MAX_BYTES, MAX_RATIO = 50_000, 20 * 2**30, 200
"""An archive of more files, of more bytes, or with a file that is compressed to less than this part is refused."""
_MAGIC = (b"PK\3\4", b"PK\5\6")
"""How an archive begins, and one that holds nothing."""
_SMALL = 2**20
"""Files of so many bytes may be compressed as much as they can: an empty mask is."""


def is_zip(path: Path) -> bool:
    """Whether a file is a ZIP archive, by its first bytes: an image that an archive hangs on is an image."""
    try:
        with path.open("rb") as file:
            return file.read(4) in _MAGIC
    except OSError:
        return False


def unpack(path: Path, folder: Path) -> int:
    """Unpacks the files of an archive into a folder, numbered in their order; gives how many there are.

    Only the suffix of a name is kept, where it is letters and digits. Folders in the archive are not made: series are
    told apart by their headers.

    Args:
        path: The archive.
        folder: New or empty.

    Raises:
        DataError: It is damaged, encrypted, holds nothing, or more than is unpacked.
    """
    count = 0
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir() and not _is_left(member.filename)]
            _check(path, members)
            for count, member in enumerate(members, 1):
                suffix = member.filename.rpartition(".")[2].lower()
                ending = f".{suffix}" if suffix.isascii() and suffix.isalnum() and len(suffix) <= 8 else ""
                ending = ".nii.gz" if member.filename.lower().endswith(".nii.gz") else ending
                with archive.open(member) as source, (folder / f"{count - 1:06d}{ending}").open("xb") as target:
                    # What is stated may be a lie: not more than that is written.
                    shutil.copyfileobj(_Bounded(source, member.file_size, path), target, 2**20)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise DataError(f"{path}: a ZIP archive that cannot be unpacked ({type(error).__name__})") from None
    return count


def _is_left(name: str) -> bool:
    """Whether a file is hidden, of a tool (as Finder adds them), or a mask, as a folder's would be passed over."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return any(map(is_passed_over, parts)) or any(folded(part) in MASK_FOLDERS for part in parts[:-1])


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    if not members:
        raise DataError(f"{path}: a ZIP archive without files")
    if any(member.flag_bits & 1 for member in members):
        raise DataError(f"{path}: an encrypted ZIP archive; unpack it")
    if len(members) > MAX_FILES or sum(member.file_size for member in members) > MAX_BYTES:
        raise DataError(f"{path}: a ZIP archive of more than {MAX_FILES:,} files or {MAX_BYTES // 2**30} GB; unpack it")
    if any(member.file_size > max(_SMALL, MAX_RATIO * member.compress_size) for member in members):
        raise DataError(f"{path}: a ZIP archive with a file that grows more than {MAX_RATIO} times; unpack it yourself")


class _Bounded:
    """A file of which no more is read than it states."""

    def __init__(self, source: IO[bytes], size: int, path: Path) -> None:
        self._source, self._left, self._path = source, size, path

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self._source.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._path}: a ZIP archive with a file that is larger than it states")
        return data
