"""The page of an explanation: self-contained, safe, and true to what was computed."""

import base64
import hashlib
import re

import pytest

from madclip import MadCLIP
from madclip.data.load import load_dataset
from madclip.explain import explain
from madclip.report.explanation import render_explanation, write_explanation
from report.test_report import check


@pytest.fixture(scope="module")
def dataset(small_data):
    return load_dataset(small_data)


@pytest.fixture(scope="module")
def image(dataset):
    return next(sample.image for sample in dataset.test_pool if sample.label)


def safe(text):
    """Nothing is loaded, nothing is styled or run but what the policy names."""
    check(text)
    assert text.startswith("<!doctype html>")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text
    assert "<script" not in text
    assert not re.search(r"\sstyle=|\son\w+=", text)


def test_the_page_says_what_was_computed(small_detector, image, small_data, tmp_path):
    told = explain(MadCLIP.load(small_detector), image, data=small_data)
    path = write_explanation(told, tmp_path / "why.html", detector="a <b>detector</b>")
    text = path.read_text("utf-8")
    safe(text)
    assert "a &lt;b&gt;detector" in text
    assert f"Why {image.name} has its score" in text
    assert str(image.path.parent) not in text
    for value in told.image.parts.given[:, 0].tolist():
        assert f"{value:+.4f}".replace("-", "−") in text
    assert f"{float(told.image.parts.scores[0]):.4f}" in text
    for part in told.image.parts.parts:
        assert text.count(part.name) >= 3  # its line, its map, its row
    for line in told.findings:
        assert line.split("(")[0][:40] in text.replace("&#39;", "'")
    for one in told.texts.contexts:
        assert f">{one.nearest[0].word}<" in text
    assert text.count("<img") == 1 + 2 + 8 + 8  # ramp, image and map, parts, four shots of each class


def test_without_image_or_shots_the_page_says_what_is_missing(small_detector, image):
    detector = MadCLIP.load(small_detector)
    alone = render_explanation(explain(detector))
    safe(alone)
    assert "What this detector learned" in alone
    unseen = render_explanation(explain(detector, image))
    safe(unseen)
    assert "keeps digests of its shots, not the images" in unseen


@pytest.mark.parametrize("shots", [0, (4, 0)])
def test_the_page_of_other_kinds(small_recipe, small_backbone, small_data, image, shots):
    detector = MadCLIP(small_recipe, backbone=small_backbone, objective="Brain").fit(small_data, shots=shots)
    for data in (None, small_data):
        text = render_explanation(explain(detector, image, data=data))
        safe(text)
        assert ("--data" in text) == (shots != 0 and data is None)
        assert ("farthest from every normal patch" in text) == (shots != 0)
        assert text.count("nearest normal patch of place") == (4 if shots and data else 0)
