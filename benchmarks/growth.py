"""How cost grows: fit against shots x epochs, prediction against images, image size and depth.

    python benchmarks/growth.py --images 100000 --docs docs/performance.md

Writes a table between the marks `growth` of the page, and growth.svg beside it. All of it with the bundled backbone on
phantoms, but for depth, which needs random weights. 100,000 images take a quarter of an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from madclip import MadCLIP, Recipe
from madclip.benchmark.timing import Shape, make_random, repeat
from madclip.data.load import load_dataset
from madclip.data.readers import read_image
from madclip.files import write_between
from madclip.fitting import Run
from madclip.head.head import Head
from madclip.phantoms.dataset import write_phantoms
from madclip.prediction import raised
from madclip.report.figures import INK, NORMAL, STYLE
from madclip.state import Fitted, Provenance
from madclip.training.cache import TokenCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SHOTS, EPOCHS = (2, 4, 8, 16), (1, 2, 3, 6)
SIZES, DEPTHS = (120, 240, 360, 480), (4, 8, 16, 24)
BATCH = 4


class Point(NamedTuple):
    """One measurement: seconds at x, and the memory of the process then, 1e6 bytes (0 where it is not asked)."""

    x: float
    seconds: float
    mb: float = 0.0


class Line(NamedTuple):
    """A straight line through points, and the largest share by which one departs from it."""

    start: float
    slope: float
    departure: float


def line(points: Sequence[Point]) -> Line:
    """The line whose relative errors have the smallest sum of squares."""
    x, y = (np.array([getattr(point, name) for point in points]) for name in ("x", "seconds"))
    (start, slope), *_ = np.linalg.lstsq(np.stack([1 / y, x / y], 1), np.ones(len(x)))
    return Line(float(start), float(slope), float(np.abs((start + slope * x) / y - 1).max()))


def resident_mb() -> float:
    """Memory that this process holds now, 1e6 bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def detector_of(backbone: str | Path, **changes: Any) -> MadCLIP:
    """A detector that was not fitted but could be: for time it does not matter what was learned."""
    detector = MadCLIP(Recipe().replace(**changes), backbone=backbone, objective="Brain", device="cpu")
    head = Head(detector.recipe, detector.backbone, "Brain")
    detector.fitted = Fitted(head, detector.recipe, Provenance(normal=1, abnormal=1, masks=1))
    return detector


def fit_points(folder: Path, shots: Sequence[int] = SHOTS, epochs: Sequence[int] = EPOCHS) -> list[Point]:
    """Seconds of fits on cached tokens: all shots for some epochs, some shots for the recipe's."""
    write_phantoms(folder / "phantoms", "brain", 1, 1, 0, 0.5, 240, shots=max(shots))
    data, cache = load_dataset(folder / "phantoms"), TokenCache(folder / "tokens")
    MadCLIP(Recipe().replace(epochs=1), backbone="tiny", device="cpu").fit(data, shots=None, folds=0, run=Run(cache))
    chosen = {(k, Recipe().epochs) for k in shots} | {(max(shots), n) for n in epochs}
    points = []
    for k, n in sorted(chosen, key=math.prod):
        detector = MadCLIP(Recipe().replace(epochs=n), backbone="tiny", objective="Brain", device="cpu")
        again = partial(detector.fit, data, shots=k, folds=0, run=Run(cache))
        seconds = repeat(again, times=3, warm=0)
        points.append(Point(k * n, median(seconds)))
    return points


def phantoms(folder: Path) -> list[np.ndarray[Any, Any]]:
    """A few phantoms, uint8 [240, 240, 3]."""
    write_phantoms(folder, "brain", 16, 16, 0, 0.5, 240, shots=1)
    samples = load_dataset(folder).split("test")
    return [(255 * np.moveaxis(read_image(sample.image).pixels, 0, -1)).astype(np.uint8) for sample in samples]


def different_images(pool: Sequence[np.ndarray[Any, Any]], count: int) -> Iterator[np.ndarray[Any, Any]]:
    """Images of a pool moved about, no two alike."""
    for index in range(count):
        turn, shift = divmod(index // len(pool), 240)
        yield np.roll(pool[index % len(pool)], (shift, turn), (0, 1))


def image_points(detector: MadCLIP, folder: Path, images: int) -> list[Point]:
    """Seconds since the start and memory after more and more images of one run, the last of them after all."""
    marks = {max(1, round(images * share / 20)) for share in range(1, 21)} | {min(images, 100)}
    pool, points = phantoms(folder), []
    start = time.perf_counter()
    for done, prediction in enumerate(detector.predict_iter(different_images(pool, images)), 1):
        assert 0 <= raised(prediction).score <= 1
        if done in marks:
            points.append(Point(done, time.perf_counter() - start, resident_mb()))
            print(f"{done} images: {points[-1].seconds:.1f} s, {points[-1].mb:.0f} MB", flush=True)
    return points


def size_points(sizes: Sequence[int] = SIZES) -> list[Point]:
    """Seconds of an image at different sizes of what the backbone sees."""
    return [Point(size, _seconds_of_image(detector_of("tiny", image_size=size))) for size in sizes]


def depth_points(folder: Path, depths: Sequence[int] = DEPTHS) -> list[Point]:
    """Seconds of an image through towers of different depth, as wide as `tiny`."""
    points = []
    for depth in depths:
        backbone = make_random(folder / f"depth-{depth}", Shape(192, depth, 12, 240, 128, 128, 3))
        points.append(Point(depth, _seconds_of_image(detector_of(backbone))))
    return points


def _seconds_of_image(detector: MadCLIP) -> float:
    size = detector.recipe.image_size
    pixels = torch.rand(BATCH, 3, size, size)
    return median(repeat(lambda: detector.score(pixels))) / BATCH


def per_image(points: Sequence[Point]) -> list[Point]:
    """Seconds of an image between each point and the next, at the later one."""
    return [Point(b.x, (b.seconds - a.seconds) / (b.x - a.x), b.mb) for a, b in pairwise(points)]


def figure(found: dict[str, list[Point]], path: Path) -> None:
    """All curves in one SVG on white."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    panels: list[tuple[str, str, str, Callable[[Point], float]]] = [
        ("fit", "shots of each class x epochs", "seconds of a fit", lambda p: p.seconds),
        ("images", "images", "seconds since the start", lambda p: p.seconds),
        ("images", "images", "memory, MB", lambda p: p.mb),
        ("size", "side of the image, pixels", "seconds of an image", lambda p: p.seconds),
        ("depth", "blocks of the vision tower", "seconds of an image", lambda p: p.seconds),
    ]
    with mpl.rc_context(STYLE | {"svg.hashsalt": "growth", "svg.id": "figure-growth"}):
        whole = Figure(figsize=(10, 6), layout="constrained")
        FigureCanvasSVG(whole)
        axes = whole.subplots(2, 3).flatten()
        for ax, (name, across, up, value) in zip(axes, panels, strict=False):
            ax.plot([p.x for p in found[name]], [value(p) for p in found[name]], "o-", color=NORMAL, markersize=4)
            ax.set(xlabel=across, ylabel=up, xlim=(0, None), ylim=(0, 1.1 * max(map(value, found[name]))))
        axes[-1].set_axis_off()
        axes[-1].text(0, 0.5, f"{os.cpu_count()} cores, {torch.get_num_threads()} threads", color=INK)
        partial = path.with_suffix(".svg.partial")
        whole.savefig(partial, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    partial.replace(path)


def markdown(found: dict[str, list[Point]], picture: str) -> str:
    """What was measured, in words and numbers."""
    fit, images = line(found["fit"]), found["images"]
    steady = [point.mb for point in images if point.x >= images[-1].x / 10]
    each = [point.seconds for point in per_image(images)]
    fits = (
        f"- A fit on cached tokens takes {fit.start:.2f} s + {fit.slope:.3f} s x shots x epochs; the furthest of "
        f"{len(found['fit'])} fits departs from that line by {fit.departure:.0%}."
    )
    many = (
        f"- {images[-1].x:,.0f} different images were predicted in {images[-1].seconds:,.0f} s. Each took "
        f"{min(each):.4f} to {max(each):.4f} s, by the part of the run; from the first tenth on the process held "
        f"{min(steady):.0f} to {max(steady):.0f} MB."
    )
    lines = [
        f"![Cost of a fit and of prediction]({picture})",
        "",
        fits,
        many,
        "",
        "| | seconds of an image |",
        "|---|---|",
        *(f"| `tiny` at {p.x:.0f} pixels | {p.seconds:.4f} |" for p in found["size"]),
        *(f"| {p.x:.0f} blocks of 192 at 240 pixels, random weights | {p.seconds:.4f} |" for p in found["depth"]),
        "",
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, print as JSON, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="of the longest prediction, at least 200")
    parser.add_argument("--docs", type=Path, help="page with the marks <!-- growth --> and <!-- end growth -->")
    given = parser.parse_args()
    if given.images < 200:
        parser.error("--images is at least 200")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # First, while nothing else has grown the process.
        found = {"images": image_points(detector_of("tiny"), folder / "images", given.images)}
        found |= {"fit": fit_points(folder), "size": size_points(), "depth": depth_points(folder)}
    print(json.dumps({key: [point._asdict() for point in points] for key, points in found.items()}, indent=1))
    if given.docs:
        picture = given.docs.with_name("growth.svg")
        figure(found, picture)
        write_between(given.docs, "growth", markdown(found, picture.name))


if __name__ == "__main__":
    main()
