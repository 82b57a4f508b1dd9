"""The same work by madclip and by anomalib, in turn and each in a process of its own: seconds, memory, values.

    python benchmarks/peers.py --environment PEERS --docs docs/performance.md

PEERS is a folder for a second environment (6 GB), which is made where it is missing: torch 2.14.1, torchvision 0.29.1,
anomalib 2.7, open_clip 3.3. All weights are random: what is compared is time and memory, and the values of metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from madclip.files import write_between
from madclip.metrics.pixel import PixelHistogram
from peers_side import peak_mb

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).resolve().parent
PACKAGES = (["torch==2.14.1", "torchvision==0.29.1"], ["anomalib==2.7.*", "open_clip_torch==3.3.*"])
NORMALS, TESTS, MAPS, SIDE = 16, 34, 300, 240

Said = dict[str, Any]


def predict(work: Path) -> Said:
    """`tiny` and a head of ours, from each file to its score and map; what was learned does not matter for time."""
    from madclip.detector import MadCLIP
    from madclip.head.head import Head
    from madclip.memory import kept_memory
    from madclip.state import Fitted, Provenance

    detector = MadCLIP(backbone="tiny", objective="Brain", device="cpu")
    head = Head(detector.recipe, detector.backbone, "Brain")
    detector.fitted = Fitted(head, detector.recipe, Provenance(normal=16, abnormal=16, masks=16))
    seconds = []
    with kept_memory():
        for path in sorted((work / "tests").iterdir()):
            start = time.perf_counter()
            detector.predict(path)
            seconds.append(time.perf_counter() - start)
    return {"seconds": median(seconds[2:])}


def pixel_metrics(work: Path) -> Said:
    """Pixel AUROC, average precision and AUPRO over all maps, in one pass that keeps none."""
    maps, masks = np.load(work / "maps.npy", mmap_mode="r"), np.load(work / "masks.npy", mmap_mode="r")
    start = time.perf_counter()
    histogram = PixelHistogram()
    for one, mask in zip(maps, masks, strict=True):
        histogram.update(np.asarray(one), np.asarray(mask) > 0)
    found = {
        "pixel AUROC": histogram.auroc().value,
        "pixel average precision": histogram.average_precision().value,
        "AUPRO": histogram.aupro().value,
    }
    return {"seconds": time.perf_counter() - start, **found}


OURS: dict[str, Callable[[Path], Said]] = {"predict": predict, "pixel_metrics": pixel_metrics}
TASKS = {
    "an image, from file to map": {"madclip, `tiny`": "ours predict", "PatchCore": "patchcore", "WinCLIP": "winclip"},
    f"pixel metrics of {MAPS} maps of {SIDE} x {SIDE}": {"madclip": "ours pixel_metrics", "anomalib": "pixel_metrics"},
}
"""What is compared, and by whom: a function of ours, or one in peers_side.py."""


def write_inputs(work: Path) -> None:
    """Images, maps and masks that all are given."""
    from madclip.phantoms import generate

    for name, count in (("normal", NORMALS), ("tests", TESTS)):
        drawn = generate("brain", count, seed=len(name), size=SIDE)
        (work / name).mkdir()
        for number, pixels in enumerate(drawn.pixels.numpy()):
            Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(work / name / f"{number:03d}.png")
    drawn = generate("brain", MAPS, seed=3, size=SIDE)
    masks = drawn.masks.numpy().astype(np.uint8)
    noise = np.random.default_rng(0).normal(size=(MAPS, SIDE // 8, SIDE // 8)).repeat(8, 1).repeat(8, 2)
    fine = np.random.default_rng(1).normal(size=masks.shape)
    np.save(work / "maps.npy", (1 / (1 + np.exp(1 - noise - 0.3 * fine - 1.5 * masks))).astype(np.float32))
    np.save(work / "masks.npy", masks)


def run(command: list[str]) -> Said:
    """What a process says of its work: seconds, peak memory, values."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    found: Said = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def built(environment: Path) -> Path:
    """The Python of the peers' environment, which is made where it is missing."""
    python = environment / "bin/python"
    if not python.exists():
        venv.create(environment, with_pip=True)
        for packages in PACKAGES:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def rows(title: str, found: dict[str, list[Said]]) -> list[str]:
    """The lines of one task: each side's medians, and how many times ours they are."""
    ours = next(iter(found.values()))
    lines = []
    for name, runs in found.items():
        seconds, memory = (median(one[name] for one in runs) for name in ("seconds", "peak_mb"))
        times = [theirs["seconds"] / own["seconds"] for theirs, own in zip(runs, ours, strict=True)]
        ratio = "1" if runs is ours else f"{median(times):.1f} ({min(times):.1f} to {max(times):.1f})"
        values = ", ".join(
            f"{key} {value:.5f}" for key, value in runs[0].items() if not key.startswith(("seconds", "peak"))
        )
        part = [one["seconds of AUPRO"] for one in runs if "seconds of AUPRO" in one]
        values += f", AUPRO alone {median(part):.2f} s" if part else ""
        lines.append(f"| {title} | {name} | {seconds:.3g} s | {ratio} | {memory / 1000:.2f} GB | {values} |")
    return lines


def main() -> None:
    """Runs all tasks in turn, and prints or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, required=True)
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--docs", type=Path)
    parser.add_argument("--ours", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        import torch

        torch.set_num_threads(options.threads)
        print(json.dumps({**OURS[options.ours[0]](Path(options.ours[1])), "peak_mb": peak_mb()}))
        return
    peers = built(options.environment)
    lines = ["| work | by | time | times ours | peak memory | |", "|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_inputs(work)
        for title, sides in TASKS.items():
            found: dict[str, list[Said]] = {name: [] for name in sides}
            for number in range(options.times):
                for name, side in sides.items():
                    threads = str(options.threads)
                    ours = side.removeprefix("ours ")
                    if ours == side:
                        command = [str(peers), str(HERE / "peers_side.py"), side, folder, threads]
                    else:
                        command = [sys.executable, __file__, "--environment", str(options.environment)]
                        command += ["--threads", threads, "--ours", ours, folder]
                    found[name].append(run(command))
                    print(number, title, name, found[name][-1], flush=True)
            lines += rows(title, found)
    print(*lines, sep="\n")
    if options.docs:
        write_between(options.docs, "peers", "\n".join(lines))


if __name__ == "__main__":
    main()
