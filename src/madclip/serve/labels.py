"""What a person said of images: labels and masks, each change with the version it was made to; and manifests."""

from __future__ import annotations

import csv
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select

from madclip.data.manifests import IMAGE_COLUMNS
from madclip.errors import DataError
from madclip.files import write_whole
from madclip.serve.images import one
from madclip.serve.project import Project, log
from madclip.serve.tables import ABNORMAL, NORMAL, Folder, Image

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy.orm import Session

COLUMNS = ("image", "label", "mask", "frame", "axis", "patient")
_LABELS = {"0": NORMAL, "normal": NORMAL, "1": ABNORMAL, "abnormal": ABNORMAL}


class ChangedError(Exception):
    """Somebody else changed the image meanwhile."""

    def __init__(self, image: Image) -> None:
        super().__init__(f"image {image.id} was changed by somebody else meanwhile; look at it again")
        self.image = image


def _same(image: Image, version: int) -> None:
    if image.version != version:
        raise ChangedError(image)


def set_label(project: Project, number: int, label: str | None, version: int) -> Image:
    """Labels an image.

    Raises:
        ChangedError: Its version is another one.
        LookupError: There is no such image.
    """
    with project.database.change() as session:
        image = one(session, number)
        _same(image, version)
        image.label, image.version = label, image.version + 1
    log("labelled", image=number, label=label)
    return image


def set_labels(project: Project, numbers: Sequence[int], label: str | None) -> list[Image]:
    """Gives many images one label, whatever they had; all of them or, where one is not there, none.

    Raises:
        LookupError: One of them is not there.
    """
    with project.database.change() as session:
        images = [one(session, number) for number in dict.fromkeys(numbers)]
        for image in images:
            if image.label != label:
                image.label, image.version = label, image.version + 1
    log("labelled", images=len(images), label=label)
    return images


def set_mask(project: Project, number: int, content: bytes, version: int) -> Image:
    """Keeps a painted mask; what is marked makes the image abnormal. One that marks nothing takes the mask away.

    Args:
        project: Whose image it is.
        number: The image.
        content: A PNG.
        version: The image's version that was painted on.

    Raises:
        ChangedError: The image's version is another one.
        DataError: The mask cannot be used.
        LookupError: There is no such image.
    """
    with project.database.look() as session:
        image = one(session, number)
        _same(image, version)
    if not content:
        raise DataError("the body is the mask, a PNG")
    size = size_of(project, image)
    reply, clean = project.readers.call("mask", body=content, size=list(size))
    return keep_mask(project, number, b"" if reply["empty"] else clean, version)


def size_of(project: Project, image: Image) -> tuple[int, int]:
    """Width and height of an image, kept once it is known."""
    if image.width is None or image.height is None:
        found, _ = project.read("size_of_image", image)
        with project.database.change() as session:
            kept = one(session, image.id)
            kept.width, kept.height = found["width"], found["height"]
        image.width, image.height = found["width"], found["height"]
    return image.width, image.height


def keep_mask(project: Project, number: int, content: bytes, version: int | None) -> Image:
    """Keeps a mask that was checked, or takes it away where there is no content; errors as in `set_mask`.

    Args:
        project: Whose image it is.
        number: The image.
        content: PNG as `reading.mask` makes it, or nothing.
        version: As in `set_mask`; None changes whatever is there.
    """
    digest = hashlib.sha256(content).hexdigest()[:16] if content else None
    if digest:
        write_whole(project.places.mask(number, digest), content, 0o600)
    with project.database.change() as session:
        image = one(session, number)
        if version is not None and image.version != version:
            if digest and digest != image.mask:
                project.places.mask(number, digest).unlink(missing_ok=True)
            raise ChangedError(image)
        old, image.mask = image.mask, digest
        image.label = ABNORMAL if digest else image.label
        image.version += 1
    if old and old != digest:
        project.places.mask(number, old).unlink(missing_ok=True)
    log("mask changed", image=number, marked=bool(digest))
    return image


# Manifests


def manifest(project: Project) -> str:
    """The labels as a manifest that every command reads: CSV with the columns `COLUMNS`, paths in full."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    with project.database.look() as session:
        for image in session.scalars(select(Image).where(Image.label.is_not(None)).order_by(Image.name, Image.id)):
            mask = project.places.mask(image.id, image.mask) if image.mask and image.label == ABNORMAL else ""
            frame = "" if image.frame is None else image.frame
            writer.writerow([_path(project, image), image.label, mask, frame, image.axis, image.patient or ""])
    return text.getvalue()


def _path(project: Project, image: Image) -> str:
    return str(project.places.uploads / image.path) if image.uploaded else image.path


def read_manifest(project: Project, content: bytes) -> dict[str, int]:
    """Takes labels, masks and patients from a manifest; of images that are not in the project nothing is read.

    An image is known by its path as `manifest` writes it, or by its name where only one has it. A mask is read where
    it lies in the project or in a folder that was opened.

    Raises:
        DataError: It is no table, or a row cannot be used (the row is named).
    """
    rows = list(_rows(content))
    with project.database.look() as session:
        known = _Known(project, session)
    counts = {"labelled": 0, "masks": 0, "unknown": 0}
    masks: list[tuple[int, Path]] = []
    with project.database.change() as session:
        for where, row in rows:
            number = known.find(row)
            if number is None:
                counts["unknown"] += 1
                continue
            label = _LABELS.get(row.get("label", "").lower())
            if label is None:
                raise DataError(f"{where}: the label is normal or abnormal, 0 or 1")
            image = one(session, number)
            image.label, image.version = label, image.version + 1
            image.patient = row.get("patient") or image.patient
            counts["labelled"] += 1
            if row.get("mask") and label == ABNORMAL:
                masks.append((number, known.mask(where, row["mask"])))
    for number, path in masks:
        with project.database.look() as session:
            size = size_of(project, one(session, number))
        reply, clean = project.readers.call("mask_of_file", path=str(path), size=list(size))
        if not reply["empty"]:
            keep_mask(project, number, clean, None)
            counts["masks"] += 1
    log("manifest read", **counts)
    return counts


def _rows(content: bytes) -> Iterable[tuple[str, dict[str, str]]]:
    try:
        table = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        names = [(name or "").strip().lower() for name in table.fieldnames or ()]
        if "label" not in names or not set(IMAGE_COLUMNS) & set(names):
            raise DataError("the manifest's first row must name the columns image and label")
        for number, row in enumerate(table, 2):
            values = {(k or "").strip().lower(): (v or "").strip() for k, v in row.items() if isinstance(v, str)}
            yield f"manifest, row {number}", values
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the manifest is no CSV in UTF-8 ({type(error).__name__})") from None


class _Known:
    """The images of a project by what a manifest may call them."""

    def __init__(self, project: Project, session: Session) -> None:
        self._roots = [Path(path) for path in session.scalars(select(Folder.path))]
        self._roots.append(project.places.root / "masks")
        self._by: dict[tuple[str, str], int | None] = {}
        for image in session.scalars(select(Image)):
            for name in {_path(project, image), image.name.removesuffix(image.frame_mark)}:
                key = (name, image.frame_mark)
                self._by[key] = None if key in self._by else image.id

    def find(self, row: dict[str, str]) -> int | None:
        """The number of the image that a row means; None where none or several could be meant."""
        name = next((row[column] for column in IMAGE_COLUMNS if row.get(column)), "")
        axis = row.get("axis", "").lower()
        frame = row.get("frame", "").removesuffix(".0")
        return self._by.get((name, f"#{'' if axis == 'axial' else axis}{frame}" if frame else ""))

    def mask(self, where: str, name: str) -> Path:
        """The file of a mask.

        Raises:
            DataError: It lies elsewhere than in the folders that were opened.
        """
        try:
            path = Path(name).resolve()
            inside = Path(name).is_absolute() and any(path.is_relative_to(root) for root in self._roots)
            if inside and path.is_file():
                return path
        except (OSError, ValueError):
            pass
        raise DataError(f"{where}: the mask is not in a folder that was opened; give its whole path")
