"""A project's folder: where each thing lies in it. No name from outside is part of any of these paths."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FOLDERS = ("uploads", "masks", "thumbnails", "tokens/images", "tokens/shots", "detectors", "maps", "reports", "work")


class Places:
    """The folders and files of a project, made where they are missing; only their owner may read them.

        project.sqlite                 images, labels, jobs, detectors
        uploads/SHA256.suffix          what was uploaded, by content
        masks/IMAGE-DIGEST.png         painted or uploaded masks
        thumbnails/IMAGE.jpg
        tokens/images, tokens/shots    token caches: of images as they are, and of variants of shots
        detectors/ID                   what a fit made
        maps/DETECTOR/IMAGE.npy        anomaly maps as the recipe's square, float16
        reports/ID.html                of evaluations
        work/                          what is under way; emptied when the server starts, but for fits to be resumed
        audit.log                      who did what to which number, without names

    Args:
        root: The project's folder.

    Raises:
        DataError: It cannot be made.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        try:
            for name in _FOLDERS:
                (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)
            self.root.chmod(0o700)
        except OSError as error:
            raise DataError(f"{root}: no project can be kept there ({error.strerror or error})") from error
        self.database = self.root / "project.sqlite"
        self.audit = self.root / "audit.log"
        self.uploads, self.work = self.root / "uploads", self.root / "work"
        self.image_tokens, self.shot_tokens = self.root / "tokens" / "images", self.root / "tokens" / "shots"

    def mask(self, image: int, digest: str) -> Path:
        """The mask of an image, by its content."""
        return self.root / "masks" / f"{image}-{digest}.png"

    def thumbnail(self, image: int) -> Path:
        """The small picture of an image."""
        return self.root / "thumbnails" / f"{image}.jpg"

    def detector(self, detector: int) -> Path:
        """A detector's folder, named by the job that made it."""
        return self.root / "detectors" / str(detector)

    def maps(self, detector: int) -> Path:
        """The folder of a detector's maps."""
        return self.root / "maps" / str(detector)

    def map(self, detector: int, image: int) -> Path:
        """The map of an image by a detector."""
        return self.maps(detector) / f"{image}.npy"

    def report(self, job: int) -> Path:
        """The page of an evaluation."""
        return self.root / "reports" / f"{job}.html"

    def state(self, job: int) -> Path:
        """The state of a fit under way."""
        return self.work / f"fit-{job}.state"

    def tidy(self, known: dict[str, set[str]], jobs: set[int]) -> None:
        """Removes what a killed process left: nothing stays that the database does not know.

        Args:
            known: For some folders of the project, the names of the files that belong there.
            jobs: Those that are going to be resumed.
        """
        for folder, names in known.items():
            for path in (self.root / folder).iterdir():
                if path.name not in names:
                    path.unlink()
        for path in self.work.iterdir():
            if path not in {self.state(job) for job in jobs}:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def tidy_detectors(self, known: set[int], maps: set[str]) -> None:
        """Removes detectors that were not finished, and maps of images that are gone."""
        for folder in ("detectors", "maps"):
            for path in (self.root / folder).iterdir():
                if path.name not in map(str, known):
                    shutil.rmtree(path)
        for path in (self.root / "maps").glob("*/*"):
            if path.name not in maps:
                path.unlink()


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, which may change meanwhile."""
    total = 0
    for path in folder.iterdir():
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


@contextmanager
def locked(places: Places) -> Iterator[IO[str]]:
    """Holds the project for one server.

    Raises:
        DataError: Another server has it.
    """
    with (places.root / "lock").open("a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows, which has no such locks
            pass
        except OSError:
            raise DataError(f"{places.root}: another server has this project open; stop it first") from None
        yield file
