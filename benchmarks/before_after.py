"""What a change does to what a user waits for: whole commands of two checkouts, in turn, as ratios of medians of pairs.

    python benchmarks/before_after.py BEFORE DATA --pairs 9 --backbone tiny --docs docs/performance.md
    python benchmarks/before_after.py BEFORE DATA --only predict --only "predict, large JPEGs" --files 1000

BEFORE is another checkout of this repository (`git worktree add ../before COMMIT`), DATA a set with valid/ and test/.
Both run in the Python that runs this, unless --before-python names another one's. The step rows of `madclip bench
speed` are compared by the seconds that it reports, all other rows by the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from PIL import Image

from madclip.data.load import load_dataset
from madclip.files import write_between

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).resolve().parents[1]
START = "from madclip.cli import main; main()"


@dataclass(frozen=True)
class Cost:
    """One run: wall and processor seconds, and the largest resident memory of a process in 1e6 bytes."""

    wall: float
    processor: float
    peak_mb: float


@dataclass(frozen=True)
class Side:
    """One checkout and what it runs in."""

    python: str
    checkout: Path
    work: Path

    def run(self, *arguments: str) -> Cost:
        """Runs a madclip command; its tokens are kept below `work` and nowhere else.

        Raises:
            SystemExit: The command failed; what it wrote is printed.
        """
        environment = os.environ | {
            "PYTHONPATH": str(self.checkout / "src"),
            "MADCLIP_CACHE": str(self.work / "tokens"),
        }
        begun = time.perf_counter()
        with (self.work / "output").open("wb") as output:
            process = subprocess.Popen(
                [self.python, "-c", START, *arguments], env=environment, cwd=self.work, stdout=output, stderr=output
            )
            _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begun
        if status:
            raise SystemExit(f"{self.checkout}: {' '.join(arguments)}\n{(self.work / 'output').read_text()}")
        return Cost(wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1000)

    def afresh(self, *names: str) -> None:
        """Removes what an earlier run left, so that both sides write anew."""
        for name in names:
            shutil.rmtree(self.work / name, ignore_errors=True)


def fit(side: Side, options: argparse.Namespace) -> Cost:
    """`fit` with thresholds, nothing cached."""
    side.afresh("detector", "tokens")
    return side.run("fit", str(options.data), "--out", "detector", "--backbone", options.backbone)


def fit_cached(side: Side, options: argparse.Namespace) -> Cost:
    """`fit` with thresholds, tokens cached."""
    side.afresh("detector")
    return side.run("fit", str(options.data), "--out", "detector", "--backbone", options.backbone)


def evaluate(side: Side, options: argparse.Namespace) -> Cost:
    """`evaluate` of the test images with every interval and the report."""
    with_detector(side, options)
    side.afresh("report")
    (side.work / "report").mkdir()
    return side.run("evaluate", "detector", str(options.data), "--report", "report/report.html")


def predict(side: Side, options: argparse.Namespace) -> Cost:
    """`predict` of many files to tables, overlays and raw maps."""
    with_detector(side, options)
    side.afresh("predictions")
    return side.run("predict", "detector", str(files(options, large=False)), "--out", "predictions")


def predict_large(side: Side, options: argparse.Namespace) -> Cost:
    """`predict` of JPEGs of 3,000 x 2,500 pixels to scores alone."""
    with_detector(side, options)
    side.afresh("predictions")
    outputs = ("--out", "predictions", "--maps", "none", "--no-overlays")
    return side.run("predict", "detector", str(files(options, large=True)), *outputs)


def with_detector(side: Side, options: argparse.Namespace) -> None:
    """Fits a detector where none is there yet, as for a row that is run alone."""
    if not (side.work / "detector").exists():
        side.run("fit", str(options.data), "--out", "detector", "--backbone", options.backbone)


def files(options: argparse.Namespace, *, large: bool) -> Path:
    """A folder of as many files as were asked for: copies of the test images, or films made of them."""
    folder: Path = options.work / ("films" if large else "files")
    if folder.exists():
        return folder
    folder.mkdir()
    images = [sample.image.path for sample in load_dataset(options.data).test_pool]
    for number in range(options.files):
        source = images[number % len(images)]
        if large:
            film = Image.open(source).convert("L").resize((3000, 2500), Image.Resampling.BICUBIC)
            film.save(folder / f"{number:05d}.jpg", quality=90)
        else:
            shutil.copyfile(source, folder / f"{number:05d}{source.suffix}")
    return folder


def start(side: Side, _: argparse.Namespace) -> Cost:
    """`--help`: what every command pays."""
    return side.run("fit", "--help")


COMMANDS: dict[str, Callable[[Side, argparse.Namespace], Cost]] = {
    "fit": fit,
    "fit, tokens cached": fit_cached,
    "evaluate": evaluate,
    "predict": predict,
    "predict, large JPEGs": predict_large,
    "start": start,
}
"""Whole commands, in the order in which they need one another."""


def step(name: str) -> Callable[[Side, argparse.Namespace], Cost]:
    """A row of `madclip bench speed`, by the seconds that it reports."""

    def run(side: Side, options: argparse.Namespace) -> Cost:
        side.run("benchmark", "speed", "--backbone", options.backbone, "--only", name, "--out", "speed.json")
        (row,) = json.loads((side.work / "speed.json").read_text())["rows"]
        (side.work / "speed.json").unlink()
        return Cost(row["seconds"], row["seconds"], row["peak_mb"])

    return run


def table(costs: dict[str, list[tuple[Cost, Cost]]]) -> str:
    """The ratios after/before as a Markdown table; each is the median over the pairs, with the least and the most."""
    lines = [
        "| | wall before | after | peak memory before | after | ratio of wall times | of processor times | of memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, pairs in costs.items():
        sides = [*zip(*pairs, strict=True)]
        cells = [f"{median(cost.wall for cost in side):.3g} s" for side in sides]
        cells += [f"{median(cost.peak_mb for cost in side) / 1000:.2f} GB" for side in sides]
        for field in ("wall", "processor", "peak_mb"):
            ratios = sorted(getattr(after, field) / getattr(before, field) for before, after in pairs)
            cells.append(f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--files", type=int, default=1000, help="how many images are predicted")
    parser.add_argument("--before-python", default=sys.executable)
    parser.add_argument("--only", action="append", help="a command or a row of bench speed; can be repeated")
    parser.add_argument("--docs", type=Path)
    options = parser.parse_args()
    options.data = options.data.resolve()
    runs = {name: COMMANDS.get(name) or step(name) for name in options.only or [*COMMANDS]}
    costs: dict[str, list[tuple[Cost, Cost]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        options.work, sides = Path(folder), []
        for name, checkout, python in (
            ("before", options.before.resolve(), options.before_python),
            ("after", HERE, sys.executable),
        ):
            (Path(folder) / name).mkdir()
            sides.append(Side(python, checkout, Path(folder) / name))
        for number in range(options.pairs):
            for name, run in runs.items():
                found = [run(side, options) for side in (sides if number % 2 == 0 else sides[::-1])]
                before, after = found if number % 2 == 0 else found[::-1]
                costs.setdefault(name, []).append((before, after))
                print(f"{number + 1} {name}: {before}, {after}", file=sys.stderr, flush=True)
            text = table(costs)
    print(text)
    if options.docs:
        write_between(options.docs, f"before-after {options.backbone}", text)


if __name__ == "__main__":
    main()
