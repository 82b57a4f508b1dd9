"""Phantoms drawn in a second, of each modality and of an equal mix. Run: python benchmarks/phantoms.py."""

from __future__ import annotations

import argparse
import os
import statistics
import time
from multiprocessing import get_context

import torch

from madclip.phantoms import BATCH, MODALITIES, generate


def draw(job: tuple[str, int, int, int, float]) -> int:
    """Draw the images of one worker; how many."""
    modality, count, seed, size, difficulty = job
    return len(generate(modality, count, seed, size=size, difficulty=difficulty).labels)


def main() -> None:
    """Print a row for each modality, and the mix: all images over all seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=8 * BATCH, help="of each modality, worker and round")
    parser.add_argument("--size", type=int, default=240)
    parser.add_argument("--difficulty", type=float, default=0.5)
    given = parser.parse_args()
    seconds: dict[str, list[float]] = {modality: [] for modality in MODALITIES}
    with get_context("spawn").Pool(given.workers, torch.set_num_threads, (1,)) as pool:
        # The first round warms up.
        for turn in range(given.rounds + 1):
            for modality, times in seconds.items():
                jobs = [
                    (modality, given.images, turn * given.workers + worker, given.size, given.difficulty)
                    for worker in range(given.workers)
                ]
                start = time.perf_counter()
                drawn = sum(pool.map(draw, jobs, chunksize=1))
                if turn:
                    times.append((time.perf_counter() - start) / drawn)
    for modality, times in seconds.items():
        print(f"{modality:<12}{1 / statistics.median(times):6.0f} images/s")
    mix = statistics.median(statistics.fmean(turn) for turn in zip(*seconds.values(), strict=True))
    print(f"{'mix':<12}{1 / mix:6.0f} images/s of {given.size} px with {given.workers} workers")


if __name__ == "__main__":
    main()
