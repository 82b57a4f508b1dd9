"""Pixel metrics over many maps: time, memory and error bound. Run: python benchmarks/streaming.py --maps 100000."""

from __future__ import annotations

import argparse
import json
import resource
import time
from typing import TYPE_CHECKING

import numpy as np

from madclip.metrics.pixel import PixelHistogram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Scene = tuple[NDArray[np.float32], NDArray[np.bool_]]


def scenes(
    generator: np.random.Generator, size: int, count: int, spread: float
) -> list[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Maps and masks that are rolled and mixed into as many as are asked for; half of the images are normal."""
    y, x = np.mgrid[:size, :size] / size
    made = []
    for index in range(count):
        mask = np.zeros((size, size), bool)
        if index % 2:
            centre, radius = generator.uniform(0.2, 0.8, 2), generator.uniform(0.03, 0.15)
            mask = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        # Maps of a patch grid are smooth: low-resolution noise, enlarged, and a lesion that is partly seen.
        noise = np.kron(generator.normal(size=(size // 8, size // 8)), np.ones((8, 8)))
        scores = 1 / (1 + np.exp(-spread * (noise + 0.2 * generator.normal(size=(size, size)) + 2 * mask - 1)))
        made.append((scores.astype(np.float32), mask))
    return made


def main() -> None:
    """Count the maps and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--maps", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=240)
    parser.add_argument("--spread", type=float, default=2.0, help="of the logits; 0.02 is a detector that hardly tells")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    pool = scenes(generator, arguments.size, 64, arguments.spread)
    histogram, start = PixelHistogram(), time.perf_counter()
    for index in range(arguments.maps):
        scores, mask = pool[index % len(pool)]
        # Another power for every map, so that values do not repeat over maps.
        histogram.update(scores ** np.float32(generator.uniform(0.9, 1.1)), mask)
    results = {k: getattr(histogram, k)() for k in ("auroc", "average_precision", "aupro")}
    print(
        json.dumps(
            {
                "maps": arguments.maps,
                "size": arguments.size,
                "spread": arguments.spread,
                "seconds": round(time.perf_counter() - start, 1),
                "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
                **{k: [v.value, v.bound] for k, v in results.items()},
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
