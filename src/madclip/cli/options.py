"""Options that several commands share, each said once."""

from __future__ import annotations

from typing import Annotated

import typer

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
