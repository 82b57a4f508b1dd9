import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest

from madclip.calibration.calibration import Calibration
from madclip.evaluation.measure import evaluate_scores
from madclip.evaluation.result import ImageRow
from madclip.report import write_report
from madclip.report.html import METRICS

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def measure(*, labels=None, masks=True, calibrated=True, names=None, images=True, seed=0):
    """A small evaluation: discs on a grey ground, found more or less."""
    rng = np.random.default_rng(seed)
    labels = np.arange(24) % 3 == 0 if labels is None else np.asarray(labels, bool)
    y, x = np.mgrid[:60, :80]
    scenes = []
    for label in labels:
        disc = (y - rng.integers(15, 45)) ** 2 + (x - rng.integers(15, 65)) ** 2 < rng.integers(20, 90)
        mask = disc if label else np.zeros_like(disc)
        scores = np.clip(rng.normal(0.3, 0.05, mask.shape) + 0.3 * mask, 0, 1).astype(np.float32)
        grey = np.clip(90 + 20 * rng.normal(size=mask.shape) + 80 * mask, 0, 255).astype(np.uint8)
        scenes.append((scores, mask if label else None, np.repeat(grey[..., None], 3, 2)))
    cut = np.repeat([0, 1], 16)
    calibration = Calibration.fit(cut, rng.normal(0.4, 0.1, 32) + 0.2 * cut, "sens=0.95", pixel_threshold=0.45)
    found = np.clip(rng.normal(0.4, 0.1, len(labels)) + 0.2 * labels, 0, 1).tolist()
    names = names or [f"test/{i:03d}.png" for i in range(len(labels))]
    rows = [ImageRow(names[i], int(label), found[i], patient=f"Jane Doe {i // 2}") for i, label in enumerate(labels)]
    return evaluate_scores(
        rows,
        ((scores, mask) for scores, mask, _ in scenes) if masks else None,
        calibration=calibration if calibrated else None,
        image_of=(lambda i: scenes[i][2]) if images else None,
        provenance={"madclip": "0.1.0", "seed": 7, "backbone sha256": "ab" * 32},
    )


class Balanced(HTMLParser):
    """Counts open and closed tags, and collects what the page would load."""

    void = ("meta", "img", "br", "link", "input")

    def __init__(self):
        super().__init__()
        self.open, self.loads = [], []

    def handle_starttag(self, tag, attributes):
        self.loads += [value for key, value in attributes if key in ("src", "href", "xlink:href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(text):
    page = Balanced()
    page.feed(text)
    assert page.open == []
    assert all(value.startswith(("data:image/", "#")) for value in page.loads), "a page that loads nothing"
    assert "url(http" not in text
    assert not re.search(r"\bnan\b", re.sub(r'data:image[^"]*', "", text), re.IGNORECASE)


def test_the_page_says_what_was_measured(tmp_path):
    result = measure()
    path = write_report(result, tmp_path / "deep" / "report.html", title="Brain, 16 + 16 shots")
    text = path.read_text("utf-8")
    check(text)
    for name, estimate in result.metrics.items():
        assert METRICS[name][0] in text
        assert f"{estimate.value:.3f}" in text
        if estimate.low is not None:
            assert f"{estimate.low:.3f} to {estimate.high:.3f}" in text
    for line in result.warnings:
        assert line in text
    assert text.count("<article") == len(result.gallery) > 10
    assert "ab" * 32 in text
    assert list(path.parent.iterdir()) == [path], "nothing half-written is left"


def test_the_page_names_no_patient(tmp_path):
    assert "Jane Doe" not in write_report(measure(), tmp_path / "r.html").read_text("utf-8")


def test_a_hostile_name_is_text(tmp_path):
    names = [f'<script>alert({i})</script>"onload="x.png' for i in range(24)]
    text = write_report(measure(names=names), tmp_path / "r.html", title="<b>&").read_text("utf-8")
    check(text)
    assert "<script>alert" not in text
    assert text.count("<script>") == 1


@pytest.mark.parametrize(
    "options",
    [
        {"labels": [0] * 6},
        {"labels": [1] * 6},
        {"labels": [0, 1]},
        {"masks": False},
        {"calibrated": False},
        {"images": False},
        {"masks": False, "calibrated": False, "images": False},
    ],
    ids=str,
)
def test_what_is_missing_is_said(tmp_path, options):
    result = measure(**options)
    text = write_report(result, tmp_path / "r.html").read_text("utf-8")
    check(text)
    for estimate in result.metrics.values():
        assert estimate.value is not None or estimate.reason in text.replace("&#39;", "'")


def test_the_same_result_gives_the_same_bytes(tmp_path):
    one = write_report(measure(), tmp_path / "a.html", title="t").read_bytes()
    assert one == write_report(measure(), tmp_path / "b.html", title="t").read_bytes()


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_the_page_in_a_real_browser(tmp_path):
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    path = write_report(measure(), tmp_path / "report.html", title="Brain, 16 + 16 shots")
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        assert page.screenshot(path=tmp_path / "report.png", full_page=True)[:4] == b"\x89PNG"
        assert all(page.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 0)"))
        assert page.locator("#figures svg").count() == 4
        assert all(box["height"] > 200 for box in (e.bounding_box() for e in page.locator("#figures svg").all()))

        def values(key):
            return page.evaluate(f"[...document.querySelectorAll('.item:not([hidden])')].map(i => i.dataset.{key})")

        every = len(values("name"))
        page.select_option("#sort", "-score")
        scores = [float(score) for score in values("score")]
        assert scores == sorted(scores, reverse=True)
        page.select_option("#sort", "name")
        assert values("name") == sorted(values("name"))
        page.select_option("#label", "1")
        assert set(values("label")) == {"1"}
        page.select_option("#group", "worst")
        assert 0 < len(values("name")) < every
        assert page.text_content("#shown") == f"{len(values('name'))} of {every} images"
        page.select_option("#label", "")
        page.select_option("#group", "")
        assert len(values("name")) == every
        for width in (1200, 390):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out sideways"
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
