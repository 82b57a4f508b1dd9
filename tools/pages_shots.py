"""Screenshots of every page of a running `madclip serve`, in both themes and at both widths.

    python tools/pages_shots.py http://127.0.0.1:8000/ shots/

The server should hold images, a detector and a mask: then the pages have something to show.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

SIZES = {"wide": (1280, 800), "narrow": (390, 844)}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WEBGL = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")


def shoot(page: Any, url: str, out: Path, name: str) -> None:
    """Every page of one theme and width, each once its pictures are there."""

    def keep(what: str, full: bool = False) -> None:
        if full:  # pictures that are loaded once they come into view
            page.evaluate("for (const one of document.querySelectorAll('img[loading=lazy]')) one.loading = 'eager'")
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(150)
        page.screenshot(path=out / f"{what}-{name}.png", full_page=full)

    page.goto(f"{url}#/images")
    page.wait_for_selector(".cell img")
    keep("images")
    page.get_by_role("button", name="Add images").first.click()
    keep("add")
    page.keyboard.press("Escape")
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
    volume = page.evaluate("fetch('v1/images?limit=500').then(a => a.json()).then(a => a.images.find(i => i.volume)?.volume)")
    if volume is not None:
        page.goto(f"{url}#/volume/{volume}")
        page.wait_for_selector("[data-ready]")
        keep("volume", full=True)


def main(url: str, folder: str) -> None:
    """Writes PNG files named after page, theme and width."""
    from playwright.sync_api import sync_playwright

    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as session:
        browser = session.chromium.launch(executable_path=CHROMIUM, args=WEBGL)
        for theme in ("light", "dark"):
            for width, (across, down) in SIZES.items():
                size: Any = {"width": across, "height": down}
                context = browser.new_context(viewport=size, color_scheme=theme, has_touch=width == "narrow")
                page = context.new_page()
                page.on("console", lambda said: print(said.text) if said.type in ("error", "warning") else None)
                page.on("pageerror", lambda error: print(error))
                shoot(page, url, out, f"{theme}-{width}")
                context.close()
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
