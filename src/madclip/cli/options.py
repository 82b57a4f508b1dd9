"""Options that several commands share, each said once, and how values are read that are more than one word."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from madclip.backbones.names import DEFAULT_BACKBONE, default_recipe
from madclip.cli.console import note
from madclip.data.samples import KINDS
from madclip.errors import DataError, RecipeError
from madclip.recipe import Axis

if TYPE_CHECKING:
    from madclip.data.samples import Dataset, Reading
    from madclip.recipe import Recipe
    from madclip.scale.executor import Executor

Preset = Literal["madclip", "fused", "paper", "released"]
Select = Literal["last", "val", "test-best"]

Detector = Annotated[Path, typer.Argument(help="The folder of the detector, as `madclip fit` wrote it.")]
Data = Annotated[
    Path, typer.Argument(help="The labelled images: a folder, or a manifest as CSV or JSON lines (see docs/data.md).")
]
DetectorOut = Annotated[Path, typer.Option("--out", "-o", help="The folder that the detector is written to.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier run left at the output; else it is refused.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output and no text.")]
Device = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda|mps",
        help="Where to compute; auto takes a CUDA GPU if there is one, else Apple's MPS, else the CPU.",
    ),
]
BackboneOption = Annotated[
    str,
    typer.Option(
        "--backbone",
        "-b",
        help="The frozen CLIP: a name from `madclip backbones`, a path to weights, or a model's name on the hub; or "
        "several joined by +, of which the first has the texts.",
    ),
]
SavedBackbone = Annotated[
    str | None,
    typer.Option("--backbone", "-b", help="Where the detector's backbone is now, if it is no longer where it was."),
]
Modality = Annotated[
    str | None,
    typer.Option(help="Which modality of a joint detector all images are of; without it, it tells by each image."),
]
Objective = Annotated[
    str, typer.Option(help='What the images show, as a few English words such as "Brain"; goes into the prompts.')
]
GreyRange = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="file|full|data|LOW,HIGH|pLOW,pHIGH|window:C,W",
        help="Which stored grey values become black and white; the detector keeps it (docs/data.md explains each).",
    ),
]
RecipeName = Annotated[
    Preset | None,
    typer.Option(
        "--recipe",
        help="The set of choices to start from; docs/recipes.md compares them. By default fused where the backbone is "
        "several towers, else madclip.",
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="FIELD=VALUE", help="Change one field of the recipe, as in --set epochs=5; can be repeated."
    ),
]
Shots = Annotated[
    str,
    typer.Option(
        metavar="N|NORMAL,ABNORMAL|all",
        help="How many images to learn from: N of each class, NORMAL,ABNORMAL of the two, or all there are. Of "
        "abnormal ones there may be none; 0 goes by the texts alone.",
    ),
]
Seed = Annotated[int, typer.Option(help="Determines which images are drawn, the initial weights and the order.")]
Folds = Annotated[
    int,
    typer.Option(
        help="Parts that the shots are divided into for out-of-fold scores, which thresholds come from; 0: none."
    ),
]
OperatingPoint = Annotated[
    str,
    typer.Option(
        metavar="youden|sens=X|spec=X",
        help="What the threshold aims at: the best sum of sensitivity and specificity, or a value of one of them. "
        "Without abnormal images, youden becomes spec=0.9.",
    ),
]
SelectOption = Annotated[
    Select,
    typer.Option(
        "--select",
        help="Which epoch is kept: the last, the best on shots held out (val), or, as published, on the test images.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        metavar="auto|torch|openvino|onnx|FOLDER",
        help="What computes: PyTorch, or an export; auto takes the fastest in the detector's engines/, else torch.",
    ),
]
Patients = Annotated[
    str,
    typer.Option(
        metavar="auto|none|folder|header|REGEX",
        help="How patients are known: from names or folders where that is safe, not at all, by the first folder below "
        "a class, by the id in DICOM headers, or by a regular expression whose group is the patient, as '^(P[0-9]+)'.",
    ),
]
AxisOption = Annotated[
    Axis,
    typer.Option(
        "--axis", help="How volumes are cut into slices; the detector keeps it. 0, 1 and 2 are a volume's axes on disk."
    ),
]
Tiles = Annotated[
    int,
    typer.Option(
        help="See large images in overlapping squares of so many pixels a side, for lesions that are lost when the "
        "whole is made small; 0 sees them whole. The detector keeps it."
    ),
]
Mpp = Annotated[
    float | None,
    typer.Option(min=0.01, max=100, help="The images are whole slides, read at so many microns per pixel."),
]
Level = Annotated[
    int | None,
    typer.Option(min=0, help="The images are whole slides, read at this level of their pyramid; 0 is the finest."),
]
Slices = Annotated[
    str,
    typer.Option(
        metavar="all|N|START:STOP:STEP",
        help="Which slices of labelled volumes are taken: all, N of each class at even distances, or a range.",
    ),
]
NormalNames = Annotated[
    list[str] | None,
    typer.Option("--normal", metavar="NAME", help="A class folder (or label) of normal images; can be repeated."),
]
AbnormalNames = Annotated[
    list[str] | None,
    typer.Option("--abnormal", metavar="NAME", help="A class folder (or label) of abnormal images; can be repeated."),
]
Force = Annotated[
    bool, typer.Option("--force", help="Go on although the data set has errors that `madclip data check` explains.")
]
SamePatient = Annotated[
    bool,
    typer.Option(
        "--same-patient", help="Measure other images of patients that gave shots too; every number is then marked."
    ),
]
Pool = Annotated[
    Literal["local", "ray"],
    typer.Option("--engine-pool", help="Where workers run: processes of this machine, or actors on a Ray cluster."),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="auto|HOST:PORT",
        help="The Ray cluster, from one of its nodes; without it that of the Ray job, else one started here.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="How many processes work; results do not depend on it. One here; on Ray all it has room for."
    ),
]
Threads = Annotated[int, typer.Option(min=1, help="How many threads each process has.")]
Gpus = Annotated[
    float,
    typer.Option("--gpus-per-worker", min=0, help="GPUs of each worker on Ray; 0.5 lets two share one, 0 takes none."),
]
REAL_WORK = "for real work take CLIP's ViT-L/14 (`madclip backbones` says how), --backbone clip-vit-l-14-336"
DEFAULT_NOTE = (
    f"backbone: {DEFAULT_BACKBONE}, two small towers: tiny, which has the texts, was pre-trained on procedural images, "
    f"lite0 on ImageNet's photographs, and neither has seen a medical image; {REAL_WORK}"
)
TINY_NOTE = f"backbone: tiny, the small bundled one, pre-trained on procedural images; {REAL_WORK}"


def parse_reading(
    patients: str, normal: list[str] | None, abnormal: list[str] | None, slices: str = "all", axis: str = "axial"
) -> Reading:
    """How a data set is to be understood, as `--patients`, `--normal`, `--abnormal`, `--slices` and `--axis` say."""
    from madclip.data.samples import Reading

    return Reading(patients, tuple(normal or ()), tuple(abnormal or ()), axis, slices)


def read_dataset(
    data: Path, reading: Reading, *, force: bool, stop: bool = True, needed: tuple[str, ...] = KINDS
) -> Dataset:
    """A data set as it is to be understood, without errors that a look at its files would find.

    Args:
        data: The folder or the manifest.
        reading: How it is to be understood.
        force: Whether to go on with errors, and without masks in whose folder nothing matches.
        stop: Whether errors that can be lived with stop at all, as they do before anything is learned.
        needed: The classes that must have images.

    Raises:
        DataError: It cannot be read, or has errors and `force` does not say to go on.
    """
    from madclip.data.check import errors_of
    from madclip.data.load import load_dataset

    dataset = load_dataset(data, reading, unmatched=force, needed=needed)
    if errors := errors_of(dataset):
        said = "; ".join(f"{one.message} ({len(one.files)})" if one.files else one.message for one in errors)
        if stop and not force:
            raise DataError(f"{data}: {said}: `madclip data check` names them, --force goes on")
        without = "; these masks are left out" if dataset.unmatched else ""
        note(f"note: {said}{without}")
    return dataset


def said_of_data(dataset: Dataset) -> dict[str, str]:
    """What people should know of a data set: how many patients were found and from what, and what was not used."""
    from madclip.data.samples import said_of_patients, said_of_unused, said_of_volumes

    said = {
        "patients": said_of_patients(dataset),
        "volumes": said_of_volumes(dataset),
        "unused": said_of_unused(dataset),
    }
    return {what: line for what, line in said.items() if line}


def parse_recipe(
    name: str | None,
    changes: list[str] | None,
    grey_range: str | None = None,
    axis: str | None = None,
    tiles: int = 0,
    *,
    backbone: str = DEFAULT_BACKBONE,
) -> Recipe:
    """A preset with the changes given as FIELD=VALUE, and with `--range`, `--axis` and `--tiles` where given.

    Without a name it is the one that goes with the backbone.
    """
    from madclip.recipe import Recipe, parse_field

    fields = dict(parse_field(text) for text in changes or [])
    given = {"grey_range": grey_range, "axis": None if axis == "axial" else axis, "tile": tiles or None}
    preset = name or default_recipe(backbone)
    return Recipe.preset(preset, **fields | {name: value for name, value in given.items() if value is not None})


def parse_shots(text: str) -> int | tuple[int, int] | None:
    """`16`, `16,8` or `16,0` (normal, abnormal), `0`, or `all` (None)."""
    if text == "all":
        return None
    parts = text.split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts) or (len(parts), int(parts[0])) == (2, 0):
        raise RecipeError(f"--shots is a number, NORMAL,ABNORMAL, or all, not {text!r}")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def parse_equal_shots(text: str) -> int:
    """How many shots of a published list, which has as many of each class."""
    shots = parse_shots(text)
    if not isinstance(shots, int):
        raise RecipeError(f"a published list has 2, 4, 8 or 16 images of each class; --shots {text} does not say which")
    return shots


def parse_bytes(text: str) -> int:
    """A size such as 500MB or 5GB."""
    units = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
    number = text.strip().upper().rstrip("BKMGT")
    unit = text.strip().upper()[len(number) :]
    try:
        size = int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        size = -1
    if size < 0:
        raise RecipeError(f"--limit is a size such as 500MB or 5GB, not {text!r}")
    return size


def executor_of(pool: str, address: str | None, workers: int | None, threads: int, gpus: float) -> Executor:
    """What works on many items, as `--engine-pool`, `--address`, `--workers`, `--threads` and `--gpus-per-worker` say.

    Raises:
        RecipeError: An option of Ray is given for processes of this machine.
    """
    if pool == "ray":
        from madclip.scale.ray_pool import RayExecutor

        return RayExecutor(address, workers, threads, gpus)
    if address or gpus:
        raise RecipeError("--address and --gpus-per-worker are for --engine-pool ray")
    from madclip.scale.executor import LocalProcesses

    return LocalProcesses(workers or 1, threads)
