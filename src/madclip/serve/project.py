"""One project as the server holds it: its folder, its database, and the processes that work for it."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from madclip.backbones.names import DEFAULT_BACKBONE
from madclip.errors import DataError
from madclip.serve.database import Database
from madclip.serve.places import Places
from madclip.serve.tables import Detector, Feature, Folder, Image, Job, Setting, now
from madclip.serve.workers import Pool, cores, memory_of_machine
from madclip.training.cache import TokenCache

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

READERS, READING = max(1, min(4, cores())), 512
"""Reading processes, and calls that may wait for one."""
LIMIT_FILE = "limit.json"
"""What a token cache keeps its limit in."""
PREDICTING = 64
"""Predictions that may wait; more are told to come again."""
TOKENS_LIMIT = 10 * 2**30
DEFAULTS = {"objective": "medical image", "backbone": "tiny", "detector": "", "space": ""}
"""What a setting is that was never written down. Projects from before there was another backbone than `tiny` by default
did not write it down; new ones do, and keep it when the default changes."""

audit = logging.getLogger("madclip.serve.audit")
"""Who did what to which number: no names of files or patients, no words that a user typed."""


@dataclass
class Project:
    """Everything that an answer needs.

    Args:
        root: The project's folder.
        backbones: Sources of backbones that may be chosen, besides those of the catalogue.

    Attributes:
        places: Where files lie.
        database: What is known.
        readers: Processes that open images.
        predictor: The process that predicts for programs.
        cache: What was computed from the database at one of its generations, by name.
    """

    root: Path
    backbones: tuple[str, ...] = ()
    places: Places = field(init=False)
    database: Database = field(init=False)
    readers: Pool = field(init=False)
    predictor: Pool = field(init=False)
    cache: dict[str, tuple[int, Any]] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.places = Places(self.root)
        new = not self.places.database.exists()
        self.database = Database(self.places.database)
        if new:
            with self.database.change() as session:
                self.put(session, "backbone", DEFAULT_BACKBONE)
        if not (self.places.image_tokens / LIMIT_FILE).exists():
            self.limit_tokens(TOKENS_LIMIT)
        self.readers = Pool("madclip.serve.reading", READERS, READING)
        self.predictor = Pool("madclip.serve.predicting", 1, PREDICTING, most_memory())

    def close(self) -> None:
        """Ends the processes and the connections."""
        self.readers.__exit__(None, None, None)
        self.predictor.__exit__(None, None, None)
        self.database.close()

    def tidy(self) -> None:
        """Removes files that a killed server left and that nothing refers to."""
        with self.database.look() as session:
            uploads = set(session.scalars(select(Image.path).where(Image.uploaded)))
            images = session.execute(select(Image.id, Image.mask).where(Image.mask.is_not(None)))
            masks = {self.places.mask(image, digest).name for image, digest in images if digest}
            known = set(session.scalars(select(Image.id)))
            keys = set(session.scalars(select(Feature.key)))
            detectors = set(session.scalars(select(Detector.id)))
            jobs = set(session.scalars(select(Job.id).where(Job.state.in_(("queued", "running")))))
        thumbnails = {self.places.thumbnail(image).name for image in known}
        tokens = {f"{key}.safetensors" for key in keys} | {LIMIT_FILE}
        self.places.tidy({"uploads": uploads, "masks": masks, "thumbnails": thumbnails, "tokens/images": tokens}, jobs)
        self.places.tidy_detectors(detectors, {f"{image}.npy" for image in known})

    def limit_tokens(self, size: int) -> None:
        """Lets cached tokens take so many bytes on disk: images and shots half each."""
        for folder in (self.places.image_tokens, self.places.shot_tokens):
            TokenCache(folder).limit = size // 2

    @property
    def tokens_limit(self) -> int:
        """Bytes that cached tokens may take."""
        return sum(TokenCache(folder).limit for folder in (self.places.image_tokens, self.places.shot_tokens))

    # Settings

    def get(self, session: Session, key: str) -> str:
        """A setting, or what it is by default."""
        found = session.get(Setting, key)
        return DEFAULTS[key] if found is None else found.value

    def put(self, session: Session, key: str, value: str) -> None:
        """Changes a setting."""
        session.merge(Setting(key=key, value=value))

    def detector_in_use(self, session: Session) -> int | None:
        """The number of the detector in use."""
        value = self.get(session, "detector")
        return int(value) if value else None

    # Images

    def file_of(self, image: Image) -> Path:
        """The file of an image.

        Raises:
            DataError: It lies outside of the folders that were opened, by a link that was put there since.
        """
        if image.uploaded:
            return self.places.uploads / image.path
        path = Path(image.path)
        with self.database.look() as session:
            folders = [Path(folder) for folder in session.scalars(select(Folder.path))]
        real = path.resolve()
        if not any(real.is_relative_to(folder) for folder in folders):
            raise DataError("the file lies outside of the folders that were opened")
        return path

    def slice_of(self, image: Image) -> list[Any]:
        """Path, frame and axis of an image, as processes are told them."""
        return [str(self.file_of(image)), image.frame, image.axis]

    def read(self, do: str, image: Image, **more: Any) -> tuple[dict[str, Any], bytes]:
        """Lets a reading process do something with an image; its errors name the image as the user knows it."""
        path, frame, axis = self.slice_of(image)
        try:
            return self.readers.call(do, path=path, frame=frame, axis=axis, **more)
        except DataError as error:
            raise DataError(named(str(error), path, image.name)) from None

    def remembered(self, name: str, compute: Any) -> Any:
        """What a function gives of the database as it is now, computed once for each of its generations."""
        with self._lock:
            generation = self.database.generation
            found = self.cache.get(name)
            if found is None or found[0] != generation:
                found = (generation, compute())
                self.cache[name] = found
            return found[1]


def most_memory() -> int:
    """Bytes of memory that a process which learns or predicts may have: three quarters of what there is."""
    return memory_of_machine() * 3 // 4


def named(error: str, path: str, name: str) -> str:
    """An error with an image's name in the place of its path."""
    return error.replace(f"{path}#", f"{name.partition('#')[0]}#").replace(path, name)


def log(what: str, **numbers: Any) -> None:
    """Writes a line of the audit log; only numbers and fixed words."""
    audit.info("%s %s %s", now(), what, " ".join(f"{key}={value}" for key, value in numbers.items()))
