"""The whole story through the API: open, label, fit, look, correct, refit, export, delete; held against the library."""

import ast
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from contextlib import closing
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from madclip import MadCLIP
from madclip.client import ServerError
from madclip.data.load import load_dataset
from madclip.prediction import Row


def png(values):
    out = io.BytesIO()
    Image.fromarray(values).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def story(serve, tmp_path, draw_images):
    folder = tmp_path / "images"
    folder.mkdir()
    truth = draw_images(folder, 24)
    server = serve(folder)
    return server, server.client(), folder, truth


def test_from_images_to_a_detector_that_is_corrected(story, tmp_path, quick):
    server, client, folder, truth = story
    images = list(client.images())
    assert [image["name"] for image in images] == sorted(truth)

    # Label: one by one, as two browsers would.
    for image in images[:8]:
        client.label(image, "abnormal" if truth[image["name"]] else "normal")
    with pytest.raises(ServerError) as stale:
        client.label(images[0], "abnormal")
    assert stale.value.status == 409
    assert stale.value.body["image"]["label"] == "normal"
    marked = client.image(images[1]["id"])
    drawn = np.zeros((64, 64), np.uint8)
    drawn[20:40, 20:40] = 255
    assert client.put_mask(marked, png(drawn))["mask"]
    found, _ = client.raw("GET", f"/v1/images/{marked['id']}/mask.png")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found))), drawn)

    # Learn, watched.
    seen = list(client.watch(client.fit(**quick)["id"]))
    assert seen[-1]["state"] == "done", seen[-1]
    # Whoever watches sees what there is when it changes; a stage that is over at once may be missed.
    assert len({job["stage"] for job in seen} & {"encode", "fit", "out-of-fold", "predict"}) >= 2
    assert any(job["loss"] is not None for job in seen)
    detector = client.detectors()[0]
    assert (detector["normal"], detector["abnormal"], detector["masks"]) == (4, 4, 1)
    assert detector["changed"] == "8 labels added"

    # What it says is what the library says, with the folder that was downloaded.
    archive, _ = client.raw("GET", f"/v1/detectors/{detector['id']}/folder.zip")
    zipfile.ZipFile(io.BytesIO(archive)).extractall(tmp_path / "got")
    model = MadCLIP.load(tmp_path / "got" / f"detector-{detector['id']}", device="cpu")
    images = list(client.images(sort="score"))
    scores = [image["row"]["score"] for image in images]
    assert scores == sorted(scores, reverse=True)
    for image in images[::8]:
        said = model.predict(folder / image["name"])
        expected = Row.of(image["name"], said).to_dict()
        assert image["row"].pop("score") == pytest.approx(expected.pop("score"), abs=1e-5)
        for key in ("probability", "p_value"):
            assert image["row"].pop(key) == pytest.approx(expected.pop(key), abs=1e-4)
        assert image["row"] == expected
        heat, headers = client.raw("GET", f"/v1/images/{image['id']}/map")
        assert headers["x-shape"] == "64,64"
        assert np.allclose(np.frombuffer(heat, "<f4").reshape(64, 64), said.anomaly_map, atol=1e-3)
    sent = client.predict(detector["id"], folder / images[0]["name"], "npy")
    assert sent["rows"][0]["score"] == pytest.approx(scores[0], abs=1e-5)

    # Correct what it gets wrong, and what to label next has reasons.
    curve = client.get(f"/v1/detectors/{detector['id']}/curve")
    wrong = client.get(f"/v1/detectors/{detector['id']}/wrong")["images"]
    assert len(wrong) == sum(s >= curve["threshold"] for s in curve["normal"]) + sum(
        s < curve["threshold"] for s in curve["abnormal"]
    )
    assert all((one["said"] == "anomalous") != (one["label"] == "abnormal") for one in wrong)
    suggested = client.next(5)
    assert [image["next"]["rank"] for image in suggested] == [1, 2, 3, 4, 5]
    assert all(image["label"] is None and image["next"]["reason"] for image in suggested)
    for image in suggested[:2]:
        client.label(image, "abnormal" if truth[image["name"]] else "normal")
    corrected = next(image for image in client.images() if image["label"] == "normal")
    client.label(corrected, "abnormal")
    client.wait(client.refit())
    second = client.detectors()[0]
    assert second["changed"] == "2 labels added, 1 label changed"
    assert second["active"]
    assert "before this refit" in second["uncalibrated"]
    back = json.loads(client.raw("POST", f"/v1/detectors/{detector['id']}/activate")[0])
    assert back["active"]
    assert client.image(images[0]["id"])["row"]["score"] == pytest.approx(scores[0], abs=1e-6)

    # The labels are a manifest that every command reads, and that this reads back.
    text, _ = client.raw("GET", "/v1/manifest.csv")
    (tmp_path / "manifest.csv").write_bytes(text)
    dataset = load_dataset(tmp_path / "manifest.csv")
    assert (len(dataset.normal), len(dataset.abnormal)) == (
        sum(image["label"] == "normal" for image in client.images()),
        sum(image["label"] == "abnormal" for image in client.images()),
    )
    assert dataset.has_masks
    numbers = [image["id"] for image in client.images()]
    before = {image["id"]: (image["label"], image["mask"]) for image in client.images()}
    client.label_many(numbers, None)
    read = json.loads(client.raw("POST", "/v1/manifest", text, {"content-type": "text/csv"})[0])
    assert read == {"labelled": 10, "masks": 1, "unknown": 0}
    assert {image["id"]: (image["label"], image["mask"]) for image in client.images()} == before

    results, _ = client.raw("GET", "/v1/results.csv")
    assert len(results.decode().splitlines()) == 25

    # Numbers of NumPy would be bytes in SQLite.
    with closing(sqlite3.connect(server.project / "project.sqlite")) as database:
        for (table,) in database.execute("select name from sqlite_master where type = 'table'").fetchall():
            for column in database.execute(f"pragma table_info({table})").fetchall():
                kinds = database.execute(f"select distinct typeof({column[1]}) from {table}").fetchall()
                assert (("blob",) in kinds) == ((table, column[1]) == ("feature", "pooled"))


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_lines_of_the_docs_do_what_they_say(serve, tmp_path, draw_images):
    (tmp_path / "work").mkdir()
    draw_images(tmp_path / "work", 5)
    for name, file in zip(("a", "b", "c", "d", "new"), sorted((tmp_path / "work").iterdir()), strict=True):
        file.rename(file.with_name(f"{name}.png"))
    voxels = np.random.default_rng(0).normal(100, 10, (32, 32, 3)).astype(np.float32)
    nibabel.Nifti1Image(voxels, np.eye(4)).to_filename(tmp_path / "work" / "new.nii.gz")
    text = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
    server = serve()
    python, shell = (
        re.search(rf"```{kind}\n(.*?)```", text, re.DOTALL)[1].replace("http://127.0.0.1:8765", server.url)
        for kind in ("python", "sh")
    )
    strict = f'set -eo pipefail\nPATH={Path(sys.executable).parent}:$PATH\ncurl() {{ command curl -sSf "$@"; echo; }}\n'
    how = {"cwd": tmp_path / "work", "capture_output": True, "text": True, "timeout": 200}
    said = subprocess.run(["bash", "-c", strict + shell], check=False, **how)
    assert said.returncode == 0, said.stderr
    assert '"state": "done"' in said.stdout
    assert json.loads(said.stdout.strip().splitlines()[-1])["rows"][0]["image"] == "new.png"
    assert len((tmp_path / "work" / "manifest.csv").read_text().splitlines()) == 5
    said = subprocess.run([sys.executable, "-c", python], check=False, **how)
    assert said.returncode == 0, said.stderr
    assert len(ast.literal_eval(said.stdout.splitlines()[-1])) == 3


def test_an_evaluation_measures_only_what_was_not_learned_from(story, quick):
    _, client, _, truth = story
    images = list(client.images())
    for kind in ("normal", "abnormal"):
        chosen = [i["id"] for i in images[:8] if truth[i["name"]] == (kind == "abnormal")]
        client.label_many(chosen, kind)
    client.wait(client.fit(**quick))
    with pytest.raises(ServerError, match="has learned from every labelled image"):
        client.wait(client.begin("evaluate"))
    for kind in ("normal", "abnormal"):
        chosen = [i["id"] for i in images[8:] if truth[i["name"]] == (kind == "abnormal")]
        client.label_many(chosen, kind)
    result = client.wait(client.begin("evaluate"))["result"]
    rows = {i["id"]: i["row"]["score"] for i in client.images()}
    pairs = [
        (rows[a["id"]] > rows[n["id"]]) + 0.5 * (rows[a["id"]] == rows[n["id"]])
        for a in images[8:]
        for n in images[8:]
        if truth[a["name"]] and not truth[n["name"]]
    ]
    assert result["image_auroc"] == pytest.approx(np.mean(pairs), abs=1e-9)
    page, headers = client.raw("GET", "/v1/report.html")
    assert b"Image AUROC" in page
    assert "sandbox" in headers["content-security-policy"]


def test_deleting_an_image_leaves_nothing_of_it(serve, tmp_path, draw_images, quick):
    folder = tmp_path / "images"
    folder.mkdir()
    truth = draw_images(folder, 8, prefix="CANARYNAME")
    server = serve()
    client = server.client()
    images = client.upload(*sorted(folder.iterdir()))
    assert {image["name"] for image in images} == set(truth)
    again = client.upload(folder / images[0]["name"])
    assert [image["id"] for image in again] == [images[0]["id"]]
    for image in images:
        client.label(image, "abnormal" if truth[image["name"]] else "normal")
    client.wait(client.fit(**quick))
    gone = client.image(images[1]["id"])
    client.put_mask(gone, png(np.full((64, 64), 255, np.uint8)))
    client.raw("GET", f"/v1/images/{gone['id']}/thumbnail.jpg")
    tokens = sum(1 for _ in (server.project / "tokens" / "images").glob("*.safetensors"))
    client.delete(gone["id"])
    with pytest.raises(ServerError) as missing:
        client.image(gone["id"])
    assert missing.value.status == 404
    left = [path.relative_to(server.project).as_posix() for path in server.project.rglob("*") if path.is_file()]
    number = gone["id"]
    assert not [name for name in left if name.endswith((f"/{number}.jpg", f"/{number}.npy"))]
    assert not [name for name in left if name.startswith(f"masks/{number}-")]
    assert len([name for name in left if name.startswith("uploads/")]) == 7
    assert sum(1 for _ in (server.project / "tokens" / "images").glob("*.safetensors")) == tokens - 1
    assert not list((server.project / "tokens" / "shots").glob("*.safetensors"))
    server.stop()
    for path in server.project.rglob("*"):
        if path.is_file():
            assert gone["name"].encode() not in path.read_bytes(), path
    assert (folder / gone["name"]).exists()


@pytest.mark.soak
@pytest.mark.skipif(os.environ.get("MADCLIP_SOAK") != "full", reason="tests/export traces models in CI")
def test_an_export_comes_with_the_folder(story, quick):
    pytest.importorskip("onnxruntime")
    _, client, _, truth = story
    for image in list(client.images())[:8]:
        client.label(image, "abnormal" if truth[image["name"]] else "normal")
    client.wait(client.fit(**quick))
    done = client.wait(client.begin("export", format="onnx"))
    assert done["result"]["check"]["images"] == 24
    detector = client.detectors()[0]
    assert detector["exports"] == ["onnx"]
    archive, _ = client.raw("GET", f"/v1/detectors/{detector['id']}/folder.zip")
    names = zipfile.ZipFile(io.BytesIO(archive)).namelist()
    assert f"detector-{detector['id']}/engines/onnx-fp32/engine.json" in names
