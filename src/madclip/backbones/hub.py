"""Weights by hub name: downloaded once, verified against the hub's hashes, offline afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from madclip.backbones.catalogue import cache_folder
from madclip.backbones.checkpoints import read_json
from madclip.errors import CheckpointError
from madclip.files import digest, first_line, write_whole

SMALL = (
    "config.json",
    "open_clip_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
WEIGHTS = (
    ("model.safetensors",),
    ("model.safetensors.index.json", "model-*.safetensors"),
    ("open_clip_model.safetensors",),
    ("open_clip_pytorch_model.safetensors",),
    ("pytorch_model.bin",),
    ("open_clip_pytorch_model.bin",),
)
"""In order of preference: the first kind that a repository has is taken, and no other."""


def download(name: str, place: Path | None = None, file: str | None = None) -> Path:
    """The folder of a repository's weights, from the local cache or the network.

    Args:
        name: `organisation/name`.
        place: Where a user may put downloaded files instead, for the message.
        file: Name of a single file that would do there.

    Raises:
        CheckpointError: Not cached and not to be had, or what came is not what the hub says it is.
    """
    from huggingface_hub.errors import GatedRepoError

    record = cache_folder() / "hub" / f"{name.replace('/', '--')}.json"
    if record.is_file():
        cached = _local(name, read_json(record))
        if cached is not None:
            return cached
    try:
        return _fetch(name, record)
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 -- network, proxy, gate, disk: all end in the same advice
        cached = _local(name, {})
        if cached is not None:
            return cached
        reason = first_line(error)
        if isinstance(error, GatedRepoError):
            reason = "its owner asks you to accept terms: do so on the hub's page, then run `hf auth login`"
        what = f"{file}, or " if file else ""
        raise CheckpointError(
            f"{name} is not a path here and could not be downloaded ({reason}): "
            f"put {what}its config.json, model.safetensors and tokenizer into {place or 'a folder'}, or give a path"
        ) from None


def _local(name: str, record: dict[str, Any]) -> Path | None:
    """What is cached already: the recorded revision, complete; without a record whatever the hub's library holds."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, revision=record.get("revision"), local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
        return None
    if record:
        return folder if all((folder / file).is_file() for file in record.get("files", {})) else None
    return folder if any(next(folder.glob(kind[-1]), None) for kind in WEIGHTS) else None


def _fetch(name: str, record: Path) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    info = HfApi().model_info(name, files_metadata=True)
    hashes = {s.rfilename: s.lfs.sha256 if s.lfs else None for s in info.siblings or []}
    chosen = _choose(name, list(hashes))
    folder = Path(snapshot_download(name, revision=info.sha, allow_patterns=chosen))
    for file in chosen:
        expected = hashes[file]
        if expected and digest(folder / file) != expected:
            (folder / file).resolve().unlink()
            raise CheckpointError(f"{name}: {file} came damaged (SHA-256 is not the hub's) and was removed: try again")
    write_whole(record, json.dumps({"revision": info.sha, "files": {f: hashes[f] for f in chosen}}, indent=1))
    return folder


def _choose(name: str, files: list[str]) -> list[str]:
    top = [Path(file) for file in files if "/" not in file]
    of_open_clip = "open_clip_config.json" in files  # beside it the image tower alone may lie, as timm's model
    for kind in sorted(WEIGHTS, key=lambda kind: of_open_clip and not kind[0].startswith("open_clip")):
        found = [f.name for pattern in kind for f in top if f.match(pattern)]
        if found:
            return found + [f.name for f in top if f.name in SMALL]
    raise CheckpointError(f"{name} has none of the weights that can be read: {', '.join(k[-1] for k in WEIGHTS)}")
