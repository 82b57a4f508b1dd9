"""What the learning process does: jobs one after the other, through the same calls as the command line."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading
import time
from contextlib import suppress
from pathlib import Path
from queue import Queue
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from madclip.backbones.load import open_backbone
from madclip.calibration.familiarity import Likeness
from madclip.data.ref import ImageRef
from madclip.data.samples import Dataset, Sample
from madclip.detector import MadCLIP
from madclip.errors import DataError
from madclip.files import new_file
from madclip.fitting import Run
from madclip.memory import kept_memory
from madclip.metrics.intervals import delong_interval
from madclip.metrics.scored import Scored
from madclip.prediction import Row, predict_each, usual_batch
from madclip.recipe import Recipe
from madclip.serve.engine import RememberingEngine, space_of
from madclip.serve.wire import Header, pipes, receive, said_of, send
from madclip.training.cache import TokenCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from madclip.backbones.spec import Backbone
    from madclip.prediction import Prediction

EVERY = 0.1
"""Seconds between two words on how far a stage is."""
IMAGE = tuple[int, str, int | None, str]
"""Number, path, frame and axis of an image."""


class CancelledError(Exception):
    """Whoever waits for the job does not any more."""


class Learner:
    """Does jobs, tells the server of them, and keeps backbones in memory between them.

    Args:
        target: Where frames to the server go.
    """

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self.cancelled = threading.Event()
        self._backbones: dict[str, Backbone] = {}
        self._last: tuple[str, float] = ("", 0.0)

    def do(self, job: Header) -> None:
        """Do one job; what is said last is its `end`."""
        kinds: dict[str, Callable[..., Header]] = {
            "fit": self.fit,
            "refit": self.fit,
            "predict": self.predict,
            "evaluate": self.evaluate,
            "export": self.export,
        }
        try:
            result = kinds[job.pop("do")](**job)
        except CancelledError:
            self._say({"end": "cancelled"})
        except Exception as error:  # noqa: BLE001  (a job that fails is told, and the next one is done)
            self._say({"end": "failed", **said_of(error)})
        else:
            self._say({"end": "done", "result": result})

    def _say(self, header: Header, body: bytes = b"") -> None:
        send(self._target, header, body)

    def progress(self, stage: str, done: int, total: int, /, *, loss: float | None = None, part: str = "") -> None:
        """Tell the server how far a stage is, and stop where the job was cancelled."""
        if self.cancelled.is_set():
            raise CancelledError
        known, at = self._last
        if stage != known or done >= total or time.monotonic() - at >= EVERY:
            self._last = (stage, time.monotonic())
            said = {"progress": stage, "done": int(done), "total": int(total), "part": part}
            self._say(said | {"loss": None if loss is None or not np.isfinite(loss) else float(loss)})

    # What is learned

    def fit(
        self,
        folder: str,
        setting: Header,
        samples: list[list[Any]],
        before: str | None,
        state: str,
        resume: bool,
        tokens: str,
    ) -> Header:
        """Learn from samples into a folder, and tell what came of it.

        Args:
            folder: Where the new detector goes.
            setting: `recipe`, `changes`, `backbone`, `objective`, `folds`, `operating_point`.
            samples: Path, frame, axis, label, mask, patient and volume of each.
            before: Folder of the detector that a refit goes on from.
            state: File for the state of a fit under way.
            resume: Whether to go on from it.
            tokens: Folder of the shots' token cache.
        """
        start = time.perf_counter()
        held_out: list[float] = []
        shots = [
            Sample(ImageRef(Path(path), frame, axis), label, mask and Path(mask), patient, volume=volume)
            for path, frame, axis, label, mask, patient, volume in samples
        ]
        options = {"shots": None, "folds": setting["folds"], "operating_point": setting["operating_point"]}
        run = Run(
            TokenCache(Path(tokens)), None if before else Path(state), resume, "last", self.progress, held_out.extend
        )
        with kept_memory():
            if before is None:
                recipe = Recipe.preset(setting["recipe"], **setting["changes"])
                backbone = self._backbone(setting["backbone"], recipe)
                model = MadCLIP(recipe, backbone=backbone, objective=setting["objective"])
                model.fit(shots, run=run, **options)
            else:
                model = self._loaded(before)
                model.refit(shots, run=run, **options)
        model.save(folder)
        Path(state).unlink(missing_ok=True)
        calibration = model.calibration
        facts = {
            "backbone": model.backbone.spec.id,
            "objective": model.objective,
            "space": space_of(model.backbone, model.recipe.view),
            "normal": model.provenance.normal,
            "abnormal": model.provenance.abnormal,
            "masks": model.provenance.masks,
            "threshold": calibration.threshold if calibration else None,
            "operating_point": calibration.operating_point if calibration else "none",
            "uncalibrated": _why(model),
            "normal_scores": list(calibration.normal_scores) if calibration else [],
            "abnormal_scores": list(calibration.abnormal_scores) if calibration else [],
            "held_out": held_out,
            "out_of_fold": _out_of_fold(shots, held_out),
            "history": model.state.history,
            "seconds": time.perf_counter() - start,
        }
        self._say({"fitted": facts})
        return {}

    def _backbone(self, source: str, recipe: Recipe) -> Backbone:
        """A backbone as a recipe opens it, kept for the next job."""
        key = json.dumps([source, recipe.to_dict()], sort_keys=True, default=str)
        if key not in self._backbones:
            self._backbones = {key: open_backbone(recipe, source, "auto", "auto")}
        return self._backbones[key]

    def _loaded(self, folder: str) -> MadCLIP:
        """A detector, on a backbone that is in memory where it is the one."""
        from madclip import storage

        saved = storage.read(Path(folder))
        return MadCLIP.load(folder, backbone=self._backbone(saved.backbone["source"], saved.recipe))

    # What is said of images

    def predict(
        self, images: list[IMAGE], tokens: str, detector: str | None, maps: str, setting: Header, **_: Any
    ) -> Header:
        """Say what a detector says of images, a row each; without one, only what they are like.

        Args:
            images: See `IMAGE`.
            tokens: Folder of the images' token cache.
            detector: Its folder; None computes tokens alone.
            maps: Folder that maps go to.
            setting: Recipe and backbone where there is no detector.
        """
        refs = [ImageRef(Path(path), frame, axis) for _, path, frame, axis in images]
        failed = 0
        with kept_memory():
            results, engine, space = self._results(refs, TokenCache(Path(tokens)), detector, setting)
            for done, (image, ref, result) in enumerate(zip(images, refs, results, strict=True), 1):
                said: Header = {"image": image[0], "space": space, "row": None}
                body = b""
                if isinstance(result, DataError):
                    failed += 1
                    said["error"] = str(result)
                else:
                    said["key"], pooled = engine.found.popleft()
                    said["height"], said["width"] = result.size
                    body = pooled.numpy().astype("<f4").tobytes()
                    if detector is not None:
                        _write_map(Path(maps) / f"{image[0]}.npy", result)
                if detector is not None:
                    said["row"] = Row.of(ref, result).to_dict()
                self._say(said, body)
                self.progress("predict" if detector else "encode", done, len(images))
        return {"images": len(images), "failed": failed}

    def _results(
        self, refs: Sequence[ImageRef], cache: TokenCache, detector: str | None, setting: Header
    ) -> tuple[Iterator[Prediction | DataError], RememberingEngine, str]:
        """Predictions, the engine that remembers tokens, and the space that these are of."""
        if detector is not None:
            model = self._loaded(detector)
            view, backbone = model.recipe.view, model.backbone
            state = model.state
            engine = RememberingEngine(backbone, view, cache, state.score, keeps_prefix=state.head.keeps_prefix)
            model.engine = engine
            found = model.predict_iter(refs, batch_size=usual_batch(backbone.device), native=False)
            return found, engine, space_of(backbone, view)
        recipe = Recipe.preset(setting["recipe"], **setting["changes"])
        backbone = self._backbone(setting["backbone"], recipe)
        engine = RememberingEngine(backbone, recipe.view, cache)

        def nothing(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[Likeness]]:
            scores, maps, _ = engine(pixels)
            return scores, maps, [Likeness(familiar=True)] * len(pixels)

        batch = usual_batch(backbone.device)
        each = predict_each(refs, recipe.view, nothing, batch_size=batch, native=False)
        return each, engine, space_of(backbone, recipe.view)

    # What is made of a detector

    def evaluate(self, detector: str, samples: list[list[Any]], report: str, title: str) -> Header:
        """Measure a detector on labelled images that it has not seen, and write the page of it."""
        from madclip.evaluation.protocol import evaluate
        from madclip.report import write_report

        model = self._loaded(detector)
        root = Path(os.path.commonpath([Path(sample[0]).parent for sample in samples]))
        found = tuple(
            Sample(ImageRef(Path(path), frame, axis), label, mask and Path(mask), patient, None, volume)
            for path, frame, axis, label, mask, patient, volume in samples
        )
        result = evaluate(model, Dataset(root, "manifest", found), progress=self.progress)
        write_report(result, report, title=title)
        return result.to_json(images=False)

    def export(self, detector: str, engine: str, images: list[str], work: str) -> Header:
        """Write a detector for another library.

        Args:
            detector: Its folder.
            engine: `onnx` or `openvino`.
            images: Files that the export is checked on, those of the shots first.
            work: A folder that does not exist.
        """
        from madclip.export.engines import export_engine

        model = MadCLIP.load(detector, device="cpu")
        out = Path(detector) / "engines" / f"{engine}-fp32"
        shutil.rmtree(out, ignore_errors=True)
        self.progress("export", 0, 1)
        data = Path(work)
        data.mkdir(mode=0o700)
        try:
            for number, file in enumerate(images):
                ending = ".nii.gz" if file.endswith(".nii.gz") else Path(file).suffix
                (data / f"{number:06d}{ending}").symlink_to(file)
            facts = export_engine(model, data, out, engine=engine)  # type: ignore[arg-type]  # checked by the API
        finally:
            shutil.rmtree(data)
        self.progress("export", 1, 1)
        return {"format": engine, "check": facts["check"]}


def _why(model: MadCLIP) -> str:
    """What must be said of a detector's thresholds, or an empty string."""
    if model.provenance.calibrated_before_refit:
        return "thresholds and probabilities are those of the detector before this refit"
    return model.provenance.uncalibrated


def _out_of_fold(shots: Sequence[Sample], scores: Sequence[float]) -> Header | None:
    """AUROC of out-of-fold scores with its interval, patients taken as one where they have several images.

    There is none where the images are of one class.
    """
    if not scores or len({shot.label for shot in shots}) < 2:
        return None
    data = Scored.of([shot.label for shot in shots], scores, patients=[shot.group for shot in shots])
    found = delong_interval(data if data.clustered else dataclasses.replace(data, patients=None))
    return {"auroc": found.value, "low": found.low, "high": found.high}


def _write_map(path: Path, prediction: Prediction) -> None:
    with new_file(path, 0o600) as partial, partial.open("wb") as file:
        np.save(file, prediction.anomaly_map.astype(np.float16), allow_pickle=False)


def main() -> None:
    """Does jobs until the server ends, which ends this process too, whatever it does."""
    source, target = pipes()
    learner = Learner(target)
    jobs: Queue[Header] = Queue()

    def listen() -> None:
        while (frame := receive(source)) is not None:
            if frame[0].get("cancel"):
                learner.cancelled.set()
            else:
                learner.cancelled.clear()
                jobs.put(frame[0])
        os._exit(0)

    with suppress(BrokenPipeError):  # the server has ended
        send(target, {"ready": True})
        threading.Thread(target=listen, daemon=True).start()
        while True:
            learner.do(jobs.get())


if __name__ == "__main__":
    main()
