"""The stories of the pages on real images, where MADCLIP_REAL_DATA names their folder; pictures are left to look at."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from story import (
    add_volume,
    came_back,
    drawn_voxels,
    evaluate_and_export,
    faults,
    fetched,
    go,
    heatmap_follows_the_threshold,
    listed,
    look_at_volume,
    press,
    results_say_what_a_threshold_costs,
    served,
    until,
)

REAL = os.environ.get("MADCLIP_REAL_DATA")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(not REAL, reason="MADCLIP_REAL_DATA names no folder with real files"),
]
SECONDS = 900
"""Enough for a fit with folds on a machine that does other things."""


@pytest.fixture
def brains(tmp_path):
    """48 slices without a tumour, which come first by name, and 48 with one."""
    (tmp_path / "brains").mkdir()
    for kind, name in (("good", "a"), ("Ungood", "b")):
        found = [
            file
            for part in ("valid", "test")
            for file in sorted((Path(REAL) / "BrainLGG_AD" / part / kind / "img").iterdir())
        ]
        for number, file in enumerate(found[:48]):
            shutil.copy(file, tmp_path / "brains" / f"{name}_{number:02d}{file.suffix}")
    return tmp_path / "brains"


@pytest.fixture
def lesion():
    """Rows and columns of the tumour in the last of these slices, as shares of its height and width."""
    masks = [
        file
        for part in ("valid", "test")
        for file in sorted((Path(REAL) / "BrainLGG_AD" / part / "Ungood" / "anomaly_mask").iterdir())
    ]
    values = np.asarray(Image.open(masks[47]).convert("L")) > 0
    return [place / side for place, side in zip(np.nonzero(values), values.shape, strict=True)]


def by_name(page):
    go(page, "Images")
    page.wait_for_selector(".cell img")
    page.select_option("select >> nth=0", "name")
    until(page, "document.querySelector('.grid').ariaBusy === 'false'")


def train(page, number):
    go(page, "Train")
    page.wait_for_selector(".strip img")
    page.get_by_role("button", name="Train").click()
    until(page, f"document.querySelectorAll('.detectors li').length === {number}", SECONDS)


def auroc(images):
    """Of scores of images that have no label."""
    scores = {kind: [one["row"]["score"] for one in images if one["name"][0] == kind] for kind in "ab"}
    return np.mean(np.subtract.outer(scores["b"], scores["a"]) > 0)


@pytest.mark.timeout(4 * SECONDS)
def test_96_slices_of_brains(opened, brains, lesion, tmp_path):
    with served(brains, "--project", tmp_path / "project", "--backbone", "tiny", "--objective", "Brain") as server:
        page = opened(server.url).page
        page.set_default_timeout(60_000)
        page.wait_for_selector(".cell img")
        until(page, "document.querySelector('.counts').textContent.includes('96 images')")
        by_name(page)
        # 8 + 8, of which one of each is wrong.
        press(page, "Home", *"nnnnnnn", "a", "End", *["ArrowLeft"] * 7, "n", *"aaaaaaa")
        until(page, "document.querySelector('.counts .abnormal').textContent === '8 abnormal'")
        press(page, "End", "Enter")
        page.wait_for_selector(".world .picture")
        press(page, "b")
        rows, columns = lesion
        edge = page.locator(".world .picture").bounding_box()
        height = edge["y"] + np.median(rows) * edge["height"]
        page.mouse.move(edge["x"] + columns.min() * edge["width"], height)
        page.mouse.down()
        page.mouse.move(edge["x"] + columns.max() * edge["width"], height, steps=8)
        page.mouse.up()
        press(page, "s")
        until(page, "document.querySelector('#mask-state').textContent === 'saved'")
        page.screenshot(path=tmp_path / "1-painted.png")

        train(page, 1)
        page.screenshot(path=tmp_path / "2-trained.png", full_page=True)
        new = [one for one in listed(server) if one["label"] is None]
        first = auroc(new)
        heatmap_follows_the_threshold(page, server)
        page.screenshot(path=tmp_path / "3-heatmap.png", full_page=True)
        results_say_what_a_threshold_costs(page, server)
        page.wait_for_load_state("networkidle")
        page.screenshot(path=tmp_path / "4-results.png", full_page=True)

        by_name(page)
        press(page, "Home", *["ArrowRight"] * 7, "n", "End", *["ArrowLeft"] * 7, "a")
        train(page, 2)
        assert "2 labels changed" in page.locator(".detectors li").first.inner_text()
        page.screenshot(path=tmp_path / "5-corrected.png", full_page=True)
        second = auroc([one for one in listed(server) if one["label"] is None])
        print(f"AUROC of {len(new)} images without a label: {first:.3f}, after two corrections {second:.3f}")
        assert second > 0.5, "better than chance on slices that it has not learned from"

        by_name(page)
        press(page, "Home", *["ArrowRight"] * 10, *"nnnn", "End", *["ArrowLeft"] * 14, *"aaaa")
        until(page, "document.querySelector('.counts .abnormal').textContent === '12 abnormal'")
        evaluate_and_export(page, server, SECONDS)
        page.screenshot(path=tmp_path / "6-exported.png", full_page=True)
        by_name(page)
        page.locator(".cell").nth(20).click()
        press(page, "Delete")
        page.get_by_role("dialog").get_by_role("button", name="Delete").click()
        until(page, "document.querySelector('.counts').textContent.includes('95 images')")
        assert len(list(brains.iterdir())) == 96
        assert faults(page) == []


@pytest.mark.timeout(2 * SECONDS)
def test_a_flair_volume_and_a_head_ct(opened, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    clinical = Path(REAL) / "clinical"
    flair = nibabel.load(clinical / "MS_FLAIR" / "flair.nii.gz")
    with served("--project", tmp_path / "flair", "--backbone", "stand-in", "--objective", "Brain") as server:
        page = opened(server.url).page
        page.wait_for_selector("h2")
        number = add_volume(page, server, 182, clinical / "MS_FLAIR" / "flair.nii.gz")
        look_at_volume(page, server, number)
        drawn = drawn_voxels(page)
        page.screenshot(path=tmp_path / "flair.png")
        came_back(server, f"v1/volumes/{number}/mask.nii.gz", drawn, flair.shape, flair.affine)
    with served(clinical / "CT_GE_tilt", "--project", tmp_path / "ct", "--backbone", "stand-in") as server:
        page = opened(server.url).page
        page.wait_for_selector(".cell img")
        number = listed(server)[0]["volume"]
        counts = json.loads(fetched(server, f"v1/volumes/{number}")[1])["stretches"]
        assert sum(counts) == 28
        assert len(counts) > 1
        look_at_volume(page, server, number)
        page.get_by_label("Part").select_option(str(counts.index(max(counts)) + 1))
        until(page, f"document.querySelector('.heading')?.textContent.includes('{max(counts)} slices')")
        page.wait_for_selector("[data-ready]", timeout=60_000)
        page.screenshot(path=tmp_path / "ct.png")
        assert page.locator(".stage.planes .message").count() == 0
