"""A small server of the REST contract in front of such a project; it can be made slow, and can ask for a token."""

from __future__ import annotations

import email.parser
import email.policy
import io
import json
import mimetypes
import re
import struct
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import numpy as np
from fake_project import Project, Refusal
from PIL import Image

PAGES = Path(__file__).parents[2] / "src" / "madclip" / "serve" / "pages"
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; worker-src 'self' blob:; "
    "script-src 'self' 'wasm-unsafe-eval'; style-src 'self'"
)
READABLE = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}


def grey_png(pixels: np.ndarray) -> bytes:
    """An 8-bit PNG, written here so that a bulk of images costs nothing."""
    height, width = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw, 1)),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


class Handler(BaseHTTPRequestHandler):
    """Routes of the contract to the project."""

    protocol_version = "HTTP/1.1"
    server: FakeServer

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.command, self.path))
        try:
            self.route(url.path)
        except Refusal as problem:
            self.send_json(problem.body | {"error": {"code": "refused", "message": str(problem)}}, problem.status)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any

    def send(self, body: bytes, kind: str, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def send_json(self, value: Any, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), "application/json", status)

    def route(self, path: str) -> None:
        project = self.server.project
        if self.command != "GET" and self.headers.get("X-Madclip") != "1":
            raise Refusal(403, "The header X-Madclip is missing.")
        if not path.startswith("/v1/"):
            return self.static(path)
        if project.token and path == "/v1/session":
            if json.loads(self.body)["token"] != project.token:
                raise Refusal(401, "This is not the token.")
            return self.send(b"{}", "application/json", Set_Cookie="madclip=1; HttpOnly; SameSite=Strict; Path=/")
        if project.token and "madclip=1" not in (self.headers.get("Cookie") or ""):
            raise Refusal(401, "A token is needed.")
        for method, pattern, name in ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                time.sleep(self.server.delay)
                if path.endswith("thumbnail.jpg"):
                    self.server.thumbnails.wait()
                if name == "events":
                    return self.events(int(found[1]))
                with project.lock:
                    return getattr(self, name)(*(int(part) if part.isdigit() else part for part in found.groups()))
        raise Refusal(404, f"There is no {path}.")

    def static(self, path: str) -> None:
        file = PAGES / ("index.html" if path == "/" else path.removeprefix("/"))
        if not file.resolve().is_relative_to(PAGES) or not file.is_file():
            raise Refusal(404, "There is no such page.")
        self.send(file.read_bytes(), mimetypes.guess_type(file.name)[0] or "application/octet-stream")

    # One method for each call

    def get_project(self) -> None:
        self.send_json(self.server.project.described())

    def patch_project(self) -> None:
        given = json.loads(self.body)
        self.server.project.objective = given.get("objective", self.server.project.objective)
        self.server.project.backbone = given.get("backbone", self.server.project.backbone)
        self.get_project()

    def post_folder(self) -> None:
        folder, project = Path(json.loads(self.body)["path"]), self.server.project
        if not folder.is_dir():
            raise Refusal(404, f"{folder} is not a folder of this machine.")
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        readable = [file for file in files if file.suffix in READABLE]
        for file in readable:
            try:
                project.read(str(file.relative_to(folder)), file.read_bytes())
            except OSError:
                project.add(str(file.relative_to(folder)), None, f"{file.name} cannot be read as an image.")
        project.predict()
        over = {"not an image": len(files) - len(readable)} if len(files) > len(readable) else {}
        self.send_json({"added": len(readable), "passed_over": over, "images": len(project.images)}, 201)

    def post_uploads(self) -> None:
        head = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n"
        form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + self.body)
        images, refused = [], []
        for part in form.iter_parts():
            name = part.get_filename()
            try:
                images.append(self.server.project.upload(name, part.get_payload(decode=True)))
            except OSError:
                refused.append({"name": name, "error": "This is no image that can be read."})
        self.server.project.predict()
        self.send_json({"images": images, "refused": refused}, 201)

    def get_images(self) -> None:
        self.send_json(self.server.project.listed(self.query))

    def get_image(self, number: int) -> None:
        self.send_json(self.server.project.image(number))

    def delete_image(self, number: int) -> None:
        self.server.project.image(number)
        for held in (self.server.project.images, self.server.project.pixels, self.server.project.masks):
            held.pop(number, None)
        self.send(b"", "application/json", 204)

    def get_picture(self, number: int, what: str) -> None:
        project = self.server.project
        if number not in project.pixels:
            raise Refusal(404, f"There is no picture of image {number}.")
        pixels = project.pixels[number]
        if what == "pixels":
            grey = pixels if pixels.ndim == 2 else pixels[..., :3].mean(-1)
            ends = f"{float(grey.min())},{float(grey.max())}"
            body, shape = grey.astype("<f4").tobytes(), f"{grey.shape[0]},{grey.shape[1]}"
            return self.send(body, "application/octet-stream", X_Shape=shape, X_Range=ends)
        if pixels.dtype != np.uint8:
            pixels = (255 * (pixels - pixels.min()) / max(float(np.ptp(pixels)), 1e-6)).astype(np.uint8)
        if what == "overlay.png":
            heat = project.map_of(number)[..., None]
            grey = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]
            pixels = (grey * (1 - heat / 2) + heat / 2 * np.array([253, 231, 37])).astype(np.uint8)
        picture = Image.fromarray(pixels)
        if what == "thumbnail.jpg":
            picture.thumbnail((192, 192))
        if picture.mode == "L":
            return self.send(grey_png(np.asarray(picture)), "image/png")
        body = io.BytesIO()
        picture.convert("RGB").save(body, "PNG")
        return self.send(body.getvalue(), "image/png")

    def get_map(self, number: int) -> None:
        values = self.server.project.map_of(number)
        shape = f"{values.shape[0]},{values.shape[1]}"
        self.send(values.astype("<f4").tobytes(), "application/octet-stream", X_Shape=shape)

    def get_mask(self, number: int) -> None:
        if number not in self.server.project.masks:
            raise Refusal(404, f"Image {number} has no mask.")
        self.send(grey_png(self.server.project.masks[number]), "image/png")

    def changing(self, number: int, version: int) -> dict[str, Any]:
        one = self.server.project.image(number)
        if one["version"] != version:
            raise Refusal(409, "The image was changed in the meantime.", image=one)
        one["version"] += 1
        return one

    def put_mask(self, number: int) -> None:
        with Image.open(io.BytesIO(self.body)) as picture:
            assert picture.mode == "L", picture.mode
            mask = np.asarray(picture)
        assert set(np.unique(mask)) <= {0, 255}
        assert mask.shape == self.server.project.pixels[number].shape[:2]
        one = self.changing(number, int(self.headers["If-Match"]))
        self.server.project.masks[number], one["mask"] = mask, True
        self.send_json(one)

    def delete_mask(self, number: int) -> None:
        one = self.changing(number, int(self.headers["If-Match"]))
        self.server.project.masks.pop(number, None)
        one["mask"] = False
        self.send_json(one)

    def put_label(self, number: int) -> None:
        given = json.loads(self.body)
        one = self.changing(number, given["version"])
        one["label"] = given["label"]
        self.send_json(one)

    def post_labels(self) -> None:
        given = json.loads(self.body)
        self.send_json({"images": [self.server.project.label(number, given["label"]) for number in given["ids"]]})

    def get_jobs(self) -> None:
        self.send_json({"jobs": list(self.server.project.jobs.values())})

    def post_job(self) -> None:
        given = json.loads(self.body)
        self.send_json(self.server.project.start(given["kind"], given["parameters"]), 202)

    def get_job(self, number: int) -> None:
        self.send_json(self.server.project.jobs[number])

    def delete_job(self, number: int) -> None:
        self.server.project.cancelled.add(number)
        self.get_job(number)

    def events(self, number: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        said = ""
        while True:
            with self.server.project.lock:
                job = json.dumps(self.server.project.jobs[number])
            if job != said:
                said = job
                try:
                    self.wfile.write(f"data: {job}\n\n".encode())
                    self.wfile.flush()
                except OSError:
                    return
            if json.loads(job)["state"] in ("done", "failed", "cancelled"):
                return
            time.sleep(0.01)

    def get_detectors(self) -> None:
        self.send_json({"detectors": sorted(self.server.project.detectors.values(), key=lambda one: -one["id"])})

    def activate(self, number: int) -> None:
        for one in self.server.project.detectors.values():
            one["active"] = one["id"] == number
        self.server.project.predict()
        self.send_json(self.server.project.detectors[number])

    def delete_detector(self, number: int) -> None:
        del self.server.project.detectors[number]
        self.server.project.predict()
        self.send(b"", "application/json", 204)

    def get_wrong(self, number: int) -> None:
        self.send_json(self.server.project.wrong(number))

    def get_curve(self, number: int) -> None:
        self.send_json(self.server.project.curve(number))


ROUTES = [
    ("GET", r"/v1/project", "get_project"),
    ("PATCH", r"/v1/project", "patch_project"),
    ("POST", r"/v1/folders", "post_folder"),
    ("POST", r"/v1/uploads", "post_uploads"),
    ("GET", r"/v1/images", "get_images"),
    ("GET", r"/v1/images/(\d+)", "get_image"),
    ("DELETE", r"/v1/images/(\d+)", "delete_image"),
    ("GET", r"/v1/images/(\d+)/(pixels|picture.png|thumbnail.jpg|overlay.png)", "get_picture"),
    ("GET", r"/v1/images/(\d+)/map", "get_map"),
    ("GET", r"/v1/images/(\d+)/mask.png", "get_mask"),
    ("PUT", r"/v1/images/(\d+)/mask.png", "put_mask"),
    ("DELETE", r"/v1/images/(\d+)/mask.png", "delete_mask"),
    ("PUT", r"/v1/images/(\d+)/label", "put_label"),
    ("POST", r"/v1/labels", "post_labels"),
    ("GET", r"/v1/jobs", "get_jobs"),
    ("POST", r"/v1/jobs", "post_job"),
    ("GET", r"/v1/jobs/(\d+)", "get_job"),
    ("DELETE", r"/v1/jobs/(\d+)", "delete_job"),
    ("GET", r"/v1/jobs/(\d+)/events", "events"),
    ("GET", r"/v1/detectors", "get_detectors"),
    ("POST", r"/v1/detectors/(\d+)/activate", "activate"),
    ("DELETE", r"/v1/detectors/(\d+)", "delete_detector"),
    ("GET", r"/v1/detectors/(\d+)/wrong", "get_wrong"),
    ("GET", r"/v1/detectors/(\d+)/curve", "get_curve"),
]


class FakeServer(ThreadingHTTPServer):
    """The server on a free port of this machine, in a thread of its own while the context lasts."""

    daemon_threads = True

    def __init__(self, project: Project) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.project = project
        self.asked: list[tuple[str, str]] = []
        self.delay = 0.0
        self.thumbnails = threading.Event()
        """Thumbnails wait for it."""
        self.thumbnails.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
