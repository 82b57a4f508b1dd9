"""A small server of the REST contract for tests of the pages: no detector, but answers that hang together.

Scores and maps are the smoothed brightness of an image, so that a test can compute them itself. It also keeps what it
was asked and what it was sent, and can be told to answer slowly or to lose a label to another browser.
"""

from __future__ import annotations

import email.parser
import email.policy
import gzip
import io
import json
import mimetypes
import re
import struct
import sys
import threading
import time
import zlib
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
from PIL import Image
from scipy import ndimage

PAGES = Path(__file__).parents[2] / "src" / "madclip" / "serve" / "pages"
POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; worker-src 'self' blob:; "
    "script-src 'self' 'wasm-unsafe-eval'; style-src 'self'"
)
SPARSE = "PUT", "DELETE", "POST", "PATCH"
READABLE = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}


class Refusal(Exception):
    """An answer other than 200: its status, one line, and what else the body holds."""

    def __init__(self, status: int, message: str, **body: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, body


def anomaly_map(pixels: np.ndarray) -> np.ndarray:
    """Smoothed brightness [H, W] in 0..1."""
    grey = pixels.astype(np.float32) if pixels.ndim == 2 else pixels[..., :3].astype(np.float32).mean(-1)
    grey = (grey - grey.min()) / max(float(np.ptp(grey)), 1e-6)
    return ndimage.gaussian_filter(grey, max(grey.shape) / 40).astype(np.float32)


class Project:
    """All that the server holds; one lock, since tests ask it from several threads."""

    def __init__(self, *, step: float = 0.02, token: str = "") -> None:
        self.lock = threading.RLock()
        self.name, self.objective, self.backbone, self.token = "Phantoms", "phantom", "stand-in", token
        self.step = step
        self.images: dict[int, dict[str, Any]] = {}
        self.pixels: dict[int, np.ndarray] = {}
        self.masks: dict[int, np.ndarray] = {}
        self.mask_files: dict[int, bytes] = {}
        self.volumes: dict[int, Any] = {}
        self.volume_masks: dict[int, bytes] = {}
        self.jobs: dict[int, dict[str, Any]] = {}
        self.detectors: dict[int, dict[str, Any]] = {}
        self.trained_on: dict[int, dict[int, str]] = {}
        self.cancelled: set[int] = set()

    # Images

    def add(self, name: str, pixels: np.ndarray | None, error: str | None = None, **volume: Any) -> dict[str, Any]:
        number = max(self.images, default=0) + 1
        height, width = pixels.shape[:2] if pixels is not None else (None, None)
        facts = {"volume": None, "frame": None, "axis": "", "slices": 1} | volume
        self.images[number] = {"id": number, "name": name, "width": width, "height": height, "label": None}
        self.images[number] |= {"mask": False, "version": 1, "row": None, "next": None, "error": error} | facts
        if pixels is not None:
            self.pixels[number] = pixels
        return self.images[number]

    def read(self, name: str, data: bytes) -> list[dict[str, Any]]:
        if name.endswith((".nii", ".nii.gz")):
            import nibabel

            volume = nibabel.Nifti1Image.from_bytes(gzip.decompress(data) if name.endswith("gz") else data)
            number = len(self.volumes) + 1
            self.volumes[number] = volume
            cube = np.asarray(volume.dataobj).astype(np.float32)
            return [
                self.add(name, np.rot90(cube[..., k]).copy(), volume=number, frame=k, axis="axial", slices=cube.shape[2])
                for k in range(cube.shape[2])
            ]
        with Image.open(io.BytesIO(data)) as picture:
            return [self.add(name, np.asarray(picture))]

    def image(self, number: int) -> dict[str, Any]:
        if number not in self.images:
            raise Refusal(404, f"There is no image {number}.")
        return self.images[number]

    def map_of(self, number: int) -> np.ndarray:
        if self.active is None or number not in self.pixels:
            raise Refusal(404, f"There is no heatmap of image {number}.")
        return anomaly_map(self.pixels[number])

    def label(self, number: int, label: str | None) -> dict[str, Any]:
        one = self.image(number)
        one["label"], one["version"] = label, one["version"] + 1
        return one

    # Detectors

    @property
    def active(self) -> dict[str, Any] | None:
        return next((one for one in self.detectors.values() if one["active"]), None)

    def predict(self) -> None:
        detector = self.active
        for number, one in self.images.items():
            if detector is None or number not in self.pixels:
                one["row"] = None
                continue
            score, threshold = float(anomaly_map(self.pixels[number]).max()), detector["threshold"]
            far = abs(score - threshold) > 0.05
            decision = "anomalous" if score >= threshold else "normal"
            one["row"] = {"image": one["name"], "frame": None, "axis": None, "score": score, "threshold": threshold}
            one["row"] |= {"decision": decision, "probability": 1 / (1 + np.exp(-20 * (score - threshold)))}
            one["row"] |= {"p_value": 0.2, "verdict": decision if far else "uncertain", "familiar": number % 17 != 0}
            one["row"] |= {"note": "", "error": None}

    def ranked(self) -> list[int]:
        open_ones = [number for number, one in self.images.items() if one["label"] is None]
        if self.active is None:
            return open_ones
        return sorted(open_ones, key=lambda number: self.doubt(number))

    def doubt(self, number: int) -> float:
        row = self.images[number]["row"]
        return abs(row["score"] - row["threshold"]) if row else 9.0

    def shown(self, number: int, ranks: dict[int, int]) -> dict[str, Any]:
        one = dict(self.images[number])
        if number in ranks:
            reason = "most uncertain" if self.active else "unlike anything labelled"
            one["next"] = {"rank": ranks[number], "reason": reason}
        return one

    def listed(self, query: dict[str, str]) -> dict[str, Any]:
        ranks = {number: rank for rank, number in enumerate(self.ranked(), 1)}
        keys = {
            "name": lambda n: self.images[n]["name"],
            "score": lambda n: (self.images[n]["row"] or {"score": -1})["score"],
            "uncertainty": lambda n: -self.doubt(n),
            "next": lambda n: ranks.get(n, 10**9),
            "similarity": lambda n: -abs(self.pixels[n].mean() - self.pixels[int(query["to"])].mean()),
        }
        label, verdict = query.get("label", "any"), query.get("verdict")
        wanted = [
            n
            for n, one in self.images.items()
            if (label == "any" or (one["label"] or "none") == label)
            and (verdict is None or (one["row"] or {}).get("verdict") == verdict)
        ]
        wanted.sort(key=keys[query.get("sort", "name")], reverse=query.get("order") == "desc")
        offset, limit = int(query.get("offset", 0)), min(500, int(query.get("limit", 500)))
        chosen = wanted[offset : offset + limit]
        return {"total": len(wanted), "offset": offset, "images": [self.shown(n, ranks) for n in chosen]}

    def described(self) -> dict[str, Any]:
        labels = [one["label"] for one in self.images.values()]
        counts = {"images": len(labels), "normal": labels.count("normal"), "abnormal": labels.count("abnormal")}
        counts |= {"unlabelled": labels.count(None), "masks": sum(one["mask"] for one in self.images.values())}
        disk = {"tokens": 48_300_000, "tokens_limit": 2_000_000_000, "thumbnails": 1_250_000}
        said = {"name": self.name, "objective": self.objective, "backbone": self.backbone, "read_only": False}
        said["backbones"] = ["stand-in", "tiny"]
        number = self.active["id"] if self.active else None
        return said | {"counts": counts, "detector": number, "disk": disk, "research_use": "For research only."}

    # Jobs

    def start(self, kind: str, parameters: dict[str, Any]) -> dict[str, Any]:
        labels = {n: one["label"] for n, one in self.images.items() if one["label"]}
        if kind in ("fit", "refit") and set(labels.values()) != {"normal", "abnormal"}:
            raise Refusal(422, "Training needs at least one normal and one abnormal image.")
        number = len(self.jobs) + 1
        job = {"id": number, "kind": kind, "state": "queued", "stage": "", "done": 0, "total": 40, "loss": None}
        job |= {"seconds_left": None, "error": None, "made": now(), "detector": None, "result": None, "background": False}
        self.jobs[number] = job
        threading.Thread(target=self.work, args=(job, parameters, labels), daemon=True).start()
        return job

    def work(self, job: dict[str, Any], parameters: dict[str, Any], labels: dict[int, str]) -> None:
        for done in range(1, job["total"] + 1):
            time.sleep(self.step)
            stage = "encode" if done < 10 else "fit" if done < 32 else "predict"
            loss = 0.2 + 1.4 * float(np.exp(-(done - 9) / 7)) if 10 <= done < 32 and "fit" in job["kind"] else None
            with self.lock:
                job.update(state="running", stage=stage, done=done, loss=loss)
                job["seconds_left"] = (job["total"] - done) * self.step
                if job["id"] in self.cancelled:
                    return job.update(state="cancelled")
        with self.lock:
            if job["kind"] in ("fit", "refit"):
                job["detector"] = self.keep(parameters, labels)
            elif job["kind"] == "export" and self.active:
                self.active["exports"].append(parameters["format"])
            job.update(state="done", stage="predict", seconds_left=0)
        return None

    def keep(self, parameters: dict[str, Any], labels: dict[int, str]) -> int:
        before = self.trained_on.get(self.active["id"], {}) if self.active else {}
        added = sum(before.get(n) != label for n, label in labels.items())
        removed = sum(n not in labels for n in before)
        scores = {n: float(anomaly_map(self.pixels[n]).max()) for n in labels}
        sides = [[scores[n] for n, label in labels.items() if label == wanted] for wanted in ("normal", "abnormal")]
        threshold = (float(np.mean(sides[0])) + float(np.mean(sides[1]))) / 2
        auroc = float(np.mean([[a > b for b in sides[0]] for a in sides[1]]))
        for one in self.detectors.values():
            one["active"] = False
        number = len(self.detectors) + 1
        self.trained_on[number] = dict(labels)
        said = {"id": number, "made": now(), "backbone": self.backbone, "objective": self.objective}
        said |= {"normal": len(sides[0]), "abnormal": len(sides[1]), "masks": len(self.masks), "threshold": threshold}
        said |= {"out_of_fold": {"auroc": auroc, "low": max(0, auroc - 0.2), "high": min(1, auroc + 0.05)}}
        said |= {"operating_point": parameters.get("operating_point", "youden"), "uncalibrated": "", "active": True}
        said |= {"changed": f"{added} labels added, {removed} removed" if before else "the first one"}
        said |= {"seconds": 40 * self.step, "exports": []}
        said |= {"history": [{"loss": 0.2 + 1.4 * float(np.exp(-i / 7))} for i in range(22)]}
        self.detectors[number] = said
        self.predict()
        return number

    def wrong(self, number: int) -> dict[str, Any]:
        threshold, images = self.detectors[number]["threshold"], []
        for n, label in self.trained_on[number].items():
            if n not in self.images:
                continue
            score = float(anomaly_map(self.pixels[n]).max())
            said = "anomalous" if score >= threshold else "normal"
            if (said == "anomalous") != (label == "abnormal"):
                images.append({"image": self.images[n], "score": score, "said": said, "label": label})
        return {"images": images}

    def curve(self, number: int) -> dict[str, Any]:
        labels = self.trained_on[number]
        scores = {
            side: [float(anomaly_map(self.pixels[n]).max()) for n in labels if labels[n] == side and n in self.pixels]
            for side in ("normal", "abnormal")
        }
        return scores | {"threshold": self.detectors[number]["threshold"]}


def now() -> str:
    return datetime.now(UTC).isoformat()


def grey_png(pixels: np.ndarray) -> bytes:
    """An 8-bit PNG, written here so that a bulk of images costs nothing."""
    height, width = pixels.shape
    raw = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(raw, 1)), (b"IEND", b"")
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
            if self.command in SPARSE and self.headers.get("X-Madclip") != "1":
                raise Refusal(403, "The header X-Madclip is missing.")
            self.route(url.path)
        except Refusal as problem:
            self.send_json(problem.body | {"error": {"code": "refused", "message": str(problem)}}, problem.status)

    do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815

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
                images += self.server.project.read(name, part.get_payload(decode=True))
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

    def get_results(self) -> None:
        rows = [f"{one['name']},{(one['row'] or {}).get('score')}" for one in self.server.project.images.values()]
        self.send("\n".join(["image,score", *rows]).encode(), "text/csv", Content_Disposition="attachment")

    def get_volume(self, number: int, what: str) -> None:
        import nibabel

        volume = self.server.project.volumes[number]
        if what == "mask" and number in self.server.project.volume_masks:
            return self.send(self.server.project.volume_masks[number], "application/gzip")
        cube = np.asarray(volume.dataobj)
        if what == "mask":
            made = nibabel.Nifti1Image(np.zeros(cube.shape, np.uint8), volume.affine)
        elif what == "heatmap":
            made = nibabel.Nifti1Image(anomaly_map(cube), volume.affine)
            made.header["cal_max"] = 1
        else:
            made = volume
        return self.send(gzip.compress(made.to_bytes(), 1), "application/gzip")

    def put_volume_mask(self, number: int) -> None:
        self.server.project.volume_masks[number] = self.body
        self.send_json({})


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
    ("GET", r"/v1/results.csv", "get_results"),
    ("GET", r"/v1/volumes/(\d+)/(image|heatmap|mask).nii.gz", "get_volume"),
    ("PUT", r"/v1/volumes/(\d+)/mask.nii.gz", "put_volume_mask"),
]


class FakeServer(ThreadingHTTPServer):
    """The server on a free port of this machine, in a thread of its own while the context lasts."""

    daemon_threads = True

    def __init__(self, project: Project) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.project = project
        self.asked: list[tuple[str, str]] = []
        self.delay = 0.0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
