"""What the API says of a project and of images, held against the files themselves."""

import io
import json
import re
import threading

import numpy as np
import pytest
from PIL import Image

from madclip.client import ServerError


@pytest.fixture(scope="module")
def project(served, tmp_path_factory, draw_images):
    folder = tmp_path_factory.mktemp("more")
    draw_images(folder, 6, prefix="z")
    ramp = np.add.outer(np.arange(300), np.arange(500)).astype(np.uint16) * 50
    Image.fromarray(ramp).save(folder / "wide.png")
    client = served.client()
    client.open_folder(folder)
    return client, folder, {image["name"]: image for image in client.images()}, ramp


def test_a_project_says_what_it_holds_and_keeps_its_settings(project):
    client, _, images, _ = project
    found = client.send("PATCH", "/v1/project", {"objective": " retinal OCT ", "tokens_limit": 10**9})
    assert found == client.get("/v1/project")
    assert (found["objective"], found["disk"]["tokens_limit"]) == ("retinal OCT", 10**9)
    assert found["counts"]["images"] == len(images)
    assert found["backbones"][:3] == ["stand-in", "tiny+lite0", "tiny"]
    text = client.raw("GET", "/metrics")[0].decode()
    for line in text.splitlines():
        assert line.startswith("# TYPE ") or re.fullmatch(r'\w+(\{\w+="\w+"\})? \d+', line), line
    assert f'madclip_images{{label="unlabelled"}} {len(images)}' in text
    assert client.get("/openapi.json")["openapi"].startswith("3.")


def test_pages_of_images_are_parts_of_one_order(project):
    client, _, images, _ = project
    names = sorted(images)
    parts = [client.get("/v1/images", offset=at, limit=3) for at in range(0, len(names), 3)]
    assert [image["name"] for part in parts for image in part["images"]] == names
    assert {part["total"] for part in parts} == {len(names)}
    assert [image["name"] for image in client.images(order="desc")] == names[::-1]
    assert client.get("/v1/images", label="normal")["total"] == 0


def test_the_most_alike_image_is_the_image_itself(project, eventually):
    client, _, images, _ = project
    eventually(lambda: all(job["state"] == "done" for job in client.get("/v1/jobs")["jobs"]), 60)
    one = images["z002.png"]["id"]
    found = list(client.images(sort="similarity", to=one))
    assert found[0]["id"] == one
    assert {image["id"] for image in found} == {image["id"] for image in images.values()}
    assert found[-1]["name"] == "wide.png"  # a ramp among noise


def test_pictures_show_what_the_file_holds(project):
    client, folder, images, ramp = project
    one = images["z001.png"]["id"]
    picture = Image.open(io.BytesIO(client.raw("GET", f"/v1/images/{one}/picture.png")[0]))
    assert np.array_equal(np.asarray(picture), np.asarray(Image.open(folder / "z001.png")))
    wide = images["wide.png"]["id"]
    small = Image.open(io.BytesIO(client.raw("GET", f"/v1/images/{wide}/thumbnail.jpg")[0]))
    assert small.size == (192, 115)
    content, headers = client.raw("GET", f"/v1/images/{wide}/pixels")
    assert np.array_equal(np.frombuffer(content, "<f4").reshape(300, 500), ramp)
    assert headers["x-range"] == "0.0,65535.0"
    shown = np.asarray(
        Image.open(io.BytesIO(client.raw("GET", f"/v1/images/{wide}/picture.png?low=1000&high=9000")[0]))
    )
    expected = ((ramp.astype(float) - 1000) / 8000).clip(0, 1) * 255
    assert np.abs(shown - expected).max() <= 0.5 + 1e-3


def test_a_file_that_could_not_be_read_is_tried_again_when_its_folder_is_opened_again(project):
    client, folder, images, _ = project
    number, file = images["z004.png"]["id"], folder / "z004.png"
    content = file.read_bytes()
    file.write_bytes(content[:200])
    with pytest.raises(ServerError, match=r"z004\.png"):
        client.raw("GET", f"/v1/images/{number}/thumbnail.jpg")
    assert "z004.png" in client.image(number)["error"]
    file.write_bytes(content)
    client.open_folder(folder)
    assert client.image(number)["error"] is None
    assert client.raw("GET", f"/v1/images/{number}/thumbnail.jpg")[0].startswith(b"\xff\xd8")


def test_a_manifest_from_elsewhere_says_what_it_knows(project):
    client, folder, images, _ = project
    mask = np.zeros((64, 64), np.uint8)
    mask[5:9, 5:9] = 255
    Image.fromarray(mask).save(folder / "outside.png")
    rows = [
        "image,label,mask",
        f"{folder / 'z001.png'},1,{folder / 'outside.png'}",
        "z002.png,normal,",
        "nobody.png,0,",
    ]
    text = "\n".join(rows).encode()
    read = json.loads(client.raw("POST", "/v1/manifest", text, {"content-type": "text/csv"})[0])
    assert read == {"labelled": 2, "masks": 1, "unknown": 1}
    kept = Image.open(io.BytesIO(client.raw("GET", f"/v1/images/{images['z001.png']['id']}/mask.png")[0]))
    assert np.array_equal(np.asarray(kept), mask)
    for row in ("z002.png,odd,", "z001.png,1,/etc/passwd", "z001.png,1,outside.png"):
        with pytest.raises(ServerError) as refused:
            client.raw("POST", "/v1/manifest", f"image,label,mask\n{row}\n".encode(), {"content-type": "text/csv"})
        assert refused.value.status == 422
        assert str(refused.value).startswith("manifest, row 2:")
    client.label_many([image["id"] for image in images.values()], None)


def test_two_browsers_do_not_lose_each_others_labels(served, project):
    """Many changes at once to the same images: each either counts or is refused, and the versions say how many did."""
    client, _, images, _ = project
    chosen = [images[name]["id"] for name in ("z003.png", "z004.png")]
    before = {number: client.image(number)["version"] for number in chosen}
    taken, refused = [], []

    def browse(label):
        own = served.client()
        for turn in range(20):
            image = own.image(chosen[turn % 2])
            try:
                own.label(image, label)
                taken.append(image["id"])
            except ServerError as error:
                refused.append(error.status)

    threads = [threading.Thread(target=browse, args=(label,)) for label in ("normal", "abnormal")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(taken) + len(refused) == 40
    assert set(refused) <= {409}
    for number in chosen:
        assert client.image(number)["version"] - before[number] == taken.count(number)
    client.label_many(chosen, None)
