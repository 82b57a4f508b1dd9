"""Tokens on disk: computed once for every image variant, read through memory maps, the oldest first to go."""

from __future__ import annotations

import json
import os
import stat
import warnings
from contextlib import suppress
from errno import EACCES, EDQUOT, ENOSPC, ENOTDIR, EPERM, EROFS
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from safetensors import SafetensorError, safe_open

from madclip.errors import CheckpointError, DataError, MadCLIPWarning
from madclip.files import first_line, new_file, write_whole

if TYPE_CHECKING:
    import torch

FORMAT = 1
DEFAULT_LIMIT = 20 * 2**30
_LIMIT_FILE = "limit.json"
_CLOSED = (EACCES, EPERM, EROFS, ENOTDIR)
"""What the system says where nothing may be written."""


def default_folder() -> Path:
    """Where tokens are kept: MADCLIP_CACHE, or `tokens` in the user's cache folder."""
    return Path(os.environ.get("MADCLIP_CACHE") or Path(platformdirs.user_cache_dir("madclip")) / "tokens")


class TokenCache:
    """Tensors by key in a folder that only its owner may read, least recently used first to go.

    Several processes may use one folder at a time: a file that another has removed counts as absent. A folder that
    cannot be written is read all the same, which a warning says once. Where the owner lets a group write to the
    folder, that group may read the tokens too.

    Tokens derive from patients' images; treat the folder as you treat the images.

    Args:
        folder: Where; None for `default_folder()`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()
        self._closed = False

    @property
    def limit(self) -> int:
        """Bytes that the cache may take."""
        path = self.folder / _LIMIT_FILE
        try:
            return int(json.loads(path.read_text(encoding="utf-8"))["bytes"])
        except OSError:  # there is none, or it is not ours to read, and then neither are the tokens
            return DEFAULT_LIMIT
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: not a limit that madclip wrote; delete the file") from error

    @limit.setter
    def limit(self, size: int) -> None:
        try:
            self._make_folder()
            write_whole(self.folder / _LIMIT_FILE, json.dumps({"bytes": size}), 0o600)
            self._evict(size)
        except OSError as error:
            raise self._refused(error) from error

    def entries(self) -> list[Path]:
        """Files of the cache, least recently used first.

        Raises:
            DataError: The folder cannot be listed, as for `size`.
        """
        return [path for path, _ in self._readable()]

    def size(self) -> int:
        """Bytes that it takes."""
        return sum(size for _, size in self._readable())

    def clear(self) -> int:
        """Delete all tokens, and what killed processes left; returns the bytes set free.

        Raises:
            DataError: The folder is not the user's to change.
        """
        freed = 0
        try:
            left = [(path, 0) for path in self._list() if path.name.startswith(".") and path.suffix == ".partial"]
            for path, size in [*self._files(), *left]:
                path.unlink(missing_ok=True)
                freed += size
        except OSError as error:
            raise self._refused(error) from error
        return freed

    def load(self, key: str) -> torch.Tensor | None:
        """The tensor stored under a key, memory-mapped, or None. A file that cannot be read counts as absent."""
        path = self._path(key)
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor("tokens")
        except OSError:  # not there, not ours to read, or no handle left: it may be whole
            return None
        except SafetensorError:
            with suppress(OSError):  # cut off by a full disk or a crash: it is computed anew
                path.unlink()
            return None
        with suppress(OSError):  # gone meanwhile, which the map outlives, or somebody else's
            os.utime(path)
        return tensor

    def store(self, key: str, tensor: torch.Tensor) -> None:
        """Keep a tensor, where it may be kept; old ones go where the limit asks for it.

        Raises:
            DataError: The disk is full.
        """
        from safetensors.torch import save_file  # brings torch, which whoever only keeps house does not need

        size, limit = tensor.numel() * tensor.element_size(), self.limit
        if self._closed or size > limit:
            return
        try:
            self._make_folder()
            self._evict(limit - size)
            with new_file(self._path(key), 0o640 if self._shared() else 0o600) as partial:
                save_file({"tokens": tensor.contiguous()}, partial, metadata={"format": str(FORMAT)})
        except FileNotFoundError:
            return  # somebody cleared the cache meanwhile, what was being written with it
        except (OSError, SafetensorError) as error:
            if isinstance(error, OSError) and error.errno in _CLOSED:
                self._closed = True
                said = f"{self.folder}: tokens are read but not kept there ({error.strerror}); {_ELSEWHERE}"
                warnings.warn(said, MadCLIPWarning, stacklevel=2)
                return
            raise self._refused(error) from error

    def remove(self, key: str) -> None:
        """Delete the tensor stored under a key, where there is one.

        Raises:
            OSError: It may not be deleted.
        """
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _files(self) -> list[tuple[Path, int]]:
        """Files and their sizes, least recently used first, without those that go away meanwhile."""
        found = []
        for path in self._list():
            if path.suffix != ".safetensors":
                continue
            with suppress(FileNotFoundError):
                facts = path.stat()
                found.append((facts.st_mtime_ns, path.name, path, facts.st_size))
        return [(path, size) for _, _, path, size in sorted(found)]

    def _readable(self) -> list[tuple[Path, int]]:
        try:
            return self._files()
        except OSError as error:
            raise self._refused(error, "listed") from error

    def _list(self) -> list[Path]:
        """What is in the folder; `Path.glob` would pass over one that may not be listed as if it were empty."""
        try:
            return list(self.folder.iterdir())
        except FileNotFoundError:
            return []

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not self._shared():
            with suppress(PermissionError):  # another's folder
                self.folder.chmod(self.folder.stat().st_mode & 0o700)

    def _shared(self) -> bool:
        """Whether the folder's owner wants a group to use it."""
        return bool(self.folder.stat().st_mode & stat.S_IWGRP)

    def _evict(self, limit: int) -> None:
        files = self._files()
        total = sum(size for _, size in files)
        for path, size in files:
            if total <= limit:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _refused(self, error: OSError | SafetensorError, what: str = "written") -> DataError:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        full = isinstance(error, SafetensorError) or error.errno in (ENOSPC, EDQUOT)
        advice = (
            f"free some space, lower the limit with `madclip cache --limit`, or {_ELSEWHERE}" if full else _ELSEWHERE
        )
        return DataError(f"{self.folder}: the token cache cannot be {what} ({reason}); {advice}")


_ELSEWHERE = "set MADCLIP_CACHE to a folder of your own, or pass --no-cache to fit"
