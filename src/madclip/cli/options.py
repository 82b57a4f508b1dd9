"""Options that several commands share, each said once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from madclip.data.samples import Reading

Engine = Annotated[
    str,
    typer.Option(help="auto (the fastest export in DETECTOR/engines, else torch), torch, openvino, onnx, or a folder."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]
Device = Annotated[str, typer.Option(help="auto (CUDA, then MPS, then CPU), cpu, cuda, mps.")]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", "-b", help="Catalogue id, path or hub name; see `madclip backbones`.")
]
Objective = Annotated[str, typer.Option(help='What the images show, for example "Brain".')]
RecipeName = Annotated[str, typer.Option(help="madclip, paper or released.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="Change a field of the recipe: FIELD=VALUE.")]
Folds = Annotated[int, typer.Option(help="Of the cross-fit behind thresholds and probabilities; 0: none.")]
OperatingPoint = Annotated[str, typer.Option(help="youden, sens=0.95 or spec=0.95.")]
SelectOption = Annotated[str, typer.Option(help="Epoch kept: last, val (held-out shots), test-best (as published).")]
TINY_NOTE = (
    "backbone: tiny, the small bundled one, pre-trained on procedural images; for real work put CLIP's ViT-L/14 beside "
    "it (`madclip backbones` says how) and pass --backbone clip-vit-l-14-336"
)
Patients = Annotated[
    str,
    typer.Option(
        metavar="auto|none|folder|REGEX",
        help="How patients are known: from names or folders where that is safe, not at all, by the first folder below "
        "a class, or by a regular expression whose group is the patient, such as '^(P[0-9]+)'.",
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


def parse_reading(patients: str, normal: list[str] | None, abnormal: list[str] | None) -> Reading:
    """How a data set is to be understood, as `--patients`, `--normal` and `--abnormal` say."""
    from madclip.data.samples import Reading

    return Reading(patients, tuple(normal or ()), tuple(abnormal or ()))
