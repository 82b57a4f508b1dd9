"""The whole story on the pages of a real server, which learns with the stand-in backbone."""

import json
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from story import (
    draw_in_a_volume,
    fetched,
    go,
    heatmap_follows_the_threshold,
    listed,
    open_folder,
    paint_and_compare,
    press,
    results_say_what_a_threshold_costs,
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
    command = [sys.executable, "-u", "-c", "from madclip.cli import main; main()", "serve", tmp_path / "a_normal"]
    command += ["--project", tmp_path / "project", "--port", "0", "--backbone", "stand-in", "--objective", "phantom"]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    said = ""
    for line in running.stdout:
        said += line
        if found := re.search(r"http://\S+/", line):
            break
    else:
        pytest.fail(said)
    yield SimpleNamespace(url=found[0], abnormal=tmp_path / "b_abnormal")
    running.terminate()
    running.wait(20)


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
