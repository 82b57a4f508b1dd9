"""One cell of an experiment: a fit and its evaluation, as a worker does one after another."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

from madclip.benchmark.experiments import check_experiment, recipe_of
from madclip.benchmark.tokens import RememberedBackbone, TokenMemory
from madclip.errors import DataError, MadCLIPError, RecipeError
from madclip.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from madclip.benchmark.experiments import Cell
    from madclip.benchmark.plan import Plan
    from madclip.data.samples import Dataset
    from madclip.detector import MadCLIP
    from madclip.evaluation.protocol import Detector
    from madclip.evaluation.result import ImageRow

METRICS = ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro", "specificity")


class CellWork:
    """Runs cells; weights and data sets are read once, and test images are encoded once for all methods of a set.

    The file of a cell holds `metrics` as value, low, high; of every test image in one order `labels`, `scores` and,
    where patients are known, `groups`, their numbers; and `images`, a digest of that order.

    Args:
        plan: What all cells share.
        folder: Where the files of cells go.
        memory: Tokens of test images.
    """

    def __init__(self, plan: Plan, folder: Path, memory: TokenMemory | None = None) -> None:
        self.plan, self.folder = plan, folder
        self.memory = TokenMemory() if memory is None else memory
        self._backbones: dict[Literal["gelu", "quick_gelu"] | None, RememberedBackbone] = {}
        self._sets: dict[str, Dataset] = {}
        self._joint: dict[tuple[str, int, int], MadCLIP] = {}

    def __reduce__(self) -> tuple[type[CellWork], tuple[Plan, Path, TokenMemory]]:
        # What was loaded stays here: a worker loads its own.
        return CellWork, (self.plan, self.folder, TokenMemory(self.memory.room))

    def __call__(self, cell: Cell) -> MadCLIPError | None:
        """Run a cell and write its file; returns what went wrong."""
        try:
            facts = self._measure(cell)
            path = cell.path(self.folder)
            write_whole(path, json.dumps(facts) + "\n")
        except MadCLIPError as error:
            return error
        except OSError as error:
            return DataError(f"{self.folder}: cannot be written ({error})")
        return None

    def facts(self) -> dict[str, Any]:
        """What the numbers depend on and the plan does not say: the weights, and the images of each set."""
        backbone = self.backbone(None)
        return {
            "fingerprint": backbone.fingerprint,
            "dtype": str(backbone.dtype),
            "device": str(backbone.device),
            "sets": {
                name: {
                    "objective": self.plan.objectives[name],
                    "shot_pool": len(self.dataset(name).shot_pool),
                    "test_pool": len(self.dataset(name).test_pool),
                    "content": self.dataset(name).digest(),
                }
                for name in self.plan.folders
            },
        }

    def backbone(self, activation: Literal["gelu", "quick_gelu"] | None) -> RememberedBackbone:
        """The plan's weights with another activation, or with their own."""
        if activation not in self._backbones:
            from madclip.backbones import load_backbone

            size, device = self.plan.image_size(), self.plan.device
            loaded = load_backbone(
                self.plan.backbone, image_size=size, activation=activation, device=device, dtype="auto"
            )
            self._backbones[activation] = RememberedBackbone(loaded, self.memory)
        return self._backbones[activation]

    def dataset(self, name: str) -> Dataset:
        """A set of the plan; its patients are named after it, since patient 7 of another set is somebody else."""
        if name not in self._sets:
            from madclip.data.load import load_dataset

            found = load_dataset(self.plan.folders[name])
            samples = (s if s.patient is None else replace(s, patient=f"{name} {s.patient}") for s in found.samples)
            self._sets[name] = replace(found, samples=tuple(samples))
        return self._sets[name]

    def _measure(self, cell: Cell) -> dict[str, Any]:
        from madclip.evaluation.protocol import evaluate

        detector, target = self._fit(cell), self.dataset(cell.target)
        with self.memory.of(cell.target):
            result = evaluate(detector, target, pixel_size=self.plan.pixel_size)
        values = result.to_json(images=False)
        patients = [row.patient for row in result.rows]
        numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patients))}
        names = json.dumps([row.name for row in result.rows])
        return {
            "cell": asdict(cell),
            "metrics": {name: [values.get(name), *(values.get(f"{name}_ci") or (None, None))] for name in METRICS}
            | self._likeness(cell, result.rows),
            "labels": [row.label for row in result.rows],
            "scores": [row.score for row in result.rows],
            "groups": None if None in numbers else [numbers[patient] for patient in patients],
            "images": hashlib.sha256(names.encode()).hexdigest(),
            "provenance": result.provenance,
            "warnings": result.warnings,
        }

    def _likeness(self, cell: Cell, rows: Sequence[ImageRow]) -> dict[str, Any]:
        """How many images were taken for the right modality, and were like none of the shots, where nobody said it."""
        if not any(row.modality for row in rows):
            return {}
        right = [row.modality == self.plan.objectives[cell.target] for row in rows]
        return {
            "routed": [sum(right) / len(rows), None, None],
            "unfamiliar": [sum(not row.familiar for row in rows) / len(rows), None, None],
        }

    def _learn_jointly(self, cell: Cell, fresh: MadCLIP) -> MadCLIP:
        """A detector of all sets, which is kept for other cells, or of all but the cell's.

        Raises:
            RecipeError: Two sets show the same, or there are too few.
        """
        from madclip.fitting import Run
        from madclip.training.cache import TokenCache

        preset, _, how = cell.method.partition("-")
        sets: dict[str, Dataset] = {}
        for name in self.plan.folders:
            objective = self.plan.objectives[name]
            if objective in sets:
                raise RecipeError(f"{name}: another set shows {objective!r} too; tell them apart with --objective")
            if how != "without" or name != cell.set:
                sets[objective] = self.dataset(name)
        key = (preset, cell.shots, cell.seed)
        detector = None if how == "without" else self._joint.get(key)
        if detector is None:
            detector = fresh.fit(sets, shots=cell.shots, seed=cell.seed, folds=0, run=Run(cache=TokenCache()))
            if how != "without":
                self._joint[key] = detector
        return detector.of(self.plan.objectives[cell.target]) if how == "joint" else detector

    def _fit(self, cell: Cell) -> Detector:
        """A fitted detector: thresholds are not part of the tables, so MadCLIP's own are not cross-fitted."""
        from madclip.detector import MadCLIP
        from madclip.fitting import Run
        from madclip.methods import BASELINES, load_baseline
        from madclip.training.cache import TokenCache

        data, objective, cache = self.dataset(cell.source), self.plan.objectives[cell.source], TokenCache()
        shots = (cell.shots, 0) if self.plan.experiment == "normal-only" else cell.shots
        if cell.method in BASELINES:
            baseline = load_baseline(cell.method)(self.backbone(None), objective=objective)
            return baseline.fit(data, shots=shots, seed=cell.seed, cache=cache)
        recipe = recipe_of(cell.method, self.plan.changes, check_experiment(self.plan.experiment))
        activation = None if recipe.backbone_activation == "weights" else recipe.backbone_activation
        detector = MadCLIP(recipe, backbone=self.backbone(activation), objective=objective)
        if self.plan.experiment == "joint" and "-" in cell.method:
            return self._learn_jointly(cell, detector)
        run = Run(cache=cache, select=self.plan.select)
        return detector.fit(data, shots=shots, seed=cell.seed, folds=0, run=run)
