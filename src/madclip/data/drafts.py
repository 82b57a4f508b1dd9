"""A manifest to correct: all images of a folder in a table, with what is known of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from madclip.data.classes import named_roles, unclear_names
from madclip.data.layouts import ClassFolder, UnknownLayoutError, class_like, collect, read_folders, split_folders
from madclip.data.load import AUTO
from madclip.data.manifests import manifest_text, row_of
from madclip.data.patients import find_patients
from madclip.data.samples import Sample
from madclip.data.walk import Walk, folded, is_image
from madclip.errors import DataError
from madclip.files import write_whole

if TYPE_CHECKING:
    from pathlib import Path

    from madclip.data.samples import Reading, Split


def draft_manifest(root: Path, out: Path, reading: Reading = AUTO) -> dict[str, int]:
    """Writes a manifest of all images of a folder, in whatever layout, and returns how many have each label.

    Where the layout is known, labels are `normal` and `abnormal`. Where it is not, a label is the name of the folder
    that an image lies in, to be corrected or to be named with `--normal` and `--abnormal`; it is empty where the image
    lies in no folder, or in one that may be normal or abnormal, as `benign/` beside `normal/`.

    Raises:
        DataError: There are no images, or the file cannot be written.
    """
    try:
        samples = [(sample, ("normal", "abnormal")[sample.label]) for sample in read_folders(root, reading).samples]
    except UnknownLayoutError:
        samples = _unlabelled(root, reading)
    if not samples:
        raise DataError(f"{root}: no images in this folder")
    try:
        write_whole(out, manifest_text([row_of(sample, out.parent, label) for sample, label in samples]))
    except UnicodeEncodeError as error:
        raise DataError(f"{out}: the name {error.object[:80]!r} is not valid Unicode; rename the file") from error
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from error
    return dict(Counter(label for _, label in samples))


def _unlabelled(root: Path, reading: Reading) -> list[tuple[Sample, str]]:
    """Images of a folder without a known layout, in the order of their names, each with the name of its folder."""
    walk = Walk()
    top = _innermost(root, walk)
    places = split_folders(top, walk)
    folders = {folder.name for _, place in places for folder in class_like(place, walk)}
    labels = dict.fromkeys(unclear_names(folders, reading), "")
    named = {0: "normal", 1: "abnormal"}
    labels |= {name: named[role] for name in folders if (role := named_roles(reading).get(folded(name))) is not None}
    found: list[tuple[str, Sample, str]] = []
    for split, place in places:
        for folder in class_like(place, walk):
            # Abnormal, so that masks are looked for.
            within = collect(top, [ClassFolder(folder, 1, split, place)], walk)
            found += [(key, sample, labels.get(folder.name, folder.name)) for key, sample in within.samples]
        found += [("", sample, "") for sample in _loose(place, split, walk)]
    patients = find_patients([key for key, _, _ in found], [0 for _ in found], reading.patients).of
    samples = [
        (Sample(sample.image, sample.label, sample.mask, patient, sample.split), label)
        for (_, sample, label), patient in zip(found, patients, strict=True)
    ]
    return sorted(samples, key=lambda pair: pair[0].image)


def _innermost(root: Path, walk: Walk) -> Path:
    """The root, or the folder that is all there is in it: archives often hold such a folder."""
    only = class_like(root, walk)
    images = any(map(is_image, walk.loose(root)))
    if len(only) != 1 or images or split_folders(root, walk)[0][0] or not class_like(only[0], walk):
        return root
    return _innermost(only[0], walk)


def _loose(place: Path, split: Split | None, walk: Walk) -> list[Sample]:
    return [Sample(path, 1, split=split) for path in walk.loose(place) if is_image(path)]
