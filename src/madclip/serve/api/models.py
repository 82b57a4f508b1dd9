"""What the API takes and gives, as OpenAPI describes it; docs/serve.md explains it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Label = Literal["normal", "abnormal"]
Verdict = Literal["normal", "anomalous", "uncertain"]
Decision = Literal["normal", "anomalous"]
Kind = Literal["fit", "refit", "predict", "evaluate", "export"]
State = Literal["queued", "running", "done", "failed", "cancelled"]
Number = Annotated[int, Field(ge=1, le=2**53)]
"""A number of an image, a job, a detector or a volume."""


class Given(BaseModel):
    """What a client sends: nothing in it that is not known, no NaN and no infinity."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)


class Fault(BaseModel):
    """What went wrong."""

    code: str
    message: str


class Refusal(BaseModel):
    """The body of every answer that is no success."""

    error: Fault


class Row(BaseModel):
    """What is said of an image; the fields of `madclip.prediction.Row`."""

    image: str
    frame: int | None = None
    axis: str | None = None
    score: float | None = None
    threshold: float | None = None
    decision: Decision | None = None
    probability: float | None = None
    p_value: float | None = None
    verdict: Verdict | None = None
    familiar: bool | None = None
    note: str = ""
    error: str | None = None


class Next(BaseModel):
    """Why an image is to be labelled, and before how many others (1 is the first)."""

    rank: int
    reason: str


class Image(BaseModel):
    """One image, what a person said of it, and what the detector in use says."""

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


class Images(BaseModel):
    """Some images."""

    images: list[Image]


class ImagePage(Images):
    """Part of all images that were asked for."""

    total: int
    offset: int


class LabelChange(Given):
    """A label, and the version of the image that it was given to."""

    label: Label | None
    version: Number


class LabelMany(Given):
    """One label for many images."""

    ids: Annotated[list[Number], Field(max_length=10_000)]
    label: Label | None


class Conflict(Refusal):
    """An image was changed by somebody else meanwhile; it is as it is now."""

    image: Image


class FolderOpen(Given):
    """A folder of this machine."""

    path: Annotated[str, Field(min_length=1, max_length=4096)]


class FolderOpened(BaseModel):
    """What was found in a folder."""

    added: int
    passed_over: dict[str, int]
    images: int


class Refused(BaseModel):
    """A file that was not kept, and why."""

    name: str
    error: str


class Uploaded(Images):
    """What became of uploaded files."""

    refused: list[Refused]


class ManifestRead(BaseModel):
    """What a manifest said of the images that are here."""

    labelled: int
    masks: int
    unknown: int


class Counts(BaseModel):
    """How many images there are."""

    images: int
    normal: int
    abnormal: int
    unlabelled: int
    masks: int


class Disk(BaseModel):
    """Bytes on disk."""

    tokens: int
    tokens_limit: int
    thumbnails: int


class Project(BaseModel):
    """The project."""

    name: str
    objective: str
    backbone: str
    backbones: list[str]
    read_only: bool
    counts: Counts
    detector: int | None
    disk: Disk
    research_use: str


class ProjectChange(Given):
    """What of a project is to change."""

    objective: Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")] | None = None
    backbone: Annotated[str, Field(min_length=1, max_length=4096)] | None = None
    tokens_limit: Annotated[int, Field(ge=0, le=2**50)] | None = None


class Health(BaseModel):
    """That the server answers."""

    status: Literal["ok"]
    version: str


class Login(Given):
    """A token."""

    token: Annotated[str, Field(min_length=1, max_length=512)]


Scalar = bool | int | float | str


class Parameters(Given):
    """What a job is to do; each kind looks at its own."""

    recipe: Annotated[str, Field(max_length=40)] | None = None
    changes: Annotated[dict[Annotated[str, Field(max_length=40)], Scalar | list[Scalar]], Field(max_length=40)] = {}
    operating_point: Annotated[str, Field(max_length=40)] = "youden"
    folds: Annotated[int, Field(ge=0, le=20)] | None = None
    ids: Annotated[list[Number], Field(max_length=30_000)] | None = None
    format: Literal["onnx", "openvino"] = "onnx"


class JobWanted(Given):
    """A job to do."""

    kind: Kind
    parameters: Parameters = Parameters()


class Job(BaseModel):
    """A job, and how far it is."""

    id: int
    kind: Kind
    state: State
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


class Jobs(BaseModel):
    """All jobs, the newest first."""

    jobs: list[Job]


class OutOfFold(BaseModel):
    """Image AUROC of the shots, each scored by a head that did not see it, with its 95 % interval."""

    auroc: float | None
    low: float | None
    high: float | None


class Detector(BaseModel):
    """A detector."""

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


class Detectors(BaseModel):
    """All detectors, the newest first."""

    detectors: list[Detector]


class Wrong(BaseModel):
    """A labelled image that its out-of-fold score gets wrong."""

    image: Image
    score: float
    said: Decision
    label: Label


class WrongImages(BaseModel):
    """Labelled images that their out-of-fold scores get wrong, the worst first."""

    images: list[Wrong]


class Curve(BaseModel):
    """Out-of-fold scores of both classes, sorted, and the threshold."""

    normal: list[float]
    abnormal: list[float]
    threshold: float | None


class Volume(BaseModel):
    """A volume: its slices, and how many of them lie in each stretch of evenly spaced ones, in order."""

    id: int
    slices: int
    stretches: list[int]


class Series(BaseModel):
    """What is said of a volume or series: the highest score counts; maps are one for each evenly spaced stretch."""

    model_config = ConfigDict(extra="allow")
    image: str
    score: float | None
    images: int
    failed: int
    highest: int | None
    maps: list[str]


class Predicted(BaseModel):
    """What a detector says of the images in a file."""

    rows: list[Row]
    maps: list[str | None]
    series: list[Series]
