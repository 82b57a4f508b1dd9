"""The detector that an archive is scored by, as it travels: each worker opens its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from madclip.errors import CheckpointError, DataError
from madclip.storage import PARTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from madclip.data.ref import ImageRef
    from madclip.prediction import Prediction


class Scorer(Protocol):
    """What predicts: a `MadCLIP`."""

    def predict_iter(self, inputs: Iterable[ImageRef], *, native: bool) -> Iterator[Prediction | DataError]:
        """One Prediction, or the error that its file gave, for each input in order; see `MadCLIP.predict_iter`."""


class Scoring(Protocol):
    """A scorer that is not opened yet; it can be pickled."""

    @property
    def name(self) -> str:
        """What people call it."""

    @property
    def sha256(self) -> str:
        """What tells it from all others."""

    @property
    def axis(self) -> str:
        """How it wants volumes cut."""

    def facts(self) -> dict[str, Any]:
        """What its scores depend on, as JSON values: a run goes on only where they are the same."""

    def open(self) -> Scorer:
        """The scorer, in the process that calls."""


@dataclass(frozen=True)
class SavedDetector:
    """A detector in a folder, which every worker can see.

    Attributes:
        folder: Where it is.
        sha256: Digest of what it learned and of what it says of itself; see `detector_digest`.
        axis: How volumes are cut.
        engine: As for `choose_engine`, without `auto`.
        backbone: Where its backbone is now, if it is no longer where it was.
        device: As for `MadCLIP`.
    """

    folder: Path
    sha256: str
    axis: str
    engine: str = "torch"
    backbone: str | None = None
    device: str = "auto"

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    def facts(self) -> dict[str, Any]:
        """See `Scoring.facts`."""
        return {"detector": self.sha256, "axis": self.axis, "engine": self.engine, "device": self.device}

    def open(self) -> Scorer:
        """Load it.

        Raises:
            CheckpointError: It cannot be loaded, or is not the one that the run began with.
        """
        from madclip.detector import MadCLIP
        from madclip.export.use import choose_engine, use_engine

        if detector_digest(self.folder) != self.sha256:
            raise CheckpointError(f"{self.folder}: another detector here than the one that the run began with")
        detector = MadCLIP.load(self.folder, backbone=self.backbone, device=self.device)
        export, _ = choose_engine(detector, self.folder, self.engine)
        if export is not None:
            use_engine(detector, export)
        return detector


def detector_digest(folder: Path) -> str:
    """SHA-256 over the files of a detector, which name its backbone's weights by their fingerprint.

    Raises:
        CheckpointError: There is no detector.
    """
    total = hashlib.sha256()
    for name in PARTS[:2]:  # without the card for people
        try:
            total.update((folder / name).read_bytes())
        except OSError as error:
            raise CheckpointError(f"{folder}: not a detector ({name} cannot be read: {error.strerror})") from error
    return total.hexdigest()
