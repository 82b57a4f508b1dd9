"""Where weights come from: the package, the user's cache folder, a path, or a hub."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from madclip.backbones import hub
from madclip.backbones.catalogue import BackboneEntry, catalogue
from madclip.backbones.checkpoints import WEIGHT_SUFFIXES, Checkpoint, read_checkpoint
from madclip.backbones.efficientnet import LITE
from madclip.backbones.lite import read_lite
from madclip.backbones.random_weights import stand_in
from madclip.errors import CheckpointError
from madclip.files import digest

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TINY = Path(__file__).parent / "tiny"


def find_checkpoint(source: str | Path) -> tuple[Checkpoint, BackboneEntry | None, str]:
    """The weights that `source` names, their row of the catalogue where they have one, and a name for them.

    Raises:
        CheckpointError: Nothing is found, or it cannot be read.
    """
    text = str(source)
    entry = next((e for e in catalogue() if text in (e.id, e.hub)), None) if isinstance(source, str) else None
    if entry is not None and not Path(text, "config.json").is_file():
        return _from_catalogue(entry), entry, entry.id
    path = Path(source).expanduser()
    if text and path.exists():
        return read_checkpoint(path), None, path.name or str(path.resolve())
    if isinstance(source, str) and HUB_NAME.fullmatch(text) and path.suffix not in WEIGHT_SUFFIXES:
        return read_checkpoint(hub.download(text)), None, text
    raise CheckpointError(_not_found(text))


def _not_found(text: str) -> str:
    known = [entry.id for entry in catalogue()]
    near = difflib.get_close_matches(text, known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"no backbone {text!r}: {hint}give a file, a folder, a hub name, or one of {', '.join(known)}"


def _from_catalogue(entry: BackboneEntry) -> Checkpoint:
    if entry.id == "stand-in":
        return stand_in()
    if entry.id == "tiny":
        if not TINY.is_dir():
            raise CheckpointError(f"the bundled backbone is not in this build ({TINY}): use 'stand-in' or another one")
        return read_checkpoint(TINY)
    if entry.id in LITE:
        return read_lite(entry)
    if entry.file and (entry.folder / entry.file).is_file():
        file = entry.folder / entry.file
        if entry.sha256 and (found := digest(file)) != entry.sha256:
            raise CheckpointError(f"{file} is not {entry.id}: its SHA-256 is {found[:12]}..., download it again")
        return read_checkpoint(file)
    if entry.folder.is_dir() and any(entry.folder.iterdir()):
        return read_checkpoint(entry.folder)
    if entry.hub is None:
        raise CheckpointError(f"{entry.id} is not in {entry.folder}")
    return read_checkpoint(hub.download(entry.hub, entry.folder, entry.file))
