"""Requests that mean harm, or that nobody thought of: the right refusal, and a server that goes on."""

import http.client
import io
import json
import struct
import zipfile
import zlib
from contextlib import suppress

import numpy as np
import pydicom
import pytest
from PIL import Image
from scanner import dicom, save

from madclip.client import Client, ServerError

JSON = {"content-type": "application/json", "x-madclip": "1"}


def ask(server, method, path, body=None, headers=None):
    """A raw request; every answer that is no success has one clear line and says nothing of the program."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, body, headers if headers is not None else {"x-madclip": "1"})
        answer = connection.getresponse()
        content = answer.read()
        if answer.status >= 400:
            said = json.loads(content)["error"]
            assert said["code"]
            assert said["message"]
            assert "\n" not in said["message"]
            for trace in ("Traceback", 'File "', ".py"):
                assert trace not in said["message"]
        return answer.status, content, {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()


def files(*named, field="files"):
    """A multipart body, with names just as they are."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'.encode() + content + b"\r\n"
        for name, content in named
    ]
    return b"".join([*parts, b"--x--\r\n"]), {"content-type": "multipart/form-data; boundary=x", "x-madclip": "1"}


def png(size=(64, 64), value=100):
    out = io.BytesIO()
    Image.fromarray(np.full(size, value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width, height, stream=b""):
    """A PNG whose header says how large it is, and whose pixels may not be there."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", stream or zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


ORIGINS = [
    {"host": "evil.example"},
    {"host": "evil.example:8765"},
    {"host": ""},
    {"host": "127.0.0.1.evil.example"},
    {"host": "localhost.evil.example"},
    {"host": "169.254.169.254"},
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
]


@pytest.mark.parametrize("headers", ORIGINS, ids=str)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_of_another_origin_can_neither_read_nor_write(served, method, headers):
    body = json.dumps({"ids": [1], "label": "normal"}).encode() if method == "POST" else None
    path = "/v1/labels" if method == "POST" else "/v1/images"
    status, _, got = ask(served, method, path, body, {"x-madclip": "1", "content-type": "application/json", **headers})
    assert status == 403
    assert "access-control-allow-origin" not in got


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"])
def test_what_a_form_can_send_without_asking_changes_nothing(served, kind):
    assert ask(served, "POST", "/v1/labels", b'{"ids":[1],"label":"normal"}', {"content-type": kind})[0] == 403
    assert served.client().image(1)["label"] is None


def test_every_answer_says_what_a_browser_may_do_with_it(served):
    for path in ("/", "/v1/project", "/healthz", "/v1/images/1/thumbnail.jpg", "/nothing"):
        _, _, headers = ask_any(served, path)
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "script-src 'self' 'wasm-unsafe-eval'" in policy
        assert "unsafe-inline" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"


def ask_any(server, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    found = answer.status, answer.read(), {name.lower(): value for name, value in answer.getheaders()}
    connection.close()
    return found


TRAVERSAL = [
    "/../../etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/assets/../../app.py",
    "/assets/..%2f..%2fapp.py",
    "/..%5c..%5capp.py",
    "//etc/passwd",
    "/assets//etc/passwd",
    "/__init__.py",
    "/v1/images/..%2f1",
    "/v1/../v1/secret",
    "/%00",
    "/v1/images/1/../../../project.sqlite",
]


@pytest.mark.parametrize("path", TRAVERSAL)
def test_no_name_builds_a_path(served, path):
    status, content, _ = ask_any(served, path)
    assert status in (404, 422, 403)
    assert b"root:" not in content


FOLDERS = ["relative", "/no/such/folder", "", "/etc/passwd", "\0", "~root", "a" * 5000, "/proc/self/fd", "../.."]


@pytest.mark.parametrize("path", FOLDERS, ids=lambda path: path[:12])
def test_folders_that_cannot_be_opened(served, path):
    assert ask(served, "POST", "/v1/folders", json.dumps({"path": path}).encode(), JSON)[0] == 422


def test_the_project_itself_cannot_be_opened_as_images(served):
    for path in (served.project, served.project.parent, served.project / "uploads"):
        assert ask(served, "POST", "/v1/folders", json.dumps({"path": str(path)}).encode(), JSON)[0] == 422


def test_a_link_opens_nothing_beyond_the_folder(served, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "secret.png").write_bytes(png(value=7))
    (tmp_path / "open" / "good.png").write_bytes(png(value=9))
    (tmp_path / "open" / "link.png").symlink_to(tmp_path / "secret.png")
    client = served.client()
    found = client.open_folder(tmp_path / "open")
    assert found["added"] == 1
    assert found["passed_over"] == {"links out of the folder": 1}
    # One that is put there later leads nowhere either.
    image = next(image for image in client.images() if image["name"] == "good.png" and not image["error"])
    (tmp_path / "open" / "good.png").unlink()
    (tmp_path / "open" / "good.png").symlink_to(tmp_path / "secret.png")
    assert ask(served, "GET", f"/v1/images/{image['id']}/pixels")[0] == 422


BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"x"',
    b"\xff\xfe",
    b'{"label": "normal"}',
    b'{"label": "odd", "version": 1}',
    b'{"label": "normal", "version": 1e400}',
    b'{"label": "normal", "version": -1e400}',
    b'{"label": "normal", "version": NaN}',
    b'{"label": "normal", "version": Infinity}',
    b'{"label": "normal", "version": "1; drop table image"}',
    b'{"label": "normal", "version": 99999999999999999999999999}',
    b'{"label": "normal", "version": 0}',
    b'{"label": "normal", "version": 1.5}',
    b'{"label": {"$ne": null}, "version": 1}',
    b'{"label": "normal", "version": 1, "__proto__": {}}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"label": "normal", "version": ' + b"9" * 5000 + b"}",
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:40]))
def test_bodies_that_make_no_sense(served, body):
    assert ask(served, "PUT", "/v1/images/1/label", body, JSON)[0] in (400, 422)
    assert served.client().image(1)["label"] is None


PARAMETERS = [
    {"epochs": 1e9},
    {"epochs": "many"},
    {"nonsense": 1},
    {"image_size": -5},
    {"variants": ["identity", "../../x"]},
    {"learning_rate": -1},
]


@pytest.mark.parametrize("changes", PARAMETERS, ids=str)
def test_recipes_that_make_no_sense_are_refused_before_anything_is_queued(served, changes):
    body = json.dumps({"kind": "fit", "parameters": {"changes": changes}}).encode()
    jobs = len(served.client().get("/v1/jobs")["jobs"])
    assert ask(served, "POST", "/v1/jobs", body, JSON)[0] == 422
    assert len(served.client().get("/v1/jobs")["jobs"]) == jobs


@pytest.mark.parametrize(
    "wanted",
    [
        {"kind": "format-disk"},
        {"kind": "fit", "parameters": {"folds": -1}},
        {"kind": "fit", "parameters": {"operating_point": "sens=2"}},
        {"kind": "fit", "parameters": {"recipe": "none"}},
        {"kind": "export", "parameters": {"format": "../pt2"}},
        {"kind": "predict", "parameters": {"ids": [-1]}},
    ],
    ids=str,
)
def test_jobs_that_make_no_sense(served, wanted):
    assert ask(served, "POST", "/v1/jobs", json.dumps(wanted).encode(), JSON)[0] == 422


@pytest.mark.parametrize("kind", ["refit", "evaluate", "export"])
def test_jobs_that_need_a_detector(served, kind):
    assert ask(served, "POST", "/v1/jobs", json.dumps({"kind": kind}).encode(), JSON)[0] == 409


@pytest.mark.parametrize("backbone", ["/etc/passwd", "../x", "openai/clip-vit-base-patch32", "http://evil.example/x"])
def test_a_backbone_is_one_of_those_that_are_here(served, backbone):
    assert ask(served, "PATCH", "/v1/project", json.dumps({"backbone": backbone}).encode(), JSON)[0] == 422


QUERIES = [
    "limit=0",
    "limit=1001",
    "limit=x",
    "offset=-1",
    "offset=99999999999999999999",
    "sort=password",
    "order=up",
    "label=x",
    "verdict=x",
    "sort=similarity",
    "sort=similarity&to=0",
    "sort=similarity&to=99999",
    "to=1e400",
]


@pytest.mark.parametrize("query", QUERIES)
def test_queries_that_make_no_sense(served, query):
    assert ask(served, "GET", f"/v1/images?{query}")[0] == 422


@pytest.mark.parametrize("query", ["low=1", "low=5&high=1", "low=nan&high=1", "low=1&high=1e400", "low=-inf&high=inf"])
def test_windows_that_make_no_sense(served, query):
    assert ask(served, "GET", f"/v1/images/1/picture.png?{query}")[0] == 422


NUMBERS = ["0", "-1", "x", "1.5", "99999999999999999999", "1;drop", "%00", "１"]


@pytest.mark.parametrize("number", [*NUMBERS, "4711"])
def test_things_that_are_not_there(served, number):
    from urllib.parse import quote

    for path in (
        "images/{}",
        "images/{}/map",
        "jobs/{}",
        "jobs/{}/events",
        "detectors/{}/curve",
        "volumes/{}/image.nii.gz",
    ):
        assert ask(served, "GET", "/v1/" + path.format(quote(number, safe="%")))[0] in (404, 422)


BAD_FILES = {
    "empty": b"",
    "text": b"hello",
    "html": b"<html><script>alert(1)</script></html>",
    "bomb in the header": bomb(100_000, 100_000),
    "bomb in the stream": bomb(8000, 8000, zlib.compress(b"\0" * 8001 * 100)),
    "cut": png()[:60],
    "zip": b"PK\x03\x04" + b"\0" * 100,
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
    "numpy objects": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (64, 64), }".ljust(128)
    + b"\n",
    "dicom without pixels": b"\0" * 128 + b"DICM" + b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\x00",
    "tiff in a circle": b"II*\0\x08\0\0\0\x01\0\0\x01\x03\0\x01\0\0\0\x40\0\0\0\x08\0\0\0",
    "gzip bomb": b"\x1f\x8b\x08" + b"\0" * 7 + zlib.compress(b"\0" * 10**6)[2:],
    "tiny": png((2, 2)),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_files_that_are_no_images_are_refused_and_not_kept(served, what):
    before = set((served.project / "uploads").iterdir())
    body, headers = files(("x.png", BAD_FILES[what]), ("good.png", png(value=100 + len(what))))
    status, content, _ = ask(served, "POST", "/v1/uploads", body, headers)
    assert status == 201
    answer = json.loads(content)
    if what not in ("tiny", "bomb in the stream"):  # which are images, though nobody learns from them
        assert [one["name"] for one in answer["refused"]] == ["x.png"]
        assert str(served.project) not in answer["refused"][0]["error"]
        assert len(set((served.project / "uploads").iterdir()) - before) <= 1
    assert any(image["name"] == "good.png" for image in answer["images"])
    assert not list((served.project / "work").glob("upload-*"))


NAMES = [
    "<script>alert(1)</script>.png",
    "../../../../tmp/evil.png",
    "..\\\\..\\\\evil.png",
    "C:\\\\evil.png",
    "/etc/cron.d/evil.png",
    "con.png",
    "a" * 3000 + ".png",
    "=cmd|calc!A1.png",
    "",
    "\u202egnp.exe",
    "'; drop table image; --.png",
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name[:16])
def test_names_are_shown_and_build_nothing(served, name):
    value = 10 + NAMES.index(name)
    body, headers = files((name.replace('"', ""), png((70, 70), value)))
    status, content, headers = ask(served, "POST", "/v1/uploads", body, headers)
    if status == 422:  # an empty name is no file
        assert name == ""
        return
    assert status == 201
    assert headers["content-type"] == "application/json"
    kept = json.loads(content)["images"][0]
    assert "/" not in kept["name"]
    assert "\\" not in kept["name"]
    assert len(kept["name"]) <= 200
    assert all(path.name.split(".")[0].isalnum() for path in (served.project / "uploads").iterdir())
    table, _ = served.client().raw("GET", "/v1/results.csv")
    assert b"\n=cmd" not in table


def test_a_file_that_ends_its_reader_does_not_end_the_server(served, eventually):
    import os
    import signal

    ask(served, "GET", "/v1/images/1/pixels")
    for number, module in served.children().items():
        if module == "madclip.serve.reading":
            os.kill(number, signal.SIGKILL)
    status, _, _ = ask(served, "GET", "/v1/images/1/pixels")
    assert status in (200, 422)
    assert eventually(lambda: ask(served, "GET", "/v1/images/1/pixels")[0] == 200)


@pytest.mark.parametrize("version", ["", "x", "-1", '"2', "1e9", "9" * 39, "*"])
def test_versions_of_masks_that_make_no_sense(served, version):
    headers = {"x-madclip": "1", "content-type": "image/png", "if-match": version}
    assert ask(served, "PUT", "/v1/images/1/mask.png", png(), headers)[0] in (409, 422)


@pytest.mark.parametrize(
    "mask",
    [b"", b"x", png((10, 10), 255), png((64, 64), 100), bomb(50_000, 50_000), png((64, 64), 255)[:50]],
    ids=["empty", "no PNG", "size", "values", "bomb", "cut"],
)
def test_masks_that_are_none(served, mask):
    headers = {"x-madclip": "1", "content-type": "image/png", "if-match": str(served.client().image(1)["version"])}
    assert ask(served, "PUT", "/v1/images/1/mask.png", mask, headers)[0] == 422
    assert not served.client().image(1)["mask"]


def test_bodies_that_are_too_large_are_refused_before_they_are_read(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.putrequest("POST", "/v1/labels")
    for name, value in {**JSON, "content-length": str(10**12)}.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_a_body_that_does_not_say_how_large_it_is_is_counted(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.putrequest("POST", "/v1/labels")
    for name, value in {**JSON, "transfer-encoding": "chunked"}.items():
        connection.putheader(name, value)
    connection.endheaders()
    part = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    try:
        for _ in range(160):
            connection.send(part)
        connection.send(b"0\r\n\r\n")
    except OSError:
        pass  # it hangs up once it has answered
    with suppress(http.client.HTTPException, OSError):
        assert connection.getresponse().status == 413
    connection.close()
    assert ask(served, "GET", "/healthz")[0] == 200


def test_an_archive_that_grows_without_end_is_no_study(served):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("big.png", b"\0" * 50_000_000)
    body, headers = files(("study.zip", out.getvalue()), field="file")
    assert ask(served, "POST", "/v1/detectors/1/predict", body, headers)[0] == 404


def test_tokens(serve, tmp_path):
    tokens = tmp_path / "tokens"
    server = serve(options=("--token-file", tokens, "--host", "127.0.0.1"))
    token = next(line.split()[-1] for line in server.lines if "token, shown this once" in line)
    assert token not in tokens.read_text()
    assert tokens.stat().st_mode & 0o077 == 0
    for path in ("/v1/images", "/metrics", "/openapi.json", "/v1/jobs/1/events", "/v1/images/1/thumbnail.jpg"):
        assert ask(server, "GET", path, headers={})[0] == 401
    assert ask(server, "GET", "/healthz", headers={})[0] == 200
    assert next(iter(server.client(token=token).images()), None) is None
    # No folder of the server's machine is opened from elsewhere.
    with pytest.raises(ServerError) as refused:
        server.client(token=token).open_folder(tmp_path)
    assert refused.value.status == 403

    # A browser logs in, and its cookie is nothing that scripts or other pages can use.
    body = json.dumps({"token": token}).encode()
    status, _, headers = ask(server, "POST", "/v1/session", body, JSON)
    assert status == 204
    cookie = headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "samesite=strict" in cookie.lower()
    assert token not in cookie
    own = {"cookie": cookie.partition(";")[0]}
    assert ask(server, "GET", "/v1/images", headers=own)[0] == 200
    assert ask(server, "DELETE", "/v1/session", headers={**own, "x-madclip": "1"})[0] == 204
    assert ask(server, "GET", "/v1/images", headers=own)[0] == 401
    # Whoever is logged in when the server is started again, perhaps without that token, is so no longer.
    own = {"cookie": ask(server, "POST", "/v1/session", body, JSON)[2]["set-cookie"].partition(";")[0]}
    assert ask(server, "GET", "/v1/images", headers=own)[0] == 200
    server.stop()
    server.start()
    assert ask(server, "GET", "/v1/images", headers=own)[0] == 401

    forged = ["x", token[:-1], token + "x", token.swapcase(), "Bearer", "", "'or'1'='1", "0" * 64, token[::-1]]
    for one in forged:
        assert ask(server, "GET", "/v1/images", headers={"authorization": f"Bearer {one}"})[0] == 401
    assert ask(server, "GET", "/v1/images", headers={"authorization": f"Basic {token}"})[0] == 401
    assert ask(server, "GET", "/v1/images", headers={"cookie": "madclip=" + "0" * 43})[0] == 401
    # Whoever guesses is slowed down.
    statuses = [ask(server, "GET", "/v1/images", headers={"authorization": "Bearer x"})[0] for _ in range(3)]
    assert statuses[-1] == 429
    log = (server.project / "audit.log").read_text()
    assert "wrong token" in log
    assert token not in log


def test_one_project_has_one_server(served, serve):
    with pytest.raises(AssertionError, match="another server has this project open"):
        serve(project=served.project)


def test_others_are_served_with_a_token_only(tmp_path):
    import subprocess
    import sys

    code = "from madclip.cli import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "serve",
        "--project",
        str(tmp_path / "p"),
        "--host",
        "0.0.0.0",
        "--port",
        "0",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --host 0.0.0.0 serves other machines too")


def test_no_patient_is_in_logs_or_in_what_is_kept(serve, tmp_path, eventually):
    """A name and an id in headers, and in the names of files, of good images and of one that cannot be read."""
    folder = tmp_path / "scans"
    header = {"PatientName": "CANARYNAME^X", "PatientID": "CANARYID", "AccessionNumber": "CANARYACC"}
    grey = np.random.default_rng(0).integers(0, 4000, (64, 64)).astype(np.uint16)
    save(dicom(grey, **header), folder / "CANARYFILE.dcm")
    (folder / "CANARYBAD.dcm").write_bytes((folder / "CANARYFILE.dcm").read_bytes()[:-4000])
    server = serve(folder)
    client = server.client()
    client.upload(folder / "CANARYFILE.dcm")
    eventually(lambda: all(job["state"] == "done" for job in client.get("/v1/jobs")["jobs"]))
    for image in client.images():
        for what in ("thumbnail.jpg", "pixels"):
            assert b"CANARYNAME" not in ask_any(server, f"/v1/images/{image['id']}/{what}")[1]
    for path in (f"/v1/images/{image['id']}", "/v1/project", "/metrics", "/openapi.json", "/v1/manifest.csv"):
        assert b"CANARYNAME" not in client.raw("GET", path)[0]
    server.stop()
    said = "".join(server.lines)
    log = (server.project / "audit.log").read_text()
    for canary in ("CANARYNAME", "CANARYID", "CANARYACC", "CANARYFILE", "CANARYBAD"):
        assert canary not in log
        assert canary not in said.replace(str(folder), "")
    uploads = server.project / "uploads"
    for path in server.project.rglob("*"):
        if path.is_file() and uploads not in path.parents:
            content = path.read_bytes()
            assert not any(canary in content for canary in (b"CANARYNAME", b"CANARYID", b"CANARYACC")), path
    assert pydicom.dcmread(folder / "CANARYFILE.dcm").PatientID == "CANARYID"


def test_a_client_says_what_the_server_says(served):
    with Client(served.url) as client, pytest.raises(ServerError, match="there is no image 999999"):
        client.image(999_999)
