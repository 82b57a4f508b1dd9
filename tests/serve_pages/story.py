"""What a user does on the pages, step by step, and what must be true after each: against any server of the contract."""

import gzip
import io
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

AXE = Path(__file__).parents[2] / "pages" / "node_modules" / "axe-core" / "axe.min.js"
FIRST_VOLUME = (
    "fetch('v1/images?limit=500').then(a => a.json()).then(said => said.images.find(one => one.volume)?.volume)"
)


@contextmanager
def served(*arguments):
    """A real server, on whatever it is given, while the context lasts."""
    command = [sys.executable, "-u", "-c", "from madclip.cli import main; main()", "serve", "--port", "0", *arguments]
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
    try:
        yield SimpleNamespace(url=found[0])
    finally:
        running.terminate()
        running.wait(20)


def fetched(server, path):
    with urllib.request.urlopen(server.url + path) as answer:
        return answer.headers, answer.read()


def listed(server, query="sort=name"):
    return json.loads(fetched(server, f"v1/images?{query}")[1])["images"]


def faults(page):
    """What axe finds, serious and critical; nothing where axe is not installed."""
    if not AXE.exists():
        return []
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(said => said.violations)")
    return [
        (fault["id"], [node["html"][:160] + node["failureSummary"][:300] for node in fault["nodes"]][:3])
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]


def open_folder(page, folder):
    page.get_by_role("button", name="Add images").first.click()
    page.get_by_placeholder("/home/me/scans").fill(str(folder))
    page.get_by_role("button", name="Open", exact=True).click()
    # It closes by itself, or says what it passed over; either when the list holds what has come.
    dialog = "document.querySelector('dialog')"
    until(page, f"!{dialog} || {dialog}.querySelector('[role=status]') && !{dialog}.querySelector('.primary').disabled")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    page.wait_for_selector(".cell img")


def until(page, expression, seconds=10):
    """Waits for an expression to be true; Playwright's own wait evaluates strings, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def eventually(page, holds, seconds=10):
    """Waits for something to be so on the server."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        page.wait_for_timeout(20)


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def go(page, name):
    page.get_by_role("navigation").get_by_role("link", name=name).click()


def label_by_keyboard(page):
    """4 + 4 right ones; then a normal image called abnormal and the other way round, by pointer."""
    press(page, "Home", "n", "n", "n", "n", "End", "ArrowLeft", "ArrowLeft", "ArrowLeft", "a", "a", "a", "a")
    for number, name in ((5, "Abnormal"), (12, "Normal")):
        page.locator(".cell").nth(number).click()
        page.get_by_role("toolbar").get_by_role("button", name=name, exact=False).first.click()


def train(page):
    go(page, "Train")
    page.wait_for_selector(".strip img")
    page.get_by_role("button", name="Train").click()
    page.get_by_role("heading", name="Trained").wait_for()


def paint_and_compare(page, server):
    """A dab by pointer and one by keyboard arrive in the mask where they were painted."""
    number = listed(server)[-1]["id"]
    press(page, "b")
    edge = page.locator(".world .picture").bounding_box()
    scale = edge["width"] / 128
    page.mouse.move(edge["x"] + 40.5 * scale, edge["y"] + 30.5 * scale)
    page.mouse.down()
    page.mouse.up()
    page.mouse.move(edge["x"] + 80.5 * scale, edge["y"] + 60.5 * scale)
    press(page, "ArrowRight", "ArrowRight", "ArrowDown", " ")
    until(page, "document.querySelector('#mask-state').textContent === 'not saved yet'")
    press(page, "s")
    until(page, "document.querySelector('#mask-state').textContent === 'saved'")
    mask = np.asarray(Image.open(io.BytesIO(fetched(server, f"v1/images/{number}/mask.png")[1])))
    rows, columns = np.mgrid[:96, :128]
    wanted = np.zeros((96, 128), bool)
    for row, column in ((30, 40), (61, 82)):
        wanted |= (rows - row) ** 2 + (columns - column) ** 2 <= 36
    assert set(np.unique(mask)) == {0, 255}
    assert np.count_nonzero((mask > 0) != wanted) < 12, "a mouse goes in whole screen pixels"
    assert listed(server)[-1]["mask"]


def heatmap_follows_the_threshold(page, server):
    go(page, "Images")
    page.wait_for_selector(".cell img")
    page.select_option("select >> nth=0", "score")
    until(page, "document.querySelector('.grid').ariaBusy === 'false'")
    page.locator(".cell").first.dblclick()
    page.wait_for_selector(".contour")
    number = int(page.url.rsplit("/", 1)[1])
    headers, data = fetched(server, f"v1/images/{number}/map")
    values = np.frombuffer(data, "<f4").reshape([int(side) for side in headers["X-Shape"].split(",")])
    paths = []
    for keys in ([], ["ArrowRight"] * 20, ["ArrowRight"] * 20, ["ArrowLeft"] * 60):
        page.focus("#level")
        press(page, *keys)
        level = float(page.input_value("#level"))
        paths.append(page.get_attribute(".contour", "d"))
        box = page.evaluate(
            "(({x, y, width, height}) => [x, y, x + width, y + height])(document.querySelector('.contour').getBBox())"
        )
        rows, columns = np.nonzero(values >= level)
        wanted = [columns.min() + 0.5, rows.min() + 0.5, columns.max() + 0.5, rows.max() + 0.5]
        outward = np.array(wanted) - box
        assert (outward * [1, 1, -1, -1] > -0.02).all(), "the line runs outside of every pixel that reaches it"
        assert (np.abs(outward) < 1.02).all(), "and by less than one pixel"
        assert f"{100 * (values >= level).mean():.1f} %" in page.inner_text("#share")
    assert len(set(paths)) == 4


def results_say_what_a_threshold_costs(page, server):
    go(page, "Results")
    page.wait_for_selector("#costs")
    number = json.loads(fetched(server, "v1/project")[1])["detector"]
    curve = json.loads(fetched(server, f"v1/detectors/{number}/curve")[1])
    for keys in ([], ["ArrowLeft"] * 60, ["ArrowRight"] * 90):
        page.focus("#what-if")
        press(page, *keys)
        threshold = float(page.input_value("#what-if")) if keys else curve["threshold"]
        found = sum(score >= threshold for score in curve["abnormal"])
        alarms = sum(score >= threshold for score in curve["normal"])
        said = page.inner_text("#costs")
        assert f"finds {found} of {len(curve['abnormal'])} abnormal" in said
        assert f"{alarms} false alarm" in said
    until(page, f"document.querySelectorAll('.gallery a').length === {min(60, len(listed(server)))}")  # and a button


def evaluate_and_export(page, server, seconds=120):
    """The report of images that were not learned from, and the detector as ONNX beside what it is here."""
    go(page, "Results")
    page.get_by_role("button", name="Evaluate for a report").click()
    page.get_by_role("link", name="Report").wait_for(timeout=1000 * seconds)
    assert "AUROC" in fetched(server, "v1/report.html")[1].decode()
    page.get_by_role("button", name="Export ONNX").click()
    page.get_by_text("onnx in the zip").wait_for(timeout=1000 * seconds)
    assert page.get_by_role("button", name="Export ONNX").count() == 0
    number = json.loads(fetched(server, "v1/project")[1])["detector"]
    with zipfile.ZipFile(io.BytesIO(fetched(server, f"v1/detectors/{number}/folder.zip")[1])) as packed:
        names = packed.namelist()
    assert any(name.endswith("detector.json") for name in names)
    assert any("engines/onnx-fp32/" in name and name.endswith(".onnx") for name in names)


def add_volume(page, server, count, *files):
    """Adds files of a volume of so many slices by the page, and gives its number."""
    before = len(listed(server, "limit=1000"))
    page.get_by_role("button", name="Add images").first.click()
    page.locator("input[type=file]").first.set_input_files(files)
    until(page, f"fetch('v1/images?limit=1').then(a => a.json()).then(said => said.total === {before + count})", 120)
    page.get_by_text(f"{count} images added").wait_for()
    return page.evaluate(FIRST_VOLUME)


def look_at_volume(page, server, number):
    page.goto(f"{server.url}#/volume/{number}")
    page.wait_for_selector("[data-ready]", timeout=120_000)
    assert page.locator(".stage.planes .message").count() == 0


def lies_as_slices_do(page):
    """The patient's right is at the left of axial slices, the front at the left of sagittal ones."""
    edge = page.locator(".stage.planes canvas").bounding_box()
    for plane, along in (("Sagittal", 1), ("Axial", 0)):
        page.get_by_role("button", name=plane).click()
        there = []
        for share in (0.42, 0.58, 0.5):  # and in the end it looks at the middle
            page.mouse.click(edge["x"] + share * edge["width"], edge["y"] + edge["height"] / 2)
            there.append(float(page.inner_text("#place").split(" mm")[0].split(",")[along]))
        assert there[0] > there[1], plane
    page.get_by_role("button", name="Three planes").click()


def drawn_voxels(page):
    """Two voxels, drawn by keyboard and saved: their millimetres as the page has shown them."""
    drawn = []
    press(page, "b", "[", "[")
    for keys in (["ArrowLeft"] * 3 + ["PageUp"], ["ArrowUp"] * 4 + ["PageDown"] * 5):
        press(page, *keys, " ")
        drawn.append([float(part) for part in page.inner_text("#place").split(" mm")[0].split(",")])
    press(page, "s")
    page.get_by_text("saved.").wait_for(timeout=60_000)
    return drawn


def came_back(server, path, drawn, shape, affine):
    """A mask holds the voxels that were drawn, on the grid of the volume."""
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed: pip install 'madclip[dicom]'")
    saved = nibabel.Nifti1Image.from_bytes(gzip.decompress(fetched(server, path)[1]))
    assert saved.get_data_dtype() == np.uint8
    assert saved.shape == shape
    assert np.allclose(saved.affine, affine, atol=1e-4)
    found = (np.argwhere(np.asarray(saved.dataobj)) @ affine[:3, :3].T + affine[:3, 3]).tolist()
    assert len(found) == len(drawn)
    assert np.allclose(sorted(found), sorted(drawn), atol=0.06)


def draw_in_a_volume(page, server, folder):
    """Two voxels, drawn by keyboard, come back at the millimetres that the page showed."""
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed: pip install 'madclip[dicom]'")
    # Left first, and axes in another order than right, anterior, superior.
    affine = np.array([[0, 0, -3.0, 40], [-1.5, 0, 0, 30], [0, 2.0, 0, -20], [0, 0, 0, 1]])
    cube = np.zeros((20, 24, 16), np.float32)
    cube[4:16, 5:20, 3:13] = 100
    nibabel.Nifti1Image(cube, affine).to_filename(folder / "head.nii.gz")
    number = add_volume(page, server, 24, folder / "head.nii.gz")
    look_at_volume(page, server, number)
    assert faults(page) == []
    lies_as_slices_do(page)
    came_back(server, f"v1/volumes/{number}/mask.nii.gz", drawn_voxels(page), cube.shape, affine)
