"""Our own split by patient, and the layout of BMAD that prepared sets are written in."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from madclip.errors import DataError
from madclip.files import new_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from madclip.benchmark.registry import RegisteredSet

VALID_PER_CLASS = 16
"""Images of each class in valid/: as many as the largest number of shots in the paper."""
RULE = (
    f"Whole patients in an order drawn from the seed go to valid until it has {VALID_PER_CLASS} normal and "
    f"{VALID_PER_CLASS} abnormal images; all other patients go to test. Normal images of a training folder go to "
    "train, save those of patients in valid or test."
)
_CLASSES = ("good", "Ungood")


@dataclass(frozen=True)
class Original:
    """An image of a download: label 0 normal, 1 abnormal; its patient; and its split once that is known."""

    image: Path
    label: int
    patient: str
    split: str = ""


def split_patients(originals: Iterable[Original], seed: int) -> list[Original]:
    """Give every image `valid` or `test` by `RULE`; the order of the images does not matter.

    Raises:
        DataError: There are too few images of a class, or its patients have too many images each.
    """
    groups: dict[str, list[Original]] = defaultdict(list)
    for original in sorted(originals, key=lambda original: original.image.as_posix()):
        groups[original.patient].append(original)
    patients = sorted(groups)
    free = [VALID_PER_CLASS, VALID_PER_CLASS]
    found: list[Original] = []
    for index in np.random.default_rng(seed).permutation(len(patients)):
        group = groups[patients[index]]
        sides = Counter(original.label for original in group)
        fits = all(sides[label] <= free[label] for label in (0, 1))
        for label in (0, 1):
            free[label] -= sides[label] * fits
        found += [replace(original, split="valid" if fits else "test") for original in group]
    left = Counter(original.label for original in found if original.split == "test")
    for label, what in enumerate(("normal", "abnormal")):
        if free[label] or not left[label]:
            raise DataError(
                f"too few patients with few {what} images each to split them: valid needs {VALID_PER_CLASS} images "
                "of whole patients and test at least one; is the download complete?"
            )
    return found


def write_set(
    originals: Sequence[Original],
    out: Path,
    entry: RegisteredSet,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Copy the images to `split/good/img` and `split/Ungood/img`, with a manifest; see `prepare`."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: not an empty folder; choose another one")
    images = sorted(originals, key=lambda original: (original.split, original.label, original.image.name))
    names = [f"{one.split}/{_CLASSES[one.label]}/img/{one.image.name}" for one in images]
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"{name}: {count} images of the download have this name; rename them")
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {"normal": 0, "abnormal": 0})
    for one in images:
        counts[one.split]["abnormal" if one.label else "normal"] += 1
    facts = {"format": 1, "set": entry.name, "own_split": entry.own_split, "seed": seed, "rule": RULE, "counts": counts}
    try:
        with new_folder(out) as building:
            for done, (one, name) in enumerate(zip(images, names, strict=True), start=1):
                (building / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(one.image, building / name)
                if progress:
                    progress(done, len(images))
            with (building / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                table.writerow(("image", "label", "patient", "split"))
                table.writerows(
                    (name, one.label, one.patient, one.split) for one, name in zip(images, names, strict=True)
                )
            (building / "prepared.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error})") from error
    return facts
