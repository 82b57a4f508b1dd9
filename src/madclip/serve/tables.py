"""What a project's database holds, as SQLAlchemy sees it. A change of these needs a file in `migrations/versions`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, LargeBinary, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NORMAL, ABNORMAL = "normal", "abnormal"


def now() -> str:
    """The time as the API writes it: ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Base(DeclarativeBase):
    """The base of all tables."""

    type_annotation_map = {dict[str, Any]: JSON, list[Any]: JSON}  # noqa: RUF012  (SQLAlchemy's own way)


class Setting(Base):
    """One fact of the project: its objective, its backbone, the detector in use."""

    __tablename__ = "setting"
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class Folder(Base):
    """A folder of this machine that was opened: files below it may be read."""

    __tablename__ = "folder"
    id: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[str] = mapped_column(unique=True)


class Volume(Base):
    """A volume, stack or series, whose slices are images."""

    __tablename__ = "volume"
    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(unique=True)
    kind: Mapped[str]


class Image(Base):
    """One image: a file of an opened folder or an uploaded one, or a frame of it; with what a person said of it."""

    __tablename__ = "image"
    __table_args__ = (
        UniqueConstraint("path", "frame_mark", name="image_once"),
        Index("image_volume", "volume_id", "place"),
        Index("image_name", "name"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    path: Mapped[str]
    """The file: absolute in an opened folder, the name in `uploads/` where it was uploaded."""
    uploaded: Mapped[bool]
    frame: Mapped[int | None]
    axis: Mapped[str] = mapped_column(default="")
    frame_mark: Mapped[str] = mapped_column(default="")
    name: Mapped[str]
    patient: Mapped[str | None]
    folder_id: Mapped[int | None] = mapped_column(ForeignKey("folder.id"))
    volume_id: Mapped[int | None] = mapped_column(ForeignKey("volume.id"))
    place: Mapped[int] = mapped_column(default=0)
    width: Mapped[int | None]
    height: Mapped[int | None]
    label: Mapped[str | None]
    mask: Mapped[str | None]
    learned: Mapped[bool] = mapped_column(default=False)
    version: Mapped[int] = mapped_column(default=1)
    error: Mapped[str | None]


class Feature(Base):
    """Pooled tokens of an image by a backbone, float32, and the key under which its tokens are cached."""

    __tablename__ = "feature"
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"), primary_key=True)
    space: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str]
    pooled: Mapped[bytes] = mapped_column(LargeBinary)


class Detector(Base):
    """A detector; its number is that of the job that made it."""

    __tablename__ = "detector"
    id: Mapped[int] = mapped_column(primary_key=True)
    made: Mapped[str] = mapped_column(default=now)
    backbone: Mapped[str]
    objective: Mapped[str]
    space: Mapped[str]
    normal: Mapped[int]
    abnormal: Mapped[int]
    masks: Mapped[int]
    threshold: Mapped[float | None]
    operating_point: Mapped[str]
    uncalibrated: Mapped[str]
    out_of_fold: Mapped[dict[str, Any] | None]
    held_out: Mapped[dict[str, Any]]
    """Out-of-fold scores by image."""
    curve: Mapped[dict[str, Any]]
    learned: Mapped[dict[str, Any]]
    """Label and mask of each image that it learned from."""
    history: Mapped[list[Any]]
    changed: Mapped[str]
    seconds: Mapped[float]


class Said(Base):
    """What a detector says of an image: its row, and what images are sorted by."""

    __tablename__ = "said"
    __table_args__ = (Index("said_score", "detector_id", "score"),)
    detector_id: Mapped[int] = mapped_column(ForeignKey("detector.id"), primary_key=True)
    image_id: Mapped[int] = mapped_column(ForeignKey("image.id"), primary_key=True)
    row: Mapped[dict[str, Any]]
    score: Mapped[float | None]
    verdict: Mapped[str | None]
    uncertainty: Mapped[float | None]


class Job(Base):
    """Work for a process of its own, which is resumed after a restart."""

    __tablename__ = "job"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(default="queued", index=True)
    background: Mapped[bool] = mapped_column(default=False)
    parameters: Mapped[dict[str, Any]]
    stage: Mapped[str] = mapped_column(default="")
    done: Mapped[int] = mapped_column(default=0)
    total: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None]
    made: Mapped[str] = mapped_column(default=now)
    detector_id: Mapped[int | None]
    result: Mapped[dict[str, Any] | None]
    tries: Mapped[int] = mapped_column(default=0)
    learned: Mapped[dict[str, Any] | None]
    """What a fit that was begun learns from, so that it goes on only with the same."""


class Session(Base):
    """A browser that has logged in, by the digest of its cookie."""

    __tablename__ = "session"
    digest: Mapped[str] = mapped_column(primary_key=True)
    until: Mapped[float]
