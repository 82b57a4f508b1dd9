"""The backbones known by name: geometry, licence, where they come from. A reader adds one by adding a row."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class BackboneEntry:
    """A row of the catalogue.

    Attributes:
        id: What `load_backbone` takes.
        hub: Repository on the Hugging Face hub, as `organisation/name`; None for what ships with the package.
        depth: Blocks of the vision tower.
        width: Width of its residual stream.
        patch_size: Side of a patch, pixels.
        image_size: Side at which it was trained, pixels.
        embed_dim: Size of the shared image-text space; 0 for an image-only partner.
        licence: Licence of the weights.
        commercial: Whether they may be used commercially; None where that is not known.
        file: Name of a single downloaded file, where there is one; else the hub repository's files are expected.
        sha256: SHA-256 of that file.
        gated: Whether its hub asks to accept terms first; None where that is not known.
        checked: What reading it was held against, and when: a published file, or files that the peer's code wrote.
        note: What a user should know before choosing it.
    """

    id: str
    hub: str | None
    depth: int
    width: int
    patch_size: int
    image_size: int
    embed_dim: int
    licence: str
    commercial: bool | None
    file: str | None = None
    sha256: str | None = None
    gated: bool | None = None
    checked: str = ""
    note: str = ""

    @property
    def folder(self) -> Path:
        """Where downloaded weights are looked for."""
        return cache_folder() / self.id


def cache_folder() -> Path:
    """The user's folder of downloaded backbones."""
    import platformdirs

    return Path(platformdirs.user_cache_dir("madclip", appauthor=False)) / "backbones"


@cache
def catalogue() -> tuple[BackboneEntry, ...]:
    """All rows, in the order in which they are shown."""
    rows = json.loads(Path(__file__).with_name("catalogue.json").read_text(encoding="utf-8"))
    return tuple(BackboneEntry(**row) for row in rows)
