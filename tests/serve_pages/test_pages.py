"""The pages of `madclip serve` in a real browser, against a server that answers as the contract says."""

import gzip
import io
import json
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from fake_server import FakeServer, Project, anomaly_map
from PIL import Image

pytestmark = pytest.mark.browser
AXE = Path(__file__).parents[2] / "pages" / "node_modules" / "axe-core" / "axe.min.js"


def fetched(server, path):
    with urllib.request.urlopen(server.url + path) as answer:
        return answer.headers, answer.read()


def listed(server, query="sort=name"):
    return json.loads(fetched(server, f"v1/images?{query}")[1])["images"]


def open_folder(page, folder):
    page.get_by_role("button", name="Add images").first.click()
    page.get_by_placeholder("/home/me/scans").fill(str(folder))
    page.get_by_role("button", name="Open", exact=True).click()
    page.wait_for_selector(".cell img")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")


def until(page, expression, seconds=10):
    """Waits for an expression to be true; Playwright's own wait evaluates strings, which the page's policy forbids."""
    end = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def go(page, name):
    page.get_by_role("navigation").get_by_role("link", name=name).click()


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


def test_the_whole_story(opened, server, scans):
    page = opened(server.url).page
    assert "For research, not for diagnosis" in page.inner_text(".research")
    page.get_by_role("heading", name="No images yet").wait_for()
    open_folder(page, scans)
    assert page.locator(".cell").count() == 24

    label_by_keyboard(page)
    until(page, "document.querySelector('.counts .normal').textContent === '5 normal'")
    page.wait_for_timeout(200)
    labels = [one["label"] for one in listed(server)]
    assert labels[:4] == ["normal"] * 4
    assert labels[-4:] == ["abnormal"] * 4
    assert (labels[5], labels[12], labels.count(None)) == ("abnormal", "normal", 14)

    press(page, "u")
    until(page, "document.querySelector('.counts .normal').textContent === '4 normal'")
    page.locator(".cell").nth(12).click()
    press(page, "n")

    page.keyboard.press("End")
    page.keyboard.press("Enter")
    page.wait_for_selector(".world .picture")
    paint_and_compare(page, server)

    train(page)
    assert "out-of-fold AUROC, 95 % interval" in page.inner_text("#in-use")
    wrong = page.locator("#wrong li")
    until(page, "document.querySelectorAll('#wrong li').length === 2")
    for name in ("It is normal", "It is abnormal"):
        wrong.get_by_role("button", name=name, exact=True).first.click()
    page.get_by_text("2 labels corrected").wait_for()
    train(page)
    page.get_by_text("None of the labelled images").wait_for()
    assert "2 labels added, 0 removed" in page.locator(".detectors").inner_text()

    heatmap_follows_the_threshold(page, server)
    results_say_what_a_threshold_costs(page, server)

    go(page, "Train")
    page.get_by_role("button", name="Use this one").click()
    until(page, "document.querySelectorAll('.detectors li')[1].classList.contains('active')")

    go(page, "Images")
    page.wait_for_selector(".cell img")
    name = "a_normal_07.png"
    page.get_by_role("option").filter(has_text=name[-10:]).click()
    press(page, "Delete")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    until(page, "document.querySelector('.counts').textContent.includes('23 images')")
    assert name not in [one["name"] for one in listed(server)]


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
    assert page.inner_text("#mask-state") == "not saved yet"
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
        box = page.evaluate("(({x, y, width, height}) => [x, y, x + width, y + height])(document.querySelector('.contour').getBBox())")
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
    curve = json.loads(fetched(server, "v1/detectors/2/curve")[1])
    for keys in ([], ["ArrowLeft"] * 60, ["ArrowRight"] * 90):
        page.focus("#what-if")
        press(page, *keys)
        threshold = float(page.input_value("#what-if")) if keys else curve["threshold"]
        found = sum(score >= threshold for score in curve["abnormal"])
        alarms = sum(score >= threshold for score in curve["normal"])
        said = page.inner_text("#costs")
        assert f"finds {found} of {len(curve['abnormal'])} abnormal" in said
        assert f"{alarms} false alarm" in said
    assert page.locator(".gallery a").count() == 24


def test_a_label_of_another_browser_is_not_lost(opened, server, scans):
    here, there = opened(server.url), opened(server.url)
    here.expected = there.expected = ["409"]
    open_folder(here.page, scans)
    there.page.reload()
    there.page.wait_for_selector(".cell img")
    press(there.page, "Home", "a")
    until(there.page, "fetch('v1/images/1').then(a => a.json()).then(one => one.label === 'abnormal')")
    press(here.page, "Home", "n")
    here.page.get_by_text("another browser called it abnormal").wait_for()
    assert here.page.locator(".cell").first.locator(".tag").inner_text() == "abnormal"
    assert here.page.inner_text(".counts .abnormal") == "1 abnormal"
    assert listed(server)[0]["label"] == "abnormal"
    press(here.page, "Home", "n")  # and now it is meant
    here.page.wait_for_selector(".cell .tag.normal")
    here.page.wait_for_timeout(200)
    assert listed(server)[0]["label"] == "normal"


def test_ranges_and_many_at_once(opened, server, scans):
    page = opened(server.url).page
    open_folder(page, scans)
    press(page, "Home", "ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown")
    chosen = page.locator(".cell[aria-selected=true]").count()
    across = page.evaluate("new Set([...document.querySelectorAll('.cell')].map(c => c.getBoundingClientRect().x)).size")
    assert chosen == 2 + across
    press(page, "a")
    until(page, f"document.querySelector('.counts .abnormal').textContent === '{chosen} abnormal'")
    press(page, "u")
    until(page, "document.querySelector('.counts .abnormal').textContent === '0 abnormal'")
    page.wait_for_timeout(200)
    assert {one["label"] for one in listed(server)} == {None}


def test_thousands_of_images(opened):
    project = Project()
    pixels = np.full((32, 32), 90, np.uint8)
    for i in range(5000):
        project.add(f"{i:05d}.png", pixels)
    with FakeServer(project) as server:
        page = opened(server.url).page
        until(page, "document.querySelector('.cell img')?.naturalWidth > 0")
        until(page, "document.querySelector('.counts').textContent.includes('5,000 images')")
        assert page.evaluate("performance.now()") < 5000, "2 s where nothing else runs"
        assert page.locator(".cell").count() < 120, "only what is in view is in the page"
        press(page, "End")
        page.wait_for_selector(".name[title='04999.png']")
        frames = page.evaluate(
            """async () => {
              const grid = document.querySelector('.grid'), times = []
              for (let i = 0; i < 40; i++) {
                grid.scrollTop = (grid.scrollHeight * i) / 40
                const start = performance.now()
                await new Promise(requestAnimationFrame)
                times.push(performance.now() - start)
              }
              return times
            }"""
        )
        assert np.median(frames) < 100


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 390)])
def test_every_page_can_be_used_by_everyone(opened, server, scans, theme, width):
    if not AXE.exists():
        pytest.skip("axe-core is not installed: npm ci in pages/")
    page = opened(server.url, width=width, color_scheme=theme, bypass_csp=False).page
    page.wait_for_selector("h2")
    assert faults(page) == []
    open_folder(page, scans)
    label_by_keyboard(page)
    train(page)

    def fits():
        page.wait_for_timeout(100)
        assert faults(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out sideways"

    fits()
    for name in ("Results", "Images"):
        go(page, name)
        page.wait_for_selector("img")
        fits()
    page.get_by_role("button", name="Add images").first.click()
    fits()
    press(page, "Escape")
    page.focus(".grid")
    press(page, "Enter")
    page.wait_for_selector(".world .picture")
    fits()


def test_a_server_that_asks_for_a_token(opened, scans):
    with FakeServer(Project(token="open sesame")) as server:
        seen = opened(server.url)
        seen.expected = ["401"]
        seen.page.get_by_label("Token").fill("wrong")
        press(seen.page, "Enter")
        seen.page.get_by_text("This is not the token.").wait_for()
        seen.page.get_by_label("Token").fill("open sesame")
        press(seen.page, "Enter")
        open_folder(seen.page, scans)


def test_training_is_cancelled_and_failures_are_shown(opened, server, scans):
    server.project.step = 0.2
    seen = opened(server.url)
    seen.expected = ["404", "ERR_INTERNET_DISCONNECTED"]
    page = seen.page
    page.get_by_role("button", name="Add images").first.click()
    page.get_by_placeholder("/home/me/scans").fill("/nowhere")
    page.get_by_role("button", name="Open", exact=True).click()
    page.get_by_text("/nowhere is not a folder").wait_for()
    press(page, "Escape")
    open_folder(page, scans)
    label_by_keyboard(page)
    go(page, "Train")
    page.get_by_role("button", name="Train").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("heading", name="Training was cancelled").wait_for()
    page.context.set_offline(True)
    go(page, "Images")
    page.wait_for_selector(".cell")
    press(page, "Home", "ArrowRight", "c")
    page.locator(".banner").wait_for()
    assert "normal" in page.locator(".cell").nth(1).inner_text(), "a label that did not arrive is shown no longer"


def test_a_mask_drawn_in_a_volume_lies_where_it_was_drawn(opened, server, tmp_path):
    nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed: pip install 'madclip[dicom]'")
    # Left first, and axes in another order than right, anterior, superior.
    affine = np.array([[0, 0, -3.0, 40], [-1.5, 0, 0, 30], [0, 2.0, 0, -20], [0, 0, 0, 1]])
    cube = np.zeros((20, 24, 16), np.float32)
    cube[4:16, 5:20, 3:13] = 100
    nibabel.Nifti1Image(cube, affine).to_filename(tmp_path / "head.nii.gz")
    page = opened(server.url).page
    page.get_by_role("button", name="Add images").first.click()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "head.nii.gz")
    page.wait_for_selector(".cell img")
    press(page, "Enter")
    page.get_by_role("link", name="Three planes").click()
    page.wait_for_selector("[data-ready]")
    drawn = []
    press(page, "b", "[", "[")
    for keys in (["ArrowLeft"] * 3 + ["PageUp"], ["ArrowUp"] * 4 + ["PageDown"] * 5):
        press(page, *keys, " ")
        drawn.append([float(part) for part in page.inner_text("#place").split(" mm")[0].split(",")])
    press(page, "s")
    page.get_by_text("saved.").wait_for()
    saved = nibabel.Nifti1Image.from_bytes(gzip.decompress(fetched(server, "v1/volumes/1/mask.nii.gz")[1]))
    assert saved.get_data_dtype() == np.uint8
    assert saved.shape == cube.shape
    assert np.array_equal(saved.affine, affine)
    found = (np.argwhere(np.asarray(saved.dataobj)) @ affine[:3, :3].T + affine[:3, 3]).tolist()
    assert len(found) == len(drawn)
    assert np.allclose(sorted(found), sorted(drawn), atol=0.06)


def test_the_map_that_the_tests_expect_is_smooth_brightness():
    pixels = np.zeros((40, 40), np.uint8)
    pixels[18:22, 18:22] = 255
    values = anomaly_map(pixels)
    assert np.unravel_index(values.argmax(), values.shape) in {(19, 19), (19, 20), (20, 19), (20, 20)}
