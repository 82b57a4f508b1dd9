"""A client of `madclip serve` for Python programs: typed, and with nothing but the standard library.

with Client("http://127.0.0.1:8765") as madclip:
    madclip.upload(Path("scan.png"))
    job = madclip.wait(madclip.fit())
    for image in madclip.images(sort="score"):
        print(image["name"], image["row"] and image["row"]["score"])
"""

from __future__ import annotations

import http.client
import json
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict
from urllib.parse import urlencode, urlsplit

from madclip.errors import MadCLIPError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType

Label = Literal["normal", "abnormal"]
Kind = Literal["fit", "refit", "predict", "evaluate", "export"]
IDLE = 20.0
"""Seconds after which a connection is not used again: the server ends those that are quiet for a minute."""


class Row(TypedDict):
    """What is said of an image; see `madclip.prediction.Row`."""

    image: str
    frame: int | None
    axis: str | None
    score: float | None
    threshold: float | None
    decision: Literal["normal", "anomalous"] | None
    probability: float | None
    p_value: float | None
    verdict: Literal["normal", "anomalous", "uncertain"] | None
    familiar: bool | None
    note: str
    error: str | None


class Next(TypedDict):
    """Why an image is to be labelled."""

    rank: int
    reason: str


class Image(TypedDict):
    """One image of a project."""

    id: int
    name: str
    width: int | None
    height: int | None
    label: Label | None
    mask: bool
    version: int
    volume: int | None
    frame: int | None
    axis: str
    place: int
    slices: int
    row: Row | None
    next: Next | None
    error: str | None


class Job(TypedDict):
    """A job, and how far it is."""

    id: int
    kind: Kind
    state: Literal["queued", "running", "done", "failed", "cancelled"]
    stage: str
    done: int
    total: int
    loss: float | None
    seconds_left: float | None
    error: str | None
    made: str
    detector: int | None
    background: bool
    result: dict[str, Any] | None


class OutOfFold(TypedDict):
    """Image AUROC of the shots and its interval."""

    auroc: float | None
    low: float | None
    high: float | None


class Detector(TypedDict):
    """A detector of a project."""

    id: int
    made: str
    backbone: str
    objective: str
    normal: int
    abnormal: int
    masks: int
    out_of_fold: OutOfFold | None
    threshold: float | None
    operating_point: str
    uncalibrated: str
    changed: str
    active: bool
    seconds: float
    history: list[dict[str, float]]
    exports: list[str]


class Predicted(TypedDict):
    """What a detector says of the images in a file; maps are base64 in the form that was asked for."""

    rows: list[Row]
    maps: list[str | None]
    series: list[dict[str, Any]]


class ServerError(MadCLIPError):
    """The server refused.

    Attributes:
        status: HTTP status.
        code: A word for the kind of refusal.
        body: The whole answer; on 409 it holds the image as it is now.
    """

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        error = body.get("error") or {}
        super().__init__(error.get("message") or f"HTTP {status}")
        self.status, self.code, self.body = status, error.get("code", ""), body


class Client:
    """One connection to a server; not for several threads at once.

    Args:
        url: Where the server is.
        token: What it asks for, where it is not this machine's own.
        timeout: Seconds to wait for an answer.

    Raises:
        ServerError: From every call that the server refuses.
        OSError: From every call where nobody answers.
    """

    def __init__(self, url: str = "http://127.0.0.1:8765", token: str | None = None, timeout: float = 300.0) -> None:
        self._url, self._token, self._timeout = urlsplit(url), token, timeout
        self._connection: http.client.HTTPConnection | None = None
        self._used = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # Images and labels

    def images(self, **wanted: str | int) -> Iterator[Image]:
        """All images, page by page: `sort`, `order`, `to`, `label` and `verdict` as in docs/serve.md."""
        offset = 0
        while True:
            page = self.get("/v1/images", **{**wanted, "offset": offset})
            yield from page["images"]
            offset += len(page["images"])
            if not page["images"] or offset >= page["total"]:
                return

    def image(self, number: int) -> Image:
        """One image."""
        found: Image = self.get(f"/v1/images/{number}")
        return found

    def next(self, limit: int = 20) -> list[Image]:
        """What to label next, with the reason."""
        found: list[Image] = self.get("/v1/next", limit=limit)["images"]
        return found

    def open_folder(self, path: Path | str) -> dict[str, Any]:
        """Open a folder of the server's machine, which is this one."""
        found: dict[str, Any] = self.send("POST", "/v1/folders", {"path": str(Path(path).absolute())})
        return found

    def upload(self, *files: Path | str) -> list[Image]:
        """Send files; the same content twice is the same image.

        Raises:
            ServerError: A file was refused; the others are kept.
        """
        found = self._multipart("/v1/uploads", [("files", Path(file)) for file in files])
        if found["refused"]:
            first = found["refused"][0]
            raise ServerError(422, {"error": {"code": "unusable", "message": first["error"]}, **found})
        kept: list[Image] = found["images"]
        return kept

    def label(self, image: Image, label: Label | None) -> Image:
        """Label an image as it was read; 409 where somebody else changed it meanwhile."""
        body = {"label": label, "version": image["version"]}
        found: Image = self.send("PUT", f"/v1/images/{image['id']}/label", body)
        return found

    def label_many(self, numbers: Sequence[int], label: Label | None) -> list[Image]:
        """Give many images one label, whatever they had."""
        found: list[Image] = self.send("POST", "/v1/labels", {"ids": list(numbers), "label": label})["images"]
        return found

    def put_mask(self, image: Image, png: bytes) -> Image:
        """Keep a mask: PNG of 8 bits, 0 and 255, of the image's size."""
        headers = {"content-type": "image/png", "if-match": str(image["version"])}
        found: Image = json.loads(self.raw("PUT", f"/v1/images/{image['id']}/mask.png", png, headers)[0])
        return found

    def delete(self, number: int) -> None:
        """Delete an image for good."""
        self.raw("DELETE", f"/v1/images/{number}")

    # Jobs and detectors

    def begin(self, kind: Kind, **parameters: Any) -> Job:
        """Begin a job."""
        found: Job = self.send("POST", "/v1/jobs", {"kind": kind, "parameters": parameters})
        return found

    def fit(self, **parameters: Any) -> Job:
        """Begin to learn from all labelled images, and then predict all images."""
        return self.begin("fit", **parameters)

    def refit(self, **parameters: Any) -> Job:
        """Begin to go on from the detector in use."""
        return self.begin("refit", **parameters)

    def job(self, number: int) -> Job:
        """One job."""
        found: Job = self.get(f"/v1/jobs/{number}")
        return found

    def cancel(self, number: int) -> Job:
        """Cancel a job."""
        found: Job = json.loads(self.raw("DELETE", f"/v1/jobs/{number}")[0])
        return found

    def watch(self, number: int) -> Iterator[Job]:
        """A job whenever something of it changes, until it ends."""
        connection = self._open()
        try:
            connection.request("GET", self._path(f"/v1/jobs/{number}/events"), headers=self._headers({}))
            answer = connection.getresponse()
            if answer.status != 200:
                raise ServerError(answer.status, _json(answer.read()))
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
        finally:
            connection.close()

    def wait(self, job: Job) -> Job:
        """A job when it has ended.

        Raises:
            ServerError: It failed or was cancelled.
        """
        last = job
        for now in self.watch(job["id"]):
            last = now
        if last["state"] != "done":
            message = last["error"] or f"job {last['id']} is {last['state']}"
            raise ServerError(200, {"error": {"code": last["state"], "message": message}, "job": last})
        return last

    def detectors(self) -> list[Detector]:
        """All detectors, the newest first."""
        found: list[Detector] = self.get("/v1/detectors")["detectors"]
        return found

    def predict(
        self,
        detector: int,
        file: Path | str,
        heatmap: Literal["none", "png", "npy", "nifti"] = "none",
    ) -> Predicted:
        """What a detector says of an image, a volume or a zipped study, which the server does not keep."""
        found: Predicted = self._multipart(f"/v1/detectors/{detector}/predict?map={heatmap}", [("file", Path(file))])
        return found

    # Requests

    def get(self, path: str, **query: str | int) -> Any:
        """The JSON at a path."""
        return json.loads(self.raw("GET", f"{path}?{urlencode(query)}" if query else path)[0])

    def send(self, method: str, path: str, body: Any) -> Any:
        """Send JSON, and get JSON."""
        return json.loads(self.raw(method, path, json.dumps(body).encode(), {"content-type": "application/json"})[0])

    def raw(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[bytes, dict[str, str]]:
        """The bytes and the headers of an answer."""
        if time.monotonic() - self._used > IDLE:
            self.close()
        connection = self._connection = self._connection or self._open()
        try:
            connection.request(method, self._path(path), body, self._headers(headers or {}))
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        self._used = time.monotonic()
        if answer.status >= 400:
            raise ServerError(answer.status, _json(content))
        return content, {name.lower(): value for name, value in answer.getheaders()}

    def _multipart(self, path: str, files: Sequence[tuple[str, Path]]) -> Any:
        mark = secrets.token_hex(16)
        parts = []
        for field, file in files:
            name = file.name.replace("\\", "\\\\").replace('"', '\\"').replace("\r", " ").replace("\n", " ")
            head = f'--{mark}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
            parts += [head.encode("utf-8", "replace"), file.read_bytes(), b"\r\n"]
        body = b"".join([*parts, f"--{mark}--\r\n".encode()])
        return json.loads(self.raw("POST", path, body, {"content-type": f"multipart/form-data; boundary={mark}"})[0])

    def _open(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._url.scheme == "https" else http.client.HTTPConnection
        return kind(self._url.hostname or "127.0.0.1", self._url.port, timeout=self._timeout)

    def _path(self, path: str) -> str:
        return self._url.path.rstrip("/") + path

    def _headers(self, more: dict[str, str]) -> dict[str, str]:
        known = {"x-madclip": "1", **more}
        return known | ({"authorization": f"Bearer {self._token}"} if self._token else {})


def _json(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}
