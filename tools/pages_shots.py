"""Screenshots of every page of `madclip serve`, in both themes and at both widths, on images of no patient.

`python tools/pages_shots.py shots/` serves the demo, labels, trains, then looks; with an address of a server that runs
already, it looks at that one.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

SIZES = {"wide": (1280, 800), "narrow": (390, 844)}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WEBGL = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
EACH = 8
"""Images of each kind that are labelled."""
READY = "[...document.images].every(one => one.complete)"


def ask(url: str, method: str, path: str, body: object = None) -> Any:
    """What the server answers, as JSON."""
    data = None if body is None else json.dumps(body).encode()
    head = {"X-Madclip": "1", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url + path, data, head, method=method)) as answer:
        return json.load(answer)


def served(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """A server of phantoms, and its address once it has one."""
    command = [sys.executable, "-u", "-c", "from madclip.cli import main; main()", "serve", "--demo", "--port", "0"]
    command += ["--project", str(folder / "demo")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = ""
    for line in running.stdout or ():
        said += line
        if found := re.search(r"http://\S+/", line):
            return running, found[0]
    raise SystemExit(said)


def teach(url: str) -> None:
    """Labels some phantoms as they were drawn, one with its mask, and two wrongly; trains, and waits."""
    from madclip.phantoms import generate
    from madclip.serve.demo import COUNT, DIFFICULTY, SEED

    truth = [bool(label) for label in generate("brain", COUNT, SEED, difficulty=DIFFICULTY).labels]
    images = ask(url, "GET", "v1/images?sort=name&limit=500")["images"]
    for kind, label in ((False, "normal"), (True, "abnormal")):
        ids = [one["id"] for one, sick in zip(images, truth, strict=True) if sick == kind][:EACH]
        ask(url, "POST", "v1/labels", {"ids": ids, "label": label})
    job = ask(url, "POST", "v1/jobs", {"kind": "fit", "parameters": {"folds": 2}})
    while job["state"] in ("queued", "running"):
        time.sleep(0.5)
        job = ask(url, "GET", f"v1/jobs/{job['id']}")
    if job["state"] != "done":
        raise SystemExit(job["error"])


def complain(said: object) -> None:
    """Prints what a page complains of; Playwright marks its handlers, which a built-in function cannot be."""
    print(said)


def shoot(page: Any, url: str, out: Path, name: str) -> None:
    """Every page of one theme and width, each once its pictures are there."""

    def keep(what: str, *, full: bool = False) -> None:
        page.evaluate("for (const one of document.querySelectorAll('img[loading=lazy]')) one.loading = 'eager'")
        page.wait_for_load_state("networkidle")
        for _ in range(100):
            if page.evaluate(READY):
                break
            page.wait_for_timeout(100)
        page.wait_for_timeout(200)
        page.screenshot(path=out / f"{what}-{name}.png", full_page=full)

    page.goto(f"{url}#/images")
    page.wait_for_selector(".cell img")
    keep("images")
    page.get_by_role("button", name="Add images").first.click()
    keep("add")
    page.keyboard.press("Escape")
    page.locator(".toolbar select").first.select_option("score")
    page.wait_for_timeout(500)
    page.focus(".grid")
    page.keyboard.press("Enter")
    page.wait_for_selector(".world .picture")
    keep("viewer", full=True)
    page.goto(f"{url}#/train")
    page.wait_for_selector(".strip img, .shots p")
    keep("train", full=True)
    page.goto(f"{url}#/results")
    page.wait_for_selector(".panel")
    keep("results", full=True)
    listed = ask(url, "GET", "v1/images?limit=1000")["images"]
    volume = next((one["volume"] for one in listed if one["volume"]), None)
    if volume is not None:
        page.goto(f"{url}#/volume/{volume}")
        page.wait_for_selector("[data-ready]")
        keep("volume", full=True)


def every(url: str, out: Path) -> None:
    """All themes and widths, one after the other; what a page complains of is printed."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as session:
        browser = session.chromium.launch(executable_path=CHROMIUM, args=WEBGL)
        for theme in ("light", "dark"):
            for width, (across, down) in SIZES.items():
                context = browser.new_context(viewport={"width": across, "height": down}, color_scheme=theme)
                page = context.new_page()
                page.on("console", lambda said: print(said.text) if said.type == "error" else None)
                page.on("pageerror", complain)
                shoot(page, url, out, f"{theme}-{width}")
                context.close()
        browser.close()


def main(folder: str, url: str = "") -> None:
    """Writes PNG files named after page, theme and width."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    if url:
        return every(url, out)
    with tempfile.TemporaryDirectory() as temporary:
        running, url = served(Path(temporary))
        try:
            teach(url)
            every(url, out)
        finally:
            running.terminate()
            running.wait(20)
    return None


if __name__ == "__main__":
    main(*sys.argv[1:3])
