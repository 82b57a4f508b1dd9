"""Phantoms in a folder, a server, and a browser that notes everything a page asks for and complains of."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from fake_project import Project
from fake_server import FakeServer
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
SIDES = (96, 128)
"""Height and width of the phantoms: not square, so that a picture that lies on its side is noticed."""


def phantom(generator, abnormal):
    """A grey oval on black, with a bright disc of radius 9 where something is wrong."""
    rows, columns = np.mgrid[: SIDES[0], : SIDES[1]]
    oval = ((rows - 48) / 40) ** 2 + ((columns - 64) / 54) ** 2 < 1
    pixels = oval * (90 + generator.normal(0, 8, SIDES))
    if abnormal:
        row, column = generator.integers(35, 60), generator.integers(40, 90)
        pixels[(rows - row) ** 2 + (columns - column) ** 2 < 81] += 120
    else:
        pixels[50:52, 60:62] = 230  # the same range, so that grey values alone do not tell
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """12 normal images, which come first by name, and 12 abnormal ones; one name is long, one would be a script."""
    folder = tmp_path_factory.mktemp("scans")
    generator = np.random.default_rng(0)
    for i in range(24):
        side = "b_abnormal" if i >= 12 else "a_normal"
        more = {
            3: "_a_long_name_of_a_series_as_scanners_give_it_T2_FLAIR_axial_3mm",
            4: "_<img src=x onerror=alert(1)>",
        }
        Image.fromarray(phantom(generator, i >= 12)).save(folder / f"{side}_{i:02d}{more.get(i, '')}.png")
    (folder / "readme.txt").write_text("no image")
    return folder


@pytest.fixture
def server():
    with FakeServer(Project()) as running:
        yield running


@pytest.fixture(scope="session")
def chromium():
    """One browser for all tests."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """Opens a page, which at the end must have asked nobody but its server, and complained of nothing."""
    pages = []

    def open_page(url, width=1280, height=800, **context):
        page = chromium.new_context(viewport={"width": width, "height": height}, **context).new_page()
        page.set_default_timeout(10_000)
        # A page may outlive its server, and asks how its jobs are.
        seen = SimpleNamespace(page=page, url=url, said=[], asked=[], expected=["ERR_CONNECTION_REFUSED"])
        page.on("console", lambda message: seen.said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: seen.said.append(str(error)))
        page.on("request", lambda request: seen.asked.append(request.url))
        page.goto(url)
        pages.append(seen)
        return seen

    yield open_page
    for seen in pages:
        seen.page.context.close()
        outside = [url for url in seen.asked if not url.startswith((seen.url, "blob:", "data:"))]
        assert outside == [], "requests that leave the machine"
        assert [line for line in seen.said if not any(text in line for text in seen.expected)] == []
