"""The pages of `madclip serve` in a real browser, against a server that answers as the contract says."""

import shutil

import numpy as np
import pytest
from fake_project import Project, anomaly_map
from fake_server import FakeServer
from story import (
    AXE,
    eventually,
    faults,
    go,
    label_by_keyboard,
    listed,
    open_folder,
    press,
    train,
    until,
)

pytestmark = pytest.mark.browser


def test_what_it_gets_wrong_is_one_click_from_being_corrected(opened, server, scans):
    page = opened(server.url).page
    assert "For research, not for diagnosis" in page.inner_text(".research")
    page.get_by_role("heading", name="No images yet").wait_for()
    open_folder(page, scans)
    assert page.locator(".cell").count() == 24

    label_by_keyboard(page)
    until(page, "document.querySelector('.counts .normal').textContent === '5 normal'")
    eventually(page, lambda: [one["label"] for one in listed(server)].count(None) == 14)
    labels = [one["label"] for one in listed(server)]
    assert labels[:4] == ["normal"] * 4
    assert labels[-4:] == ["abnormal"] * 4
    assert (labels[5], labels[12]) == ("abnormal", "normal")
    press(page, "u")
    until(page, "document.querySelector('.counts .normal').textContent === '4 normal'")
    page.locator(".cell").nth(12).click()
    press(page, "n")

    train(page)
    assert "out-of-fold AUROC, 95 % interval" in page.inner_text("#in-use")
    wrong = page.locator("#wrong li")
    until(page, "document.querySelectorAll('#wrong li').length === 2")
    for name in ("It is normal", "It is abnormal"):
        wrong.get_by_role("button", name=name, exact=True).first.click()
    page.get_by_text("2 labels corrected").wait_for()
    eventually(page, lambda: [listed(server)[number]["label"] for number in (5, 12)] == ["normal", "abnormal"])
    train(page)
    page.get_by_text("None of the labelled images").wait_for()
    assert "2 labels added, 0 removed" in page.locator(".detectors").inner_text()


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
    eventually(here.page, lambda: listed(server)[0]["label"] == "normal")


def test_what_another_browser_did_is_seen_on_the_way_to_train(opened, server, scans):
    server.project.step = 0.2
    here, there = opened(server.url), opened(server.url)
    open_folder(here.page, scans)
    there.page.reload()
    there.page.wait_for_selector(".cell img")
    press(here.page, "Home", "n", "n", "End", "a", "a")
    until(here.page, "document.querySelector('.counts .abnormal').textContent === '1 abnormal'")
    here.page.get_by_role("navigation").get_by_role("link", name="Train").click()
    here.page.get_by_role("button", name="Train").click()
    here.page.get_by_role("button", name="Cancel").wait_for()
    go(there.page, "Train")
    there.page.get_by_role("button", name="Cancel").click()
    here.page.get_by_role("heading", name="Training was cancelled").wait_for()


def test_a_broken_file_and_one_that_is_here_already(opened, server, scans, tmp_path):
    seen = opened(server.url)
    seen.expected = ["404"]
    page = seen.page
    open_folder(page, scans)
    (tmp_path / "broken.png").write_bytes(b"no image")
    shutil.copy(next(scans.glob("a_normal_00*")), tmp_path / "again.png")
    page.get_by_role("button", name="Add images").first.click()
    files = page.locator("input[type=file]").first
    files.set_input_files([tmp_path / "again.png", tmp_path / "broken.png"])
    page.get_by_text("1 image added.").wait_for()
    assert page.inner_text(".refused") == "broken.png This is no image that can be read."
    files.set_input_files([tmp_path / "again.png"])
    page.get_by_text("Nothing new, 1 here already.").wait_for()
    until(page, "document.querySelector('dialog') === null")

    number = server.project.images[3]["id"]
    server.project.images[3] |= {"label": "normal", "version": 2, "error": "a_normal_02.png: damaged"}
    page.reload()
    page.locator(f"#image-{number}").click()
    press(page, "a")
    page.get_by_text("a_normal_02.png cannot be read, so it gets no label.").wait_for()
    press(page, "Home", "n", "End", "a")
    go(page, "Train")
    page.get_by_text("What cannot be read is left out. Open its folder again once it can.").wait_for()
    assert listed(server)[2]["label"] == "normal"


def test_back_leads_to_the_images_after_many(opened, server, scans):
    page = opened(server.url).page
    open_folder(page, scans)
    press(page, "Home", "Enter")
    page.wait_for_selector(".world .picture")
    for number in (2, 3, 4):
        press(page, "ArrowRight")
        page.locator(".place", has_text=f"{number} / 24").wait_for()
    page.go_back()
    page.wait_for_selector(".cell[aria-posinset='4'][aria-selected='true']")


def test_training_that_ends_elsewhere_is_told(opened, server, scans):
    server.project.step = 0.05
    page = opened(server.url).page
    open_folder(page, scans)
    label_by_keyboard(page)
    go(page, "Train")
    page.get_by_role("button", name="Train").click()
    page.get_by_role("button", name="Cancel").wait_for()
    go(page, "Images")
    page.get_by_text("Trained: scores and heatmaps are those of the new detector.").wait_for()

    server.project.fault = "took more than 2.0 GB of memory"
    go(page, "Train")
    page.get_by_role("button", name="Train again").click()
    page.get_by_role("button", name="Cancel").wait_for()
    page.goto("about:blank")
    eventually(page, lambda: server.project.jobs[2]["state"] == "failed")
    page.goto(f"{server.url}#/train")
    page.get_by_role("heading", name="Training failed").wait_for()
    page.get_by_text("took more than 2.0 GB of memory").wait_for()


def test_ranges_and_many_at_once(opened, server, scans):
    page = opened(server.url).page
    open_folder(page, scans)
    press(page, "Home", "ArrowRight", "Shift+ArrowRight", "Shift+ArrowDown")
    chosen = page.locator(".cell[aria-selected=true]").count()
    across = page.evaluate(
        "new Set([...document.querySelectorAll('.cell')].map(c => c.getBoundingClientRect().x)).size"
    )
    assert chosen == 2 + across
    press(page, "a")
    until(page, f"document.querySelector('.counts .abnormal').textContent === '{chosen} abnormal'")
    press(page, "u")
    until(page, "document.querySelector('.counts .abnormal').textContent === '0 abnormal'")
    eventually(page, lambda: {one["label"] for one in listed(server)} == {None})


def test_thousands_of_images(opened):
    project = Project()
    pixels = np.full((32, 32), 90, np.uint8)
    for i in range(5000):
        project.add(f"{i:05d}.png", pixels)
    with FakeServer(project) as server:
        page = opened(server.url).page
        until(page, "document.querySelector('.cell img')?.naturalWidth > 0")
        until(page, "document.querySelector('.counts').textContent.includes('5,000 images')")
        assert page.locator(".cell").count() < 120, "only what is in view is in the page"
        press(page, "End")
        page.wait_for_selector(".name[title='04999.png']")


def test_slow_thumbnails_hold_up_no_click(opened):
    project = Project()
    for i in range(40):
        project.add(f"{i:05d}.png", np.full((32, 32), 90, np.uint8))
    with FakeServer(project) as server:
        server.thumbnails.clear()
        try:
            page = opened(server.url).page
            page.locator(".cell").nth(3).click()
            press(page, "n")
            eventually(page, lambda: any(one["label"] == "normal" for one in project.images.values()))
        finally:
            server.thumbnails.set()
        until(page, "[...document.querySelectorAll('.cell img')].every(one => one.naturalWidth > 0)")


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
        until(page, "document.querySelector('[aria-busy=true]') === null")
        page.evaluate("Promise.allSettled(document.getAnimations().map(one => one.finished))")
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
    page.get_by_role("button", name="Brush").click()  # and the pointer stays there
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
    listed = page.get_by_label("Backbone").locator("option")
    listed.nth(2).wait_for(state="attached")
    shown = listed.all_inner_texts()
    learned = "learned from drawn images"
    assert shown == ["stand-in", f"tiny+lite0: {learned} and photographs", f"tiny: {learned}"]
    page.get_by_role("button", name="Train").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("heading", name="Training was cancelled").wait_for()
    page.context.set_offline(True)
    go(page, "Images")
    page.wait_for_selector(".cell")
    # Suggestions may have put others first in the meantime.
    cell = page.locator(".cell:has(.tag.normal)").first
    image = cell.get_attribute("id")
    cell.click()
    press(page, "c")
    page.locator(".banner").wait_for()
    page.locator(f"#{image} .tag.normal").wait_for()  # a label that did not arrive is shown as it was


def test_the_map_that_the_tests_expect_is_smooth_brightness():
    pixels = np.zeros((40, 40), np.uint8)
    pixels[18:22, 18:22] = 255
    values = anomaly_map(pixels)
    assert np.unravel_index(values.argmax(), values.shape) in {(19, 19), (19, 20), (20, 19), (20, 20)}


def test_by_touch(opened, server, scans):
    page = opened(server.url, width=390, height=844, has_touch=True, is_mobile=True).page
    open_folder(page, scans)
    touch = page.context.new_cdp_session(page)

    def fingers(kind, *points):
        given = [{"x": x, "y": y, "id": finger} for finger, (x, y) in enumerate(points)]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": given})

    def swipe(*heights):
        fingers("Start", (195, heights[0]))
        for height in heights[1:]:
            fingers("Move", (195, height))
        page.wait_for_timeout(200)  # a finger that rests before it leaves gives no momentum, however slow the machine
        fingers("End")

    swipe(*range(660, 360, -20))
    until(page, "document.querySelector('.grid').scrollTop > 200")
    swipe(*range(360, 760, 20))
    until(page, "document.querySelector('.grid').scrollTop === 0")
    page.locator(".cell[aria-posinset='2']").tap()
    page.get_by_role("toolbar").get_by_role("button", name="Abnormal").tap()
    page.wait_for_selector(".cell .tag.abnormal")
    page.locator(".cell[aria-posinset='3']").tap()
    page.locator(".actions .open").tap()
    page.wait_for_selector(".world .picture")
    assert page.url.endswith(f"#/image/{listed(server, 'sort=name')[2]['id']}")
    page.get_by_role("button", name="Next image").tap()
    number, name = (listed(server, "sort=name")[3][fact] for fact in ("id", "name"))
    page.wait_for_selector(f".stage[aria-label^='{name}']")  # and no longer the one before
    assert page.url.endswith(f"#/image/{number}")

    page.get_by_role("button", name="Brush").tap()
    edge = page.locator(".world .picture").bounding_box()
    scale = edge["width"] / 128

    def at(column, row):
        return edge["x"] + (column + 0.5) * scale, edge["y"] + (row + 0.5) * scale

    fingers("Start", at(30, 40))
    for column in range(35, 71, 5):
        fingers("Move", at(column, 40))
    fingers("End")
    until(page, "document.querySelector('#mask-state').textContent === 'not saved yet'")
    assert page.evaluate("scrollY") == 0, "the page stays where it is under a finger that paints"
    page.get_by_role("button", name="Save").scroll_into_view_if_needed()
    page.wait_for_timeout(500)  # sooner than a hand can be, a touch is taken for the second of a double tap
    page.get_by_role("button", name="Save").tap()
    until(page, "document.querySelector('#mask-state').textContent === 'saved'")
    rows, columns = np.nonzero(server.project.masks[number])
    assert (abs(columns.min() - 24), abs(columns.max() - 76), abs(rows.min() - 34), abs(rows.max() - 46)) <= (1,) * 4
    assert server.project.masks[number][40, 30:71].all()

    page.evaluate("scrollTo(0, 0)")  # the page has moved to show the button
    edge = page.locator(".world .picture").bounding_box()
    fingers("Start", at(60, 40), at(70, 40))
    fingers("Move", at(50, 40), at(70, 40))
    fingers("Move", at(50, 40), at(90, 40))
    fingers("End")
    width = "document.querySelector('.world .picture').getBoundingClientRect().width"
    until(page, f"{width} > {2 * edge['width']}")  # two fingers make it larger
    assert page.inner_text("#mask-state") == "saved", "and paint nothing"
