"""Tokens on disk: computed once for every image variant, read through memory maps, the oldest first to go."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from madclip.errors import CheckpointError, DataError

if TYPE_CHECKING:
    import torch

FORMAT = 1
DEFAULT_LIMIT = 20 * 2**30
_LIMIT_FILE = "limit.json"


def default_folder() -> Path:
    """Where tokens are kept: MADCLIP_CACHE, or `tokens` in the user's cache folder."""
    return Path(os.environ.get("MADCLIP_CACHE") or Path(platformdirs.user_cache_dir("madclip")) / "tokens")


class TokenCache:
    """Tensors by key in a folder that only its owner may read, least recently used first to go.

    Tokens derive from patients' images; treat the folder as you treat the images.

    Args:
        folder: Where; None for `default_folder()`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    @property
    def limit(self) -> int:
        """Bytes that the cache may take."""
        path = self.folder / _LIMIT_FILE
        if not path.exists():
            return DEFAULT_LIMIT
        try:
            return int(json.loads(path.read_text())["bytes"])
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: not a limit that madclip wrote; delete the file") from error

    @limit.setter
    def limit(self, size: int) -> None:
        self._make_folder()
        partial = self.folder / f"{_LIMIT_FILE}.{os.getpid()}"
        partial.write_text(json.dumps({"bytes": size}))
        partial.replace(self.folder / _LIMIT_FILE)
        self._evict(size)

    def entries(self) -> list[Path]:
        """Files of the cache, least recently used first."""
        return sorted(self.folder.glob("*.safetensors"), key=lambda path: (path.stat().st_mtime_ns, path.name))

    def size(self) -> int:
        """Bytes that it takes."""
        return sum(path.stat().st_size for path in self.entries())

    def clear(self) -> int:
        """Delete all tokens; returns the bytes set free."""
        freed = self.size()
        for path in [*self.entries(), *self.folder.glob("*.partial")]:
            path.unlink(missing_ok=True)
        return freed

    def load(self, key: str) -> torch.Tensor | None:
        """The tensor stored under a key, memory-mapped, or None. A file that cannot be read counts as absent."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensor: torch.Tensor = file.get_tensor("tokens")
        except (SafetensorError, OSError):
            path.unlink(missing_ok=True)  # cut off by a full disk or a crash: it is computed anew
            return None
        os.utime(path)
        return tensor

    def store(self, key: str, tensor: torch.Tensor) -> None:
        """Keep a tensor: written under a temporary name, then renamed; old ones go where the limit asks for it."""
        size = tensor.numel() * tensor.element_size()
        limit = self.limit
        if size > limit:
            return
        self._make_folder()
        self._evict(limit - size)
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".partial")
        os.close(handle)
        try:
            save_file({"tokens": tensor.contiguous()}, name, metadata={"format": str(FORMAT)})
            Path(name).replace(self._path(key))
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{self.folder}: cannot keep tokens there ({error}); free some space, set MADCLIP_CACHE to "
                "another folder, or lower the limit with `madclip cache --limit`"
            ) from error
        finally:
            Path(name).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.folder.chmod(0o700)

    def _evict(self, limit: int) -> None:
        files = [(path, path.stat().st_size) for path in self.entries()]
        total = sum(size for _, size in files)
        for path, size in files:
            if total <= limit:
                return
            path.unlink(missing_ok=True)
            total -= size
