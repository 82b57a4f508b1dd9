"""kill -9 of the server and of its processes at any moment: what was accepted is there, and every job ends."""

import os
import random
import signal
import threading
import time

import pytest

from madclip.client import ServerError


def uploading(server, folder, accepted, stop):
    """Sends files one after the other, and notes those that the server took."""
    client = server.client()
    for path in sorted(folder.iterdir()):
        if stop.is_set():
            return
        try:
            accepted += [image["name"] for image in client.upload(path)]
        except (OSError, ServerError):
            return


def kill_worker(server):
    workers = [number for number, module in server.children().items() if module == "madclip.serve.learning"]
    for number in workers:
        os.kill(number, signal.SIGKILL)


def check_whole(server, labelled, accepted):
    """Nothing that was accepted is lost, and nothing half written is shown."""
    client = server.client()
    images = {image["name"]: image for image in client.images()}
    assert set(accepted) <= set(images)
    assert {name: images[name]["label"] for name in labelled} == labelled
    for image in images.values():
        client.raw("GET", f"/v1/images/{image['id']}/thumbnail.jpg")
    for detector in client.detectors():
        client.raw("GET", f"/v1/detectors/{detector['id']}/folder.zip")
    detector = client.get("/v1/project")["detector"]
    for image in client.images():
        if image["row"] is None:
            continue
        try:
            assert len(client.raw("GET", f"/v1/images/{image['id']}/map")[0]) == 4 * 64 * 64
        except ServerError:  # only where another detector has come into use meanwhile
            assert client.get("/v1/project")["detector"] != detector
            break
    left = {path.name for folder in ("detectors", "maps") for path in (server.project / folder).iterdir()}
    running = {str(job["id"]) for job in client.get("/v1/jobs")["jobs"] if job["state"] in ("queued", "running")}
    assert left <= {str(detector["id"]) for detector in client.detectors()} | running | {"0"}


@pytest.mark.soak
def test_kills_at_any_moment(serve, tmp_path, draw_images, quick, eventually, soak):
    folder, more = tmp_path / "images", tmp_path / "more"
    folder.mkdir(), more.mkdir()
    truth = draw_images(folder, 12)
    server = serve()
    accepted = [image["name"] for image in server.client().upload(*sorted(folder.iterdir()))]
    labelled = {}
    for image in list(server.client().images())[:8]:
        labelled[image["name"]] = "abnormal" if truth[image["name"]] else "normal"
        server.client().label(image, labelled[image["name"]])
    dice = random.Random(11)
    for number in range(soak(20)):
        draw_images(more, 8, seed=100 + number, prefix=f"more{number:02d}_")
        job = server.client().fit(**{**quick, "changes": {**quick["changes"], "epochs": 6}})
        stop = threading.Event()
        sender = threading.Thread(target=uploading, args=(server, more, accepted, stop))
        sender.start()
        time.sleep(dice.uniform(0.1, 6))
        if number % 3 == 2:
            kill_worker(server)
        else:
            server.kill()
        stop.set()
        sender.join(60)
        if number % 3 != 2:
            server.start()
        check_whole(server, labelled, accepted)
        ended = eventually(
            lambda job=job: (now := server.client().job(job["id"]))["state"] in ("done", "failed", "cancelled") and now,
            120,
        )
        assert ended["state"] == "done" or ended["error"], ended
        check_whole(server, labelled, accepted)
        for path in more.iterdir():
            path.unlink()


@pytest.mark.soak
def test_a_job_that_ends_the_process_each_time_is_given_up(serve, tmp_path, draw_images, quick, eventually, soak):
    if soak(20) < 20:
        pytest.skip("starts the learning process four times")
    folder = tmp_path / "images"
    folder.mkdir()
    truth = draw_images(folder, 8)
    server = serve(folder)
    client = server.client()
    for image in client.images():
        client.label(image, "abnormal" if truth[image["name"]] else "normal")
    job = client.fit(folds=2, changes={**quick["changes"], "epochs": 4000})
    for _ in range(3):
        eventually(lambda: client.job(job["id"])["stage"] == "fit" and client.job(job["id"])["state"] == "running")
        kill_worker(server)
        time.sleep(0.3)
    ended = eventually(lambda: (now := client.job(job["id"]))["state"] == "failed" and now, 60)
    assert ended["error"] == "begun 3 times, and the process or the server ended each time"
    # The next one is done.
    assert client.wait(client.fit(**quick))["state"] == "done"


def test_a_job_can_be_cancelled_and_the_next_one_goes_on(serve, tmp_path, draw_images, quick, eventually):
    folder = tmp_path / "images"
    folder.mkdir()
    truth = draw_images(folder, 8)
    server = serve(folder)
    client = server.client()
    for image in client.images():
        client.label(image, "abnormal" if truth[image["name"]] else "normal")
    long = client.fit(folds=2, changes={**quick["changes"], "epochs": 4000})
    after = client.fit(**quick)
    eventually(lambda: client.job(long["id"])["stage"] == "fit")
    assert client.job(long["id"])["seconds_left"] is None or client.job(long["id"])["seconds_left"] > 0
    client.cancel(long["id"])
    last = list(server.client().watch(long["id"]))[-1]
    assert last["state"] == "cancelled"
    assert client.wait(after)["state"] == "done"
    assert [detector["id"] for detector in client.detectors()] == [after["id"]]
