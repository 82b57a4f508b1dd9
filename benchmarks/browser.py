"""How fast the pages of `madclip serve` are in a real browser.

`python benchmarks/browser.py` measures both parts, in some minutes: `grid` opens 5,000 images, scrolls through them and
labels some by key; `train` presses Train for 8 + 8 phantoms, waits for heatmaps, corrects one label and trains again.
Medians of several rounds as JSON, and what each should be at most.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
COUNT, EACH = 5000, 8
MOST = {"train_s": 30, "after_correction_s": 5, "opened_s": 2, "worst_frame_ms": 100, "label_shown_ms": 50}
SCROLL = """async () => {
  const grid = document.querySelector('.grid'), gaps = []
  let before = await new Promise(requestAnimationFrame)
  for (let i = 1; i <= 120; i++) {
    grid.scrollTop = (grid.scrollHeight * i) / 120
    const now = await new Promise(requestAnimationFrame)
    gaps.push(now - before)
    before = now
  }
  return gaps
}"""
LABEL = """(key) => new Promise((done) => {
  const start = performance.now(), counts = document.querySelector('.counts'), said = counts.textContent
  new MutationObserver((_, self) => {
    if (counts.textContent === said) return
    self.disconnect()
    requestAnimationFrame(() => done(performance.now() - start))
  }).observe(counts, { subtree: true, characterData: true, childList: true })
  setTimeout(() => done(null), 2000) // an image that already has this label
  document.body.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }))
})"""


def ask(url: str, method: str, path: str, body: object = None) -> Any:
    """What the server answers, as JSON."""
    data = None if body is None else json.dumps(body).encode()
    head = {"X-Madclip": "1", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url + path, data, head, method=method)) as answer:
        return json.load(answer)


@contextmanager
def served(*arguments: str | Path) -> Iterator[str]:
    """The address of a server while the context lasts."""
    command = [sys.executable, "-u", "-c", "from madclip.cli import main; main()", "serve", "--port", "0", *arguments]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        found = next(match for line in running.stdout or () if (match := re.search(r"http://\S+/", line)))
        yield found[0]
    finally:
        running.terminate()
        running.wait(30)


def until(page: Any, expression: str, seconds: float = 300) -> None:
    """Waits for an expression to be true."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        if time.monotonic() > end:
            raise SystemExit(f"not within {seconds} s: {expression}")
        page.wait_for_timeout(10)


def grid(browser: Any, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds until 5,000 images are listed and the first is seen; milliseconds of frames and of a label."""
    images = folder / "images"
    images.mkdir()
    generator = np.random.default_rng(0)
    for i in range(COUNT):
        pixels = generator.integers(0, 255, (16, 16), np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(images / f"{i:05d}.png")
    opened, frames, labels = [], [], []
    with served(images, "--project", folder / "project", "--backbone", "stand-in") as url:
        for job in ask(url, "GET", "v1/jobs")["jobs"]:
            ask(url, "DELETE", f"v1/jobs/{job['id']}")  # the page alone is measured, not the reading of images
        for _ in range(rounds):
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            start = time.monotonic()
            page.goto(url)
            until(page, "document.querySelector('.cell img')?.naturalWidth > 0")
            until(page, "document.querySelector('.counts').textContent.includes('5,000')")
            opened.append(time.monotonic() - start)
            until(page, "document.querySelector('.grid').ariaBusy === 'false'")
            page.wait_for_timeout(1000)
            frames.append(page.evaluate(SCROLL))
            page.evaluate("document.querySelector('.grid').scrollTop = 0")
            labels += [took for key in "nananana" if (took := page.evaluate(LABEL, key)) is not None]
            page.close()
    worst = [max(gaps) for gaps in frames]
    return {
        "opened_s": statistics.median(opened),
        "frame_ms": statistics.median(gap for gaps in frames for gap in gaps),
        "worst_frame_ms": statistics.median(worst),
        "label_shown_ms": statistics.median(labels),
    }


def train(browser: Any, folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds from pressing Train to scores and heatmaps of 96 phantoms, and the same after one correction."""
    from madclip.phantoms import generate
    from madclip.serve.demo import COUNT as PHANTOMS
    from madclip.serve.demo import DIFFICULTY, SEED

    truth = [bool(label) for label in generate("brain", PHANTOMS, SEED, difficulty=DIFFICULTY).labels]
    first: list[float] = []
    again: list[float] = []
    for number in range(rounds):
        with served("--demo", "--project", folder / f"demo{number}", "--backbone", "tiny") as url:
            images = ask(url, "GET", "v1/images?sort=name&limit=500")["images"]
            for kind, label in ((False, "normal"), (True, "abnormal")):
                ids = [one["id"] for one, sick in zip(images, truth, strict=True) if sick == kind][:EACH]
                ask(url, "POST", "v1/labels", {"ids": ids, "label": label})
            while any(job["state"] in ("queued", "running") for job in ask(url, "GET", "v1/jobs")["jobs"]):
                time.sleep(0.2)  # images are read while a person labels
            page = browser.new_page(viewport={"width": 1280, "height": 800})
            page.goto(f"{url}#/train")
            for count, taken in ((1, first), (2, again)):
                page.wait_for_selector(".strip img")
                page.get_by_role("button", name="Train").click()
                start = time.monotonic()
                until(page, f"document.querySelectorAll('.detectors li').length === {count}")
                taken.append(time.monotonic() - start)
                one = next(one for one in ask(url, "GET", "v1/images?label=normal")["images"])
                ask(url, "PUT", f"v1/images/{one['id']}/label", {"label": "abnormal", "version": one["version"]})
            page.close()
    return {"train_s": statistics.median(first), "after_correction_s": statistics.median(again)}


def main() -> None:
    """Prints what was measured, with the load of the machine."""
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("grid", "train"), help="both where none is named")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    found: dict[str, Any] = {"rounds": given.rounds, "load": os.getloadavg()[0]}
    with sync_playwright() as session, tempfile.TemporaryDirectory() as temporary:
        browser = session.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for measure in (grid, train):
            if given.what in (None, measure.__name__):
                found |= measure(browser, Path(temporary), given.rounds)
        browser.close()
    print(json.dumps(found | {"most": {name: most for name, most in MOST.items() if name in found}}, indent=2))


if __name__ == "__main__":
    main()
