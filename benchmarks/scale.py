"""What a worker costs: throughput, start-up, memory and overhead of archive runs, here and on Ray.

Run: python benchmarks/scale.py DETECTOR IMAGES [--workers 1 2] [--count 1024] [--docs docs/scale.md]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip import storage
from madclip.data.inputs import expand_inputs
from madclip.files import write_between
from madclip.prediction import Prediction
from madclip.scale.archive import CHUNK, predict_archive
from madclip.scale.executor import LocalProcesses
from madclip.scale.listing import Entry, Source
from madclip.scale.ray_pool import RayExecutor
from madclip.scale.scoring import SavedDetector, detector_digest

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Nothing:
    """Scores without looking at an image, so that all that takes time is around it."""

    name = "nothing"
    sha256 = "0" * 64
    axis = "axial"

    def facts(self) -> dict[str, Any]:
        """See `Scoring.facts`."""
        return {}

    def open(self) -> Nothing:
        """See `Scoring.open`."""
        return self

    def predict_iter(self, inputs: Any, *, native: bool) -> Iterator[Prediction]:  # noqa: ARG002
        """See `Scorer.predict_iter`."""
        nothing = np.zeros((1, 1), np.float32)
        return (Prediction(0.5, nothing, (1, 1), image) for image in inputs)


class Timed:
    """An executor that notes when each result of another came."""

    def __init__(self, executor: Any) -> None:
        self.executor, self.threads = executor, executor.threads
        self.start = 0.0
        self.came: list[float] = []

    def run(self, work: Any, items: Any, *, lost: Any = None) -> Iterator[Any]:
        """See `Executor.run`."""
        self.start = time.perf_counter()
        for result in self.executor.run(work, items, lost=lost):
            self.came.append(time.perf_counter())
            yield result


@contextmanager
def watched() -> Iterator[dict[int, float]]:
    """The most memory, MB that are not shared, of each process that this one started, by its number."""
    found: dict[int, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            for pid in descendants(os.getpid()):
                found[pid] = max(found.get(pid, 0.0), own_memory(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def descendants(pid: int) -> list[int]:
    """All processes below one."""
    try:
        below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [one for child in map(int, below) for one in (child, *descendants(child))]


def own_memory(pid: int) -> float:
    """MB of a process that it shares with no other; 0 for those that are no worker."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_text()
        if not ("ray::" in line or "spawn_main" in line):
            return 0.0
        rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(row.split()[1]) for row in rows if row.startswith("Private")) / 1024
    except OSError:
        return 0.0


def measure(executor: Any, source: Source, count: int, scoring: Any) -> dict[str, float]:
    """One run into a new folder.

    Returns:
        `rate`, images a second, from the first result on; `ready`, seconds to it less a chunk's own time; `whole`,
        seconds in all; `memory`, MB of the largest worker; `spread`, by which chunks of one worker differ, in parts.
    """
    timed = Timed(executor)
    with tempfile.TemporaryDirectory() as out, watched() as memory:
        begin = time.perf_counter()
        predict_archive(source, "benchmark", Path(out) / "out", scoring, executor=timed)
        whole = time.perf_counter() - begin
    workers = getattr(executor, "workers", 1) or 1
    # What came first was worked on beside what others had begun: their chunks are not counted.
    rate = (count - workers * CHUNK) / (timed.came[-1] - timed.came[0])
    taken = np.diff(timed.came)
    return {
        "rate": rate,
        "ready": max(timed.came[0] - timed.start - workers * CHUNK / rate, 0.0),
        "whole": whole,
        "memory": max(memory.values(), default=0.0),
        "spread": float(taken.std() / taken.mean()),
    }


def linked(images: Path, count: int, folder: Path) -> Source:
    """So many images: those of a folder, each under as many names as that takes."""
    there = expand_inputs([images]).images
    for number in range(count):
        (folder / str(number)).symlink_to(there[number % len(there)].path.resolve())
    return lambda: (Entry(number, str(folder / str(number))) for number in range(count))


def rows_of(
    scoring: SavedDetector, source: Source, count: int, workers: list[int]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Each way of running, and what it took."""
    cores = os.cpu_count() or 1
    yield f"this process, {cores} threads", measure(LocalProcesses(1, cores), source, count, scoring)
    for number in workers:
        yield f"{number} local, 1 thread each", measure(LocalProcesses(number), source, count, scoring)
        yield f"{number} on Ray, 1 thread each", measure(RayExecutor(None, number), source, count, scoring)


def overhead(count: int) -> dict[str, float]:
    """Seconds for each image of all that is not its reading or its computation."""
    source = lambda: (Entry(number, "nothing", number) for number in range(count))  # noqa: E731
    ways = {"this process": LocalProcesses(), "1 on Ray": RayExecutor(None, 1)}
    return {name: 1 / measure(executor, source, count, Nothing())["rate"] for name, executor in ways.items()}


def first_import() -> float:
    """Seconds that a new Python takes until the package can predict."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import madclip.detector"], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Measure, and print the table or put it on a page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=8 * CHUNK)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--docs", type=Path)
    given = parser.parse_args()
    import torch

    saved = storage.read(given.detector)
    scoring = SavedDetector(given.detector.resolve(), detector_digest(given.detector), saved.recipe.axis, device="cpu")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
    lines = [
        f"{machine}; backbone {saved.backbone['id']}; {given.count:,} images, in chunks of {CHUNK}.",
        "",
        "| workers | images a second | start-up | in all | memory of a worker |",
        "| --- | --- | --- | --- | --- |",
    ]
    with tempfile.TemporaryDirectory() as folder:
        spread = 0.0
        source = linked(given.images, given.count, Path(folder))
        for name, found in rows_of(scoring, source, given.count, given.workers):
            memory = f"{found['memory']:.0f} MB" if found["memory"] else "-"
            cells = [name, f"{found['rate']:.1f}", f"{found['ready']:.1f} s", f"{found['whole']:.1f} s", memory]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], f"{found['spread']:.0%}", file=sys.stderr, flush=True)
            spread = spread or found["spread"]
    costs = ", ".join(f"{1e6 * seconds:.0f} µs ({name})" for name, seconds in overhead(40 * CHUNK).items())
    lines += [
        "",
        f"Overhead of an image beside reading and computing it: {costs}; a new Python: {first_import():.1f} s.",
    ]
    text = "\n".join(lines)
    print(text)
    if given.docs:
        write_between(given.docs, "scale", text)


if __name__ == "__main__":
    main()
