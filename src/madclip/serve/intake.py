"""How images come into a project: folders of this machine, and uploads."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sqlalchemy import delete, func, select

from madclip.data.ref import ImageRef
from madclip.data.zips import is_zip
from madclip.errors import DataError
from madclip.serve.project import Project, log
from madclip.serve.tables import Folder, Image, Said, Volume

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

LOOKING, UPLOADED = 900.0, 60.0
"""Seconds that a look through a folder may take, and one at an uploaded file."""


def open_folder(project: Project, path: Path) -> dict[str, Any]:
    """Opens a folder of this machine: its files may be read from now on, and its images are in the project.

    Raises:
        DataError: There is no such folder, it holds the project itself, or there is no image in it.
    """
    folder = path.expanduser()
    if not folder.is_absolute() or not folder.is_dir():
        raise DataError("there is no such folder on this machine; give its whole path")
    folder = folder.resolve()
    if folder.is_relative_to(project.places.root) or project.places.root.is_relative_to(folder):
        raise DataError("the project itself lies in this folder; open one that holds images only")
    _, body = project.readers.call("look", paths=[str(folder)], seconds=LOOKING)
    found = _inside(json.loads(body), folder)
    with project.database.change() as session:
        known = session.scalar(select(Folder).where(Folder.path == str(folder)))
        if known is None:
            known = Folder(path=str(folder))
            session.add(known)
            session.flush()
        names = {one[0]: _below(one[0], folder) for one in found["images"]}
        added = keep(session, found, names, folder=known.id)
        total = session.scalar(select(func.count(Image.id)))
    log("folder opened", folder=known.id, added=len(added))
    return {"added": len(added), "passed_over": found["passed_over"], "images": total or 0}


def _inside(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What was found, without files that a link brings in from elsewhere: these were not opened."""
    inside = [Path(one[0]).resolve().is_relative_to(folder) for one in found["images"]]
    if all(inside):
        return found
    place = {old: new for new, old in enumerate(number for number, kept in enumerate(inside) if kept)}
    volumes = [{**one, "images": [place[n] for n in one["images"] if n in place]} for one in found["volumes"]]
    passed = {**found["passed_over"], "links out of the folder": inside.count(False)}
    images = [found["images"][number] for number in place]
    return {"images": images, "volumes": [one for one in volumes if one["images"]], "passed_over": passed}


def _below(path: str, folder: Path) -> str:
    return os.path.relpath(path, folder).encode("utf-8", "replace").decode()


def keep(
    session: Session, found: dict[str, Any], names: dict[str, str], folder: int | None, uploads: Path | None = None
) -> list[Image]:
    """Puts images that were looked at into the database; of those that are there already only errors are forgotten.

    Args:
        session: A session that changes.
        found: What `reading.look` found.
        names: What to call each file.
        folder: The opened folder that they are of.
        uploads: Where uploads lie, where they are such.

    Returns:
        The images that are new.
    """
    images: list[Image | None] = []
    added = []
    for path, frame, axis, patient in found["images"]:
        mark = ImageRef(Path(path), frame, axis).mark
        kept = Path(path).name if uploads else path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        if not uploads and kept != path:
            images.append(None)  # a name that is no Unicode cannot be kept, nor shown
            continue
        one = session.scalar(select(Image).where(Image.path == kept, Image.frame_mark == mark))
        if one is None:
            one = Image(path=kept, frame=frame, axis=axis, frame_mark=mark, name=names[path] + mark, patient=patient)
            one.uploaded, one.folder_id = uploads is not None, folder
            session.add(one)
            added.append(one)
        elif one.error:  # perhaps it can be read by now, as where a disk was away
            one.error = None
            session.execute(delete(Said).where(Said.image_id == one.id, Said.score.is_(None)))
        images.append(one)
    for group in found["volumes"]:
        volume = session.scalar(select(Volume).where(Volume.key == group["key"]))
        if volume is None:
            volume = Volume(key=group["key"], kind=group["kind"])
            session.add(volume)
            session.flush()
        for place, number in enumerate(group["images"]):
            image = images[number]
            if image is not None:
                image.volume_id, image.place = volume.id, place
    session.flush()
    return added


def upload(project: Project, name: str, source: IO[bytes]) -> list[int]:
    """Keeps an uploaded file by its content; one that is there already is the same images again.

    Args:
        project: Where it goes.
        name: What it is called; it is shown, and builds no path.
        source: Its bytes.

    Returns:
        The numbers of its images.

    Raises:
        DataError: It is no image that can be read.
    """
    partial = project.places.work / f"upload-{secrets.token_hex(8)}"
    try:
        digest = _copied(source, partial)
        with project.database.look() as session:
            known = session.scalars(select(Image.id).where(Image.path.startswith(f"{digest}."), Image.uploaded)).all()
        if known:
            return list(known)
        shown = shown_name(name)
        try:
            suffix = project.readers.call("kind", path=str(partial))[0]["suffix"]
            final = project.places.uploads / f"{digest}{suffix}"
            partial.replace(final)
        except DataError as error:
            raise DataError(str(error).replace(str(partial), shown)) from None
        try:
            return _keep_upload(project, final, shown)
        except DataError as error:
            final.unlink(missing_ok=True)
            raise DataError(str(error).replace(str(final), shown)) from None
    finally:
        partial.unlink(missing_ok=True)


def taken(project: Project, source: IO[bytes], stem: Path, name: str) -> Path:
    """Writes a file that is only looked at once, under a stem of ours and with the suffix that its content asks for.

    Raises:
        DataError: It is no image and no ZIP archive.
    """
    _copied(source, stem)
    try:
        suffix = ".zip" if is_zip(stem) else project.readers.call("kind", path=str(stem))[0]["suffix"]
        return stem.replace(stem.with_name(stem.name + suffix))
    except DataError as error:
        raise DataError(str(error).replace(str(stem), shown_name(name))) from None
    finally:
        stem.unlink(missing_ok=True)


def _keep_upload(project: Project, final: Path, shown: str) -> list[int]:
    _, body = project.readers.call("look", paths=[str(final)], named=True, seconds=UPLOADED)
    found = json.loads(body)
    first = found["images"][0]
    # Decoded once, so that what is accepted can be used.
    project.readers.call("size_of_image", path=first[0], frame=first[1], axis=first[2], seconds=UPLOADED)
    with project.database.look() as session:
        keys = [group["key"] for group in found["volumes"]]
        others = session.scalars(select(Image.path).join(Volume).where(Volume.key.in_(keys), Image.uploaded).distinct())
        together = [str(project.places.uploads / path) for path in others]
    if together:  # a slice of a series that is here: its place is among all of them
        _, body = project.readers.call("look", paths=[str(final), *together], seconds=LOOKING)
        found = json.loads(body)
    names = {one[0]: shown for one in found["images"]}
    with project.database.change() as session:
        added = keep(session, found, names, folder=None, uploads=project.places.uploads)
        numbers = [image.id for image in added]
    log("uploaded", images=len(numbers))
    return numbers


def _copied(source: IO[bytes], target: Path) -> str:
    """Writes a file to the disk for good, and gives its SHA-256."""
    digest = hashlib.sha256()
    with target.open("xb") as file:
        while part := source.read(2**20):
            digest.update(part)
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def shown_name(name: str) -> str:
    """The last part of a name as a client gave it, at most 200 characters, without what does not print."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[-200:] or "image"
