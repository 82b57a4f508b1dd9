"""Scores an archive: chunk by chunk, each a file of rows that is whole or not there, by any number of workers.

A chunk that has its file is finished; whoever runs the command again works on the others. Working on a chunk twice
gives the same bytes, so that it does no harm where a worker was given up too early.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from madclip import __version__
from madclip.data.readers import frames_of
from madclip.data.ref import ImageRef
from madclip.errors import DataError
from madclip.files import new_file, write_whole
from madclip.memory import kept_memory
from madclip.prediction import Row
from madclip.progress import silent
from madclip.report.plan import SUFFIX, write_map
from madclip.report.predictions import lock
from madclip.scale.fetch import at_hand
from madclip.scale.listing import batched, survey
from madclip.scale.parquet import Counts, count_part, parquet, write_part

if TYPE_CHECKING:
    from collections.abc import Iterator

    from madclip.prediction import Prediction
    from madclip.progress import Progress
    from madclip.report.plan import MapFormat
    from madclip.scale.executor import Executor
    from madclip.scale.fetch import File
    from madclip.scale.listing import Entry, Source
    from madclip.scale.scoring import Scorer, Scoring

FORMAT = 1
PLAN, ROWS, MAPS = "archive.json", "rows", "maps"
CHUNK = 256
"""Entries whose rows are one file: a multiple of every batch, so that batches are those of `madclip predict`."""
_PART = re.compile(r"part-([0-9]{6,})\.parquet")


@dataclass(frozen=True)
class Chunk:
    """Neighbours in the source that are worked on together.

    Attributes:
        number: Its place among the chunks, from 0.
        entries: What is scored.
        faulty: Numbers of entries that end whichever process reads them; each gets a row with an error.
        kept: Whether the rows are written; else it is only seen whether the worker outlives them.
    """

    number: int
    entries: tuple[Entry, ...]
    faulty: frozenset[int] = field(default_factory=frozenset)
    kept: bool = True


def predict_archive(
    source: Source,
    name: str,
    folder: Path,
    scoring: Scoring,
    *,
    executor: Executor,
    maps: MapFormat = "none",
    overwrite: bool = False,
    progress: Progress = silent,
) -> Counts:
    """Score all entries of a source into a Parquet data set; a run that was stopped goes on where it was.

    Args:
        source: What is scored, once each.
        name: What errors call the source.
        folder: Gets archive.json, rows/part-NNNNNN.parquet, and maps/ where they are wanted.
        scoring: What scores.
        executor: Where chunks are worked on; all workers must see `folder`, and the images.
        maps: Format of the raw maps, float32 at the size of the image; `none` writes none.
        overwrite: Whether another run that is there gives way.
        progress: Told of entries, in the stage `predict`.

    Raises:
        DataError: The source cannot be used, the folder holds something else, nothing can be written there, or workers
            cannot go on.
    """
    parquet()  # before anything is computed
    found = survey(source, name, folder)
    facts = {"format": FORMAT, "madclip": __version__, **scoring.facts(), "threads": executor.threads, "maps": maps}
    plan = {**facts, "source": found.sha256, "entries": found.count, "chunk": CHUNK}
    with _folder(folder, plan, overwrite=overwrite):
        there = _finished(folder)
        chunks = (Chunk(number, entries) for number, entries in enumerate(batched(source(), CHUNK)))
        done = sum(min(CHUNK, found.count - number * CHUNK) for number in there)
        progress("predict", done, found.count)
        work, lost = ArchiveWork(scoring, folder, maps), []
        left = (chunk for chunk in chunks if chunk.number not in there)
        for result in executor.run(work, left, lost=_itself):
            if isinstance(result, Chunk):
                lost.append(result)
                continue
            done += result.entries
            progress("predict", done, found.count)
        if lost:
            _finish_lost(executor, work, lost)
        return _counted(folder, found.count)


def _itself(chunk: Chunk) -> Counts | Chunk:
    return chunk


def _finish_lost(executor: Executor, work: ArchiveWork, lost: list[Chunk]) -> None:
    """Work on chunks that ended their worker each time: find the entries that do it, and say so in their rows.

    The others are computed together again, in the batches they would be in if those could merely not be read.

    Raises:
        DataError: A chunk ends its worker still.
    """
    alone = [Chunk(chunk.number, (entry,), kept=False) for chunk in lost for entry in chunk.entries]
    outcome = executor.run(work, alone, lost=_itself)
    faulty = frozenset(one.entries[0].number for one in outcome if isinstance(one, Chunk))
    for result in executor.run(work, [replace(chunk, faulty=faulty) for chunk in lost], lost=_itself):
        if isinstance(result, Chunk):
            first, last = result.entries[0].number, result.entries[-1].number
            raise DataError(
                f"{work.folder}: images {first} to {last} of the source end their worker, but none of them does alone; "
                "run the command again with more memory for each worker"
            )


class ArchiveWork:
    """Scores chunks and writes their rows; the scorer is opened once in each process.

    Args:
        scoring: What scores.
        folder: As for `predict_archive`, like `maps`.
    """

    def __init__(self, scoring: Scoring, folder: Path, maps: MapFormat = "none") -> None:
        self.scoring, self.folder, self.maps = scoring, folder, maps
        self._scorer: Scorer | None = None

    def __reduce__(self) -> tuple[type[ArchiveWork], tuple[Scoring, Path, MapFormat]]:
        return ArchiveWork, (self.scoring, self.folder, self.maps)  # a worker opens its own scorer

    def __call__(self, chunk: Chunk) -> Counts | Chunk:
        """Score a chunk and write its file.

        Raises:
            DataError: It cannot be written.
        """
        said = {"detector": self.scoring.name, "detector_sha256": self.scoring.sha256, "madclip": __version__}
        rows = []
        with kept_memory():
            for entry, image, result in self._results(chunk):
                row = replace(Row.of(image, result), image=entry.image).to_dict() | said
                if chunk.kept and self.maps != "none" and not isinstance(result, DataError):
                    row["map"] = self._write_map(chunk, entry, image, result)
                rows.append({"number": entry.number, **row})
        if not chunk.kept:
            return Counts()
        return write_part(self.folder / ROWS / f"part-{chunk.number:06d}.parquet", rows, len(chunk.entries))

    def _results(self, chunk: Chunk) -> Iterator[tuple[Entry, ImageRef, Prediction | DataError]]:
        """What is said of each image of a chunk, with the entry that named it."""
        if self._scorer is None:
            self._scorer = self.scoring.open()
        given: deque[tuple[Entry, ImageRef, File]] = deque()
        before: File | None = None

        def images() -> Iterator[ImageRef]:
            for file in at_hand(chunk.entries, Path(folder)):
                for entry in file.entries:
                    for image in self._images(entry, file, chunk):
                        given.append((entry, image, file))
                        yield image

        with tempfile.TemporaryDirectory(prefix="madclip-", ignore_cleanup_errors=True) as folder:
            for result in self._scorer.predict_iter(images(), native=self.maps != "none"):
                entry, image, file = given.popleft()
                if before is not None and before.fetched and before is not file:
                    before.path.unlink(missing_ok=True)
                before = file
                if entry.number in chunk.faulty:
                    yield entry, image, DataError(f"{entry.image}: ended its worker each time that it was read")
                elif isinstance(result, DataError):
                    error = str(file.error or result).replace(str(file.path), entry.image)
                    yield entry, image, DataError(error)
                else:
                    yield entry, image, result

    def _images(self, entry: Entry, file: File, chunk: Chunk) -> tuple[ImageRef, ...]:
        """The images that an entry stands for; one that cannot be read has its place in a batch all the same."""
        if entry.number in chunk.faulty:
            return (ImageRef(file.path.with_name("none"), entry.frame, entry.axis),)
        if entry.frame is not None or file.error:
            return (ImageRef(file.path, entry.frame, entry.axis),)
        try:
            return frames_of(file.path, self.scoring.axis)
        except DataError:
            return (ImageRef(file.path),)  # its error is told where it is read

    def _write_map(self, chunk: Chunk, entry: Entry, image: ImageRef, prediction: Prediction) -> str:
        frame = "" if image.frame is None else f"-{image.axis}{image.frame}"
        name = f"{MAPS}/{chunk.number:06d}/{entry.number:09d}{frame}.{SUFFIX[self.maps]}"
        try:
            with new_file(self.folder / name) as partial, partial.open("wb") as file:
                write_map(prediction.anomaly_map, self.maps, file)
        except OSError as error:
            raise DataError(f"{self.folder / name}: cannot be written ({error.strerror or error})") from error
        return name


# The folder


@contextmanager
def _folder(folder: Path, plan: dict[str, Any], *, overwrite: bool) -> Iterator[None]:
    """Hold the folder of a run, new or of the same plan, while it is written to.

    Raises:
        DataError: It holds something else, somebody else holds it, or nothing can be written there.
    """
    try:
        file = _prepared(folder, plan, overwrite=overwrite)
    except OSError as error:
        raise DataError(f"{folder}: cannot write there ({error.strerror or error})") from error
    with file:
        yield


def _prepared(folder: Path, plan: dict[str, Any], *, overwrite: bool) -> IO[str]:
    """The plan's file, locked, in a folder that is ready for the rows."""
    path = folder / PLAN
    if folder.exists() and any(folder.iterdir()):
        if not path.is_file():
            raise DataError(f"{folder}: exists and holds no run over an archive; name a new folder")
        if overwrite:
            with path.open() as held:
                lock(held, folder)
                for name in (ROWS, MAPS):
                    shutil.rmtree(folder / name, ignore_errors=True)
                path.unlink()
        elif changed := _changed(path, plan):
            raise DataError(
                f"{folder}: holds another run ({', '.join(changed)} differ); name a new folder, or say that it may be "
                "replaced (--overwrite)"
            )
    (folder / ROWS).mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_whole(path, json.dumps(plan, indent=1) + "\n")
    held = path.open(encoding="utf-8")
    try:
        lock(held, folder)
        for left in (folder / ROWS).glob(".*.partial"):
            left.unlink(missing_ok=True)  # of processes that were killed
        with tempfile.TemporaryFile(dir=folder / ROWS):
            pass  # a folder that nothing can be written to is told before anything is computed
    except BaseException:
        held.close()
        raise
    return held


def _changed(path: Path, plan: dict[str, Any]) -> list[str]:
    """In what a run that is there differs from a plan."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return sorted(key for key in {*plan, *known} if known.get(key) != plan.get(key))
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: damaged; name a new folder, or replace it with --overwrite") from error


def _finished(folder: Path) -> set[int]:
    """Numbers of the chunks that are there."""
    with os.scandir(folder / ROWS) as files:
        return {int(match[1]) for file in files if (match := _PART.fullmatch(file.name))}


def _counted(folder: Path, entries: int) -> Counts:
    """What all files hold together.

    Raises:
        DataError: One is damaged, or an entry has no row.
    """
    total = Counts()
    for number in sorted(_finished(folder)):
        total = total.plus(count_part(folder / ROWS / f"part-{number:06d}.parquet"))
    if total.entries != entries:
        raise DataError(f"{folder}: rows of {total.entries} of {entries} images; run the command again")
    return total
