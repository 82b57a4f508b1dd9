"""The page of a folder of predictions: what it shows, what it never does, and in a real browser with 5,000 images."""

import re
import shutil
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from madclip.errors import DataError
from madclip.prediction import Prediction, Row
from madclip.report.page import answer, common_folder, render_page, thumbnail_of, write_page
from madclip.report.predictions import COLUMNS, PredictionFolder

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WHEN = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)


def row(image, score=None, **said):
    error = None if score is not None else said.pop("error", "broken")
    facts = {"familiar": None if score is None else True, "threshold": None if score is None else 0.5}
    given = Row(str(image), score=score, error=error, **(facts | said)).to_dict()
    return dict.fromkeys(COLUMNS) | given


ROWS = [
    row("data/a/low.png", 0.1, verdict="normal", decision="normal", probability=0.02, p_value=1.0),
    row("data/b/none.png"),
    row("data/a/top.png", 0.9, verdict="anomalous", decision="anomalous", probability=0.97, p_value=0.05),
    row("data/a/mid.png", 0.6, verdict="uncertain", decision="anomalous", familiar=False, note="Unlike every shot."),
]


class Articles(HTMLParser):
    """The articles of a page, and everything that the page would load."""

    def __init__(self, text):
        super().__init__()
        self.articles, self.loads, self.texts, self.scripts = [], [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.loads += [values[key] for key in ("src", "href", "action", "data") if key in values]
        self.scripts += tag == "script"
        assert not [key for key in values if key.startswith("on") or key == "style"], "the policy would forbid it"
        if tag == "article":
            self.articles.append(values)

    def handle_data(self, data):
        self.texts.append(data)


def test_the_highest_score_comes_first_and_failures_last():
    text = render_page(ROWS, {"Detector": "my detector"}, date=WHEN)
    page = Articles(text)
    assert [a["data-name"] for a in page.articles] == ["a/top.png", "a/mid.png", "a/low.png", "b/none.png"]
    assert [a["data-answer"] for a in page.articles] == ["anomalous", "uncertain", "normal", "failed"]
    assert [a["data-number"] for a in page.articles] == ["2", "3", "0", "1"]
    for words in ("my detector", "2026-03-04 05:06 UTC", "data", "4 (1 anomalous, 1 uncertain, 1 normal, 1 failed)"):
        assert words in page.texts, words
    assert "score 0.9000" in page.texts
    assert any("threshold 0.5000: anomalous · probability 0.97 · p 0.050" in t for t in page.texts)
    assert any("unlike the shots" in t for t in page.texts)
    assert "Unlike every shot." in page.texts
    assert render_page(ROWS, {"Detector": "my detector"}, date=WHEN) == text


def test_a_hostile_name_is_text():
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>'
    bad = [row(f"{evil}.png", 0.5, note=evil), row(f"{evil}2.png", error=evil), row("plain.png")]
    page = Articles(render_page(bad, {evil: evil}))
    assert page.scripts == 1
    assert len(page.articles) == 3
    assert all(load.startswith("data:image/png") for load in page.loads)
    assert page.articles[0]["data-name"] == f"{evil}.png"


def test_the_policy_allows_this_script_and_this_style_and_nothing_from_elsewhere():
    import base64
    import hashlib

    text = render_page(ROWS)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "'self' file: data:"
    for tag in ("script", "style"):
        inside = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"


def test_answers_and_folders():
    assert [answer(r) for r in ROWS] == ["normal", "failed", "anomalous", "uncertain"]
    assert answer(row("x", 0.3)) == "no threshold"
    assert common_folder(["/a/b/c.png", "/a/b/d/e.png"]) == "/a/b"
    assert common_folder(["/a/c.png", "/b/d.png"]) == common_folder(["/a/b.png", "c/d.png"]) == common_folder([]) == ""
    assert common_folder(["c.png", "d.png"]) == ""


@pytest.fixture
def folder(tmp_path):
    """A folder of 5,000 predictions; pictures of twelve are drawn, and stand for all others."""
    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    images = [tmp_path / "in" / f"scan {i}.png" for i in range(12)]
    out = tmp_path / "out"
    with PredictionFolder(out, [*images, tmp_path / "in" / "bad.png"]) as made:
        for i, image in enumerate(images):
            Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(image)
            verdict = ("normal", "uncertain", "anomalous")[i % 3]
            anomaly_map = rng.random((60, 80), np.float32)
            made.add(
                image, Prediction(i / 12, anomaly_map, (60, 80), threshold=0.5, decision="normal", verdict=verdict)
            )
        made.add(tmp_path / "in" / "bad.png", DataError("bad.png: broken"))
    rows = []
    for i in range(5000):
        drawn = made.rows[i % 13]
        rows.append(drawn | {"image": f"in/{i:05d}.png", "score": None if i % 13 == 12 else (i * 7919 % 5000) / 5000})
        if drawn["overlay"]:
            rows[-1]["overlay"] = f"overlays/{i:05d}.png"
            (out / thumbnail_of(f"overlays/{i:05d}.png")).hardlink_to(out / thumbnail_of(drawn["overlay"]))
    write_page(out / "index.html", rows)
    return out


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_five_thousand_images_in_a_real_browser(folder):
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        said, asked = [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto((folder / "index.html").as_uri())
        first = page.locator("article img").first
        first.scroll_into_view_if_needed()
        page.wait_for_function("document.querySelector('article img').naturalWidth === 160")
        pictures = "[...document.querySelectorAll('article img')].filter(i => i.naturalWidth > 0).length"
        assert 0 < page.evaluate(pictures) < 1000, "only what comes into view is loaded"

        def values(key):
            return page.evaluate(f"[...document.querySelectorAll('article:not([hidden])')].map(i => i.dataset.{key})")

        def scores():
            return [float(value) for value in values("score") if value]

        assert len(values("name")) == 5000
        assert scores() == sorted(scores(), reverse=True)
        assert values("score")[-384:] == [""] * 384, "failures are last"
        page.select_option("#sort", "score")
        assert scores() == sorted(scores())
        page.select_option("#sort", "name")
        assert values("name") == sorted(values("name"))
        page.select_option("#answer", "uncertain")
        assert set(values("answer")) == {"uncertain"}
        assert page.text_content("#shown") == f"{len(values('name'))} of 5000 images"
        page.select_option("#answer", "")
        page.fill("#text", "0012")
        assert values("name") == [f"{i:05d}.png" for i in range(5000) if "0012" in f"{i:05d}"]
        for scheme, dark in (("light", False), ("dark", True)):
            page.emulate_media(color_scheme=scheme)
            red = page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])")
            assert (red < 60) == dark
        for width in (1200, 390):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out sideways"
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
