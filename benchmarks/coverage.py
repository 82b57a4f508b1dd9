"""Do intervals cover, and do p-values keep their level?

Run: python benchmarks/coverage.py [--docs docs/evaluation.md]

Simulated scores: normal images N(0, 1), anomalous images N(d, 1) with d for the wanted area (binormal). The counts of
intervals that hold the true area are reported with what falls outside 93 to 97 %.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from statistics import NormalDist

import numpy as np

from madclip.calibration.calibration import Calibration
from madclip.calibration.probability import fit_isotonic, fit_platt
from madclip.calibration.thresholds import choose_threshold
from madclip.files import write_between
from madclip.metrics.image import Estimate, brier, expected_calibration_error
from madclip.metrics.intervals import (
    bootstrap_interval,
    delong_interval,
    wilson_interval,
)
from madclip.metrics.pixel import PixelHistogram
from madclip.metrics.quantiles import PixelQuantiles
from madclip.metrics.scored import Scored

AREAS, SIZES = (0.7, 0.9, 0.97), (50, 200, 1000)


def shift(area: float) -> float:
    """Distance of the means for a binormal area."""
    return math.sqrt(2) * NormalDist().inv_cdf(area)


def coverage(repetitions: int, drawn: int) -> str:
    """Share of 95 % intervals that hold the true area, per method, area and size."""
    rows = ["| AUROC | images per class | DeLong, logit scale | DeLong, plain | bootstrap |", "|---|---|---|---|---|"]
    for area in AREAS:
        for size in SIZES:
            generator = np.random.default_rng([round(area * 100), size])
            labels = np.repeat([0, 1], size)
            held = np.zeros(3)
            for repetition in range(repetitions):
                scores = generator.normal(size=2 * size) + shift(area) * labels
                data = Scored.of(labels, scores)
                found = [delong_interval(data), delong_interval(data, logit=False)]
                if repetition < drawn:
                    found.append(bootstrap_interval(data, repetitions=1000, seed=repetition))
                held[: len(found)] += [covers(e, area) for e in found]
            share = held / [repetitions, repetitions, max(drawn, 1)]
            cells = [f"{100 * s:.1f}" + ("" if 0.93 <= s <= 0.97 else " **outside**") for s in share]
            rows.append(f"| {area} | {size} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    return "\n".join(rows)


def covers(found: Estimate, truth: float | None) -> bool:
    """Whether an interval covers the truth."""
    assert found.low is not None
    assert found.high is not None
    assert truth is not None
    return found.low <= truth <= found.high


def clustered(repetitions: int) -> str:
    """Patients with four images each that share half of their variance: who notices?"""
    rows = ["| patients per class | images as independent | over patients |", "|---|---|---|"]
    for count in (15, 50, 200):
        generator = np.random.default_rng(count)
        labels, patients = np.repeat([0, 1], 4 * count), np.repeat(np.arange(2 * count), 4).tolist()
        held = np.zeros(2)
        for _ in range(repetitions):
            shared = np.repeat(generator.normal(size=2 * count), 4)
            scores = math.sqrt(0.5) * (shared + generator.normal(size=8 * count)) + shift(0.9) * labels
            data = [Scored.of(labels, scores, patients=owners) for owners in (None, patients)]
            found = [delong_interval(one) for one in data]
            held += [covers(e, 0.9) for e in found]
        rows.append(f"| {count} | {100 * held[0] / repetitions:.1f} | {100 * held[1] / repetitions:.1f} |")
        print(rows[-1], flush=True)
    return "\n".join(rows)


def scene(generator: np.random.Generator, lesion: bool, side: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """A map and its mask: brightness and visibility differ between images, so their pixels are not independent."""
    y, x = np.mgrid[:side, :side]
    centre, radius = generator.uniform(5, side - 5, 2), generator.uniform(1.5, 6)
    mask = lesion & ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2)
    logit = generator.normal(-1, 0.5) + generator.normal(size=mask.shape) + mask * generator.normal(1.5, 1)
    return (1 / (1 + np.exp(-logit))).astype(np.float32), mask


def pixels(repetitions: int) -> str:
    """Coverage of the intervals of pixel metrics; the truth is a set of 40,000 images."""
    generator = np.random.default_rng(0)
    everything = PixelHistogram()
    for index in range(40_000):
        everything.update(*scene(generator, index % 2 == 1))
    truth = [e.value for e in (everything.auroc(), everything.average_precision(), everything.aupro())]
    rows = ["| images, half with a lesion | pixel AUROC | pixel average precision | AUPRO |", "|---|---|---|---|"]
    for count in (20, 60, 200):
        held = np.zeros(3)
        for repetition in range(repetitions):
            histogram, quantiles = PixelHistogram(limit=1 << 14), PixelQuantiles()
            for index in range(count):
                scores, mask = scene(generator, index % 2 == 1)
                histogram.update(scores, mask)
                quantiles.update(scores, mask)
            found = quantiles.intervals(histogram, seed=repetition)
            held += [covers(e, value) for e, value in zip(found, truth, strict=True)]
        rows.append(f"| {count} | {' | '.join(f'{100 * h / repetitions:.1f}' for h in held)} |")
        print(rows[-1], flush=True)
    return "\n".join(rows)


def conformal(draws: int, tests: int = 1000) -> str:
    """Error rate of the p-value against the normals, averaged over draws of calibration images."""
    rows = ["| normals | level | error rate | 95 % binomial interval of the draws |", "|---|---|---|---|"]
    for count in (4, 8, 16, 50, 200):
        generator = np.random.default_rng(count)
        level = max(0.1, 1 / (count + 1))
        exact = math.floor(level * (count + 1) + 1e-9) / (count + 1)
        rates, once = [], 0
        for _ in range(draws):
            found = Calibration.fit([0] * count, generator.normal(size=count), "spec=0.9")
            wrong = found.p_value(generator.normal(size=tests)) <= level + 1e-12
            rates.append(wrong.mean())
            # One image per draw is a fair coin of the stated level; its interval over draws is the honest check.
            once += int(wrong[0])
        interval = wilson_interval(once, draws)
        rows.append(
            f"| {count} | {exact:.3f} | {np.mean(rates):.3f} (one draw: {np.quantile(rates, 0.05):.2f} to "
            f"{np.quantile(rates, 0.95):.2f}) | {interval.low:.3f} to {interval.high:.3f} |"
        )
        print(rows[-1], flush=True)
    return "\n".join(rows)


def promises(draws: int) -> str:
    """Sensitivity and specificity that operating points from K + K shots reach, binormal, area 0.9."""
    rows = [
        "| K | operating point | promise | sensitivity: mean (5 % to 95 % of draws) | specificity |",
        "|---|---|---|---|---|",
    ]
    normal = NormalDist()
    for count in (4, 8, 16, 50, 200):
        generator = np.random.default_rng(count)
        for point in ("sens=0.95", "spec=0.95", "youden"):
            reached = []
            for _ in range(draws):
                labels = np.repeat([0, 1], count)
                scores = generator.normal(size=2 * count) + shift(0.9) * labels
                found = choose_threshold(Scored.of(labels, scores), point)
                reached.append((1 - normal.cdf(found.value - shift(0.9)), normal.cdf(found.value)))
            low, middle, high = np.quantile(reached, 0.05, 0), np.mean(reached, 0), np.quantile(reached, 0.95, 0)
            promise = f"{found.promise:.2f}" if found.promise else "none"
            cells = [f"{middle[i]:.2f} ({low[i]:.2f} to {high[i]:.2f})" for i in (0, 1)]
            rows.append(f"| {count} | {point} | {promise} | {' | '.join(cells)} |")
            print(rows[-1], flush=True)
    return "\n".join(rows)


def probabilities(draws: int) -> str:
    """Platt's sigmoid against isotonic regression by count, on scores that a sigmoid fits and on some it does not."""
    rows = [
        "| images per class | Brier, Platt / isotonic (sigmoid fits) | ECE | Brier (it does not) | ECE |",
        "|---|---|---|---|---|",
    ]
    for count in (4, 8, 16, 50, 100, 200, 500):
        cells = []
        for bent in (False, True):
            generator = np.random.default_rng([count, bent])

            def scores(size: int, bent: bool = bent, generator: np.random.Generator = generator) -> np.ndarray:
                raw = generator.normal(size=2 * size) + shift(0.9) * np.repeat([0, 1], size)
                # The maximum of a map: most images at a floor, anomalous ones far out on a heavy tail.
                return np.exp(1.5 * raw) if bent else raw

            held = np.zeros((draws, 4))
            for draw in range(draws):
                shots = Scored.of(np.repeat([0, 1], count), scores(count))
                truth, new = np.repeat([0, 1], 2000), scores(2000)
                slope, offset = fit_platt(shots)
                platt = 0.5 * (1 + np.tanh((slope * new + offset) / 2))
                isotonic = np.interp(new, *fit_isotonic(shots))
                held[draw] = [
                    brier(truth, platt),
                    brier(truth, isotonic),
                    expected_calibration_error(truth, platt),
                    expected_calibration_error(truth, isotonic),
                ]
            mean = held.mean(0)
            cells += [f"{mean[0]:.3f} / {mean[1]:.3f}", f"{mean[2]:.3f} / {mean[3]:.3f}"]
        rows.append(f"| {count} | {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    return "\n".join(rows)


def main() -> None:
    """Simulate, print, and write between the marks of a page where one is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--bootstrap", type=int, default=500, help="repetitions that also bootstrap (1,000 replicates)")
    parser.add_argument("--pixel", type=int, default=400, help="repetitions for pixel metrics")
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--docs", type=Path, help="page to write between its marks `coverage`")
    arguments = parser.parse_args()
    start = time.perf_counter()
    heading = (
        f"Coverage of 95 % intervals, %, {arguments.repetitions:,} repetitions (bootstrap: {arguments.bootstrap}, "
        "1,000 replicates each); **outside** marks what is not within 93 to 97 %:"
    )
    parts = [
        heading,
        coverage(arguments.repetitions, arguments.bootstrap),
        "Four images per patient that share half of their variance, AUROC 0.9, coverage, %:",
        clustered(arguments.repetitions),
        f"Intervals of pixel metrics, coverage, %, {arguments.pixel} repetitions:",
        pixels(arguments.pixel),
        f"Error rate of the conformal p-value, mean over {arguments.draws} draws of the normals:",
        conformal(arguments.draws),
        f"What operating points from K + K shots reach (AUROC 0.9, {10 * arguments.draws} draws):",
        promises(10 * arguments.draws),
        f"Probabilities on new images, mean over {arguments.draws} draws:",
        probabilities(arguments.draws),
    ]
    text = "\n\n".join(parts)
    print(text, f"\n{time.perf_counter() - start:.0f} s")
    if arguments.docs:
        write_between(arguments.docs, "coverage", text)


if __name__ == "__main__":
    main()
