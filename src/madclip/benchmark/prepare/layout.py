"""Our own split by patient, and the layout of BMAD that prepared sets are written in."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from madclip.errors import DataError
from madclip.files import new_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import numpy.typing as npt

    from madclip.benchmark.registry import RegisteredSet

VALID_PER_CLASS = 16
"""Images of each class in valid/: as many as the largest number of shots in the paper."""
SPLIT_RULE = (
    f"Whole patients in an order drawn from the seed go to valid until it has {VALID_PER_CLASS} normal and "
    f"{VALID_PER_CLASS} abnormal images; all other patients go to test."
)
"""What `split_patients` does."""
VOLUME_RULE = (
    f"Whole patients in an order drawn from the seed go to valid until it has at least {VALID_PER_CLASS} normal and "
    f"{VALID_PER_CLASS} abnormal images; all other patients go to test."
)
"""What `split_volumes` does."""
_CLASSES = ("good", "Ungood")


@dataclass(frozen=True)
class Original:
    """An image of a download.

    Attributes:
        image: The file that it comes from.
        label: 0 normal, 1 abnormal.
        patient: Whose it is.
        split: Once that is known.
        name: Under which it is written; empty: the file's own. Made of names of files and numbers, never of a table's.
        pixels: Computes the image [H, W] or [H, W, 3]; None where the file is copied as it is.
        mask: Computes its mask [H, W], of the image's size.
    """

    image: Path
    label: int
    patient: str
    split: str = ""
    name: str = ""
    pixels: Callable[[], npt.NDArray[np.uint8]] | None = None
    mask: Callable[[], npt.NDArray[np.bool_]] | None = None

    @property
    def file(self) -> str:
        """Name of the written file."""
        return self.name or self.image.name


def split_patients(originals: Iterable[Original], seed: int) -> list[Original]:
    """Give every image `valid` or `test` by `SPLIT_RULE`; the order of the images does not matter.

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


def split_volumes(originals: Iterable[Original], seed: int) -> list[Original]:
    """Give every image `valid` or `test` by `VOLUME_RULE`, for patients with many images each.

    Raises:
        DataError: Nobody is left for test, or a class is missing.
    """
    groups: dict[str, list[Original]] = defaultdict(list)
    for original in sorted(originals, key=lambda original: (original.patient, original.file)):
        groups[original.patient].append(original)
    patients = sorted(groups)
    have = Counter[int]()
    found: list[Original] = []
    for index in np.random.default_rng(seed).permutation(len(patients)):
        group = groups[patients[index]]
        sides = Counter(original.label for original in group)
        wanted = any(have[label] < VALID_PER_CLASS and sides[label] for label in (0, 1))
        have += sides if wanted else Counter()
        found += [replace(original, split="valid" if wanted else "test") for original in group]
    left = Counter(original.label for original in found if original.split == "test")
    for label, what in enumerate(("normal", "abnormal")):
        if have[label] < VALID_PER_CLASS or not left[label]:
            raise DataError(
                f"too few patients with {what} images to split them: valid needs {VALID_PER_CLASS} images of whole "
                "patients and test at least one; is the download complete?"
            )
    return found


@cache
def published_splits() -> dict[str, Any]:
    """BMAD's patients of the brain set and places of its histology set."""
    text = files("madclip.benchmark.prepare").joinpath("splits.json").read_text(encoding="utf-8")
    splits: dict[str, Any] = json.loads(text)
    return splits


def write_set(
    originals: Sequence[Original],
    out: Path,
    entry: RegisteredSet,
    rule: str,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write images to `split/good/img` and `split/Ungood/img`, masks beside them, and a manifest; see `prepare`."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: not an empty folder; choose another one")
    images = sorted(originals, key=lambda original: (original.split, original.label, original.image, original.file))
    names = [f"{one.split}/{_CLASSES[one.label]}/img/{one.file}" for one in images]
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(f"{name}: {count} images of the download have this name; rename them")
    counts: dict[str, dict[str, int]] = defaultdict(lambda: {"normal": 0, "abnormal": 0})
    for one in images:
        counts[one.split]["abnormal" if one.label else "normal"] += 1
    facts = {"format": 1, "set": entry.name, "own_split": entry.own_split, "seed": seed, "rule": rule, "counts": counts}
    try:
        with new_folder(out) as building:
            for done, (one, name) in enumerate(zip(images, names, strict=True), start=1):
                _write_image(one, building / name)
                if progress:
                    progress(done, len(images))
            with (building / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
                table = csv.writer(file)
                table.writerow(("image", "label", "mask", "patient", "split"))
                table.writerows(
                    (name, one.label, _mask_name(name) if one.mask else "", one.patient, one.split)
                    for one, name in zip(images, names, strict=True)
                )
            (building / "prepared.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error})") from error
    return facts


def _mask_name(image: str) -> str:
    folder, _, name = image.rpartition("/img/")
    return f"{folder}/anomaly_mask/{name}"


def _write_image(one: Original, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if one.pixels is None:
        shutil.copyfile(one.image, target)
        return
    pixels = one.pixels()
    Image.fromarray(pixels).save(target)
    if one.mask is not None:
        mask = one.mask()
        if mask.shape != pixels.shape[:2]:
            raise DataError(f"{one.image}: a mask of {mask.shape} pixels for an image of {pixels.shape[:2]}")
        beside = Path(_mask_name(target.as_posix()))
        beside.parent.mkdir(exist_ok=True)
        Image.fromarray(mask.astype(np.uint8) * 255).save(beside)
