"""The whole story on the pages of a real server, which learns with the stand-in backbone."""

import json
import re
import shutil

import numpy as np
import pytest
from scanner import slices
from story import (
    add_volume,
    came_back,
    draw_in_a_volume,
    drawn_voxels,
    evaluate_and_export,
    faults,
    fetched,
    go,
    heatmap_follows_the_threshold,
    listed,
    look_at_volume,
    open_folder,
    paint_and_compare,
    press,
    results_say_what_a_threshold_costs,
    served,
    until,
)

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture
def real_server(scans, tmp_path):
    """Serves the normal images; the abnormal ones are in a folder of their own."""
    pytest.importorskip("fastapi", reason="the server is not installed: pip install 'madclip[serve]'")
    for side in ("a_normal", "b_abnormal"):
        (tmp_path / side).mkdir()
        for file in scans.glob(f"{side}*"):
            shutil.copy(file, tmp_path / side)
    own = ("--project", tmp_path / "project", "--backbone", "stand-in", "--objective", "phantom")
    with served(tmp_path / "a_normal", *own) as server:
        server.abnormal = tmp_path / "b_abnormal"
        yield server


def by_name(page):
    go(page, "Images")
    page.wait_for_selector(".cell img")
    page.select_option("select >> nth=0", "name")
    until(page, "document.querySelector('.grid').ariaBusy === 'false'")
    assert page.locator(".cell .name").first.get_attribute("title").startswith("a_normal_00")


def train(page, number):
    """Trains quickly, and waits for detector so many in the list."""
    go(page, "Train")
    page.wait_for_selector(".strip img")
    page.get_by_text("More choices").click()
    page.get_by_label("Rounds over the images").fill("2")
    page.get_by_label("Parts for out-of-fold scores").fill("2")
    page.get_by_role("button", name="Train").click()
    until(page, f"document.querySelectorAll('.detectors li').length === {number}", 120)


def test_label_train_look_correct(opened, real_server, tmp_path):
    seen = opened(real_server.url)
    page = seen.page
    page.wait_for_selector(".cell img")
    open_folder(page, real_server.abnormal)
    until(page, "document.querySelector('.counts').textContent.includes('24 images')")

    by_name(page)
    press(page, "Home", *"nnnn", "n", "End", *["ArrowLeft"] * 4, *"aaaaa")
    until(page, "document.querySelector('.counts .abnormal').textContent === '5 abnormal'")
    press(page, "End", "Enter")
    page.wait_for_selector(".world .picture")
    paint_and_compare(page, real_server)

    train(page, 1)
    assert "out-of-fold AUROC, 95 % interval" in page.inner_text("#in-use")
    heatmap_follows_the_threshold(page, real_server)
    results_say_what_a_threshold_costs(page, real_server)

    page.get_by_role("button", name="Evaluate for a report").click()
    page.locator(".problem", has_text="has learned from every labelled image").wait_for()

    by_name(page)
    press(page, "Home", *["ArrowRight"] * 6, *"nn", "End", *["ArrowLeft"] * 6, *"aa")
    until(page, "document.querySelector('.counts .abnormal').textContent === '7 abnormal'")
    evaluate_and_export(page, real_server)

    by_name(page)
    press(page, "Home", "a", "End", "ArrowLeft", "n")
    train(page, 2)
    changed = page.locator(".detectors li").first.inner_text()
    assert re.search(r"2 labels? (added|changed)", changed), changed
    page.get_by_role("button", name="Use this one").click()
    until(page, "document.querySelectorAll('.detectors li')[1].classList.contains('active')")

    by_name(page)
    gone = listed(real_server)[5]
    page.locator(".cell").nth(5).click()
    press(page, "Delete")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    until(page, "document.querySelector('.counts').textContent.includes('23 images')")
    assert gone["id"] not in [one["id"] for one in listed(real_server)]
    assert len(list((tmp_path / "a_normal").iterdir())) == 12, "the file of an opened folder stays"

    draw_in_a_volume(page, real_server, tmp_path)
    marked = [one["frame"] for one in listed(real_server) if one["volume"] and one["mask"]]
    assert len(marked) == 2
    assert json.loads(fetched(real_server, "v1/project")[1])["counts"]["masks"] == 3


def test_normal_images_alone(opened, real_server):
    page = opened(real_server.url).page
    page.wait_for_selector(".cell img")
    by_name(page)
    press(page, "Home", *"nnnnnnnnnn")
    until(page, "document.querySelector('.counts .normal').textContent === '10 normal'")
    go(page, "Train")
    page.get_by_text("Without abnormal images it keeps what normal ones look like").wait_for()
    page.get_by_role("button", name="Train").click()
    until(page, "document.querySelectorAll('.detectors li').length === 1", 120)
    made = json.loads(fetched(real_server, "v1/detectors")[1])["detectors"][0]
    said = page.inner_text("#in-use")
    assert "no AUROC without abnormal images" in said
    assert f"{made['threshold']:.3f}" in said
    assert "10 + 0" in said
    curve = json.loads(fetched(real_server, f"v1/detectors/{made['id']}/curve")[1])
    above = sum(score >= made["threshold"] for score in curve["normal"])
    assert len(curve["normal"]) == 10
    assert page.locator("#wrong li").count() == above, "normal images that are unlike the other nine"
    assert faults(page) == []
    go(page, "Results")
    page.wait_for_selector("#costs")
    said = page.inner_text("#costs")
    assert "sensitivity: not known without abnormal images" in said
    assert f"{above} false alarm" in said
    assert "NaN" not in page.inner_text("main")

    # With the first abnormal images it learns anew, of both kinds.
    go(page, "Images")
    open_folder(page, real_server.abnormal)
    by_name(page)
    press(page, "End", "ArrowLeft", *"aa")
    train(page, 2)
    assert "out-of-fold AUROC, 95 % interval" in page.inner_text("#in-use")


def test_unevenly_spaced_slices_are_drawn_on_part_by_part(opened, tmp_path):
    heights = [0.0, 5.0, 10.0, 15.0, 17.5, 20.0, 22.5, 25.0, 27.5, 30.0]
    grey = np.random.default_rng(0).integers(0, 900, (len(heights), 20, 24)).astype(np.uint16)
    files = slices(tmp_path / "uneven", heights, grey)
    with served("--project", tmp_path / "project", "--backbone", "stand-in") as server:
        page = opened(server.url).page
        page.wait_for_selector("h2")
        number = add_volume(page, server, len(heights), *files)
        look_at_volume(page, server, number)
        assert "4 slices" in page.inner_text(".heading")
        page.get_by_label("Part").select_option("2: 6 slices")
        until(page, "document.querySelector('.heading').textContent.includes('6 slices')")
        page.wait_for_selector("[data-ready]")
        assert faults(page) == []
        drawn = drawn_voxels(page)
        # Columns of 1 mm and rows of 2 to the left and to the back, from a corner at 8 mm right and 6 mm front.
        affine = np.array([[-1, 0, 0, 8], [0, -2, 0, 6], [0, 0, 2.5, 17.5], [0, 0, 0, 1]])
        came_back(server, f"v1/volumes/{number}/mask.nii.gz?stretch=2", drawn, (24, 20, 6), affine)
        page.get_by_role("link", name="Slice by slice").click()
        for place in (1, 2, 3):
            page.locator(".heading", has_text=f"slice {place} of {len(heights)}").wait_for()
            press(page, "PageDown")
        marked = [number for number, one in enumerate(listed(server)) if one["mask"]]
        assert len(marked) == 2
        assert min(marked) >= 4, "no slice of the first part"
