"""A project for tests of the pages: no detector, but answers that hang together.

Scores and maps are the smoothed brightness of an image, so that a test can compute them itself.
"""

from __future__ import annotations

import io
import threading
import time
from datetime import UTC, datetime
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage


def now() -> str:
    return datetime.now(UTC).isoformat()


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
        self.jobs: dict[int, dict[str, Any]] = {}
        self.detectors: dict[int, dict[str, Any]] = {}
        self.trained_on: dict[int, dict[int, str]] = {}
        self.cancelled: set[int] = set()
        self.uploaded: dict[bytes, dict[str, Any]] = {}
        self.fault: str | None = None
        """Why jobs fail, where they do."""

    # Images

    def add(self, name: str, pixels: np.ndarray | None, error: str | None = None) -> dict[str, Any]:
        number = max(self.images, default=0) + 1
        height, width = pixels.shape[:2] if pixels is not None else (None, None)
        facts = {"volume": None, "frame": None, "axis": "", "place": 0, "slices": 1}
        self.images[number] = {"id": number, "name": name, "width": width, "height": height, "label": None}
        self.images[number] |= {"mask": False, "version": 1, "row": None, "next": None, "error": error} | facts
        if pixels is not None:
            self.pixels[number] = pixels
        return self.images[number]

    def read(self, name: str, data: bytes) -> list[dict[str, Any]]:
        with Image.open(io.BytesIO(data)) as picture:
            return [self.add(name, np.asarray(picture))]

    def upload(self, name: str, data: bytes) -> dict[str, Any]:
        if data not in self.uploaded:
            self.uploaded[data] = self.read(name, data)[0]
        return self.uploaded[data]

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
        said["backbones"] = ["stand-in", "tiny+lite0", "tiny"]
        number = self.active["id"] if self.active else None
        return said | {"counts": counts, "detector": number, "disk": disk, "research_use": "For research only."}

    # Jobs

    def start(self, kind: str, parameters: dict[str, Any]) -> dict[str, Any]:
        labels = {n: one["label"] for n, one in self.images.items() if one["label"] and not one["error"]}
        if kind in ("fit", "refit") and set(labels.values()) != {"normal", "abnormal"}:
            raise Refusal(422, "Training needs at least one normal and one abnormal image.")
        number = len(self.jobs) + 1
        job = {"id": number, "kind": kind, "state": "queued", "stage": "", "done": 0, "total": 40, "loss": None}
        job |= {
            "seconds_left": None,
            "error": None,
            "made": now(),
            "detector": None,
            "result": None,
            "background": False,
        }
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
            if self.fault:
                return job.update(state="failed", error=self.fault)
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
