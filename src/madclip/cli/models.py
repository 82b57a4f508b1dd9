"""`madclip backbones`, `import-released`, `export` and `cache`: weights, detectors and tokens on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from madclip.cli.console import note, print_facts, print_table
from madclip.cli.options import (
    Detector,
    DetectorOut,
    Device,
    Json,
    Modality,
    Overwrite,
    SavedBackbone,
    parse_bytes,
)
from madclip.cli.outputs import check_detector

Format = Literal["openvino", "onnx", "torch"]
Precision = Literal["fp32", "bf16", "int8"]


def backbones(as_json: Json = False) -> None:
    """List known backbones, their licences and folders."""
    from dataclasses import asdict

    from madclip.backbones.catalogue import catalogue

    rows = [{**asdict(entry), "folder": str(entry.folder) if entry.hub else None} for entry in catalogue()]
    if as_json:
        print_facts(True, {"backbones": rows}, "")
        return
    use = {True: "yes", False: "no", None: "not known"}
    shown = [
        [
            r["id"],
            f"{r['depth']} x {r['width']}, patch {r['patch_size']} at {r['image_size']}",
            r["licence"],
            use[r["commercial"]],
            use[r["gated"]],
        ]
        for r in rows
    ]
    print_table(["id", "blocks x width, input", "licence", "commercial use", "gated"], shown)
    typer.echo(
        "\nA name is fetched from its hub once and then works offline. To use a file downloaded by hand, put it in"
    )
    for r in rows:
        if r["hub"]:
            typer.echo(f"  {r['folder']}/{r['file'] or ''}  ({r['hub']})")


def import_released(
    checkpoint: Annotated[Path, typer.Argument(help="A .pth file that the paper's authors published.")],
    out: DetectorOut,
    backbone: Annotated[
        str,
        typer.Option(
            "--backbone", "-b", help="OpenAI's ViT-L/14@336px, which those files need: a name, a path or a hub's name."
        ),
    ],
    objective: Annotated[
        str, typer.Option(help="The words for what the images show that the file was trained with, such as Brain.")
    ],
    image_size: Annotated[int, typer.Option(help="Pixels of a side that the file was trained with.")] = 240,
    image_score: Annotated[
        Literal["max", "mean"],
        typer.Option(help="How an image's score comes from its map: max for sets with masks, mean for those without."),
    ] = "max",
    overwrite: Overwrite = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Turn a checkpoint of the paper into a detector."""
    from madclip.detector import MadCLIP

    check_detector(out, overwrite=overwrite)
    detector = MadCLIP.from_released(
        checkpoint,
        backbone=backbone,
        objective=objective,
        image_size=image_size,
        image_score=image_score,
        device=device,
    )
    detector.save(out)
    print_facts(as_json, {"detector": str(out), **detector.provenance.summary()}, f"{out}: imported {checkpoint}")


def export(
    detector: Detector,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Images that the export is checked on and that int8 is calibrated with; best are the shots, filled up "
            "with others, which need no labels. Can be repeated, for each modality of a joint detector. Without it "
            "phantoms serve, which say less."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="A new folder; without it, DETECTOR/engines/FORMAT-PRECISION, where predict finds it."
        ),
    ] = None,
    engine: Annotated[Format, typer.Option("--format", help="The library that is to run the model.")] = "openvino",
    precision: Annotated[
        Precision,
        typer.Option(help="The numbers it computes with: int8 with openvino and onnx, bf16 with openvino and torch."),
    ] = "fp32",
    modality: Modality = None,
    backbone: SavedBackbone = None,
    as_json: Json = False,
) -> None:
    """Write a detector as a model for another library.

    It is kept only if it says there what the detector says here.
    """
    from madclip.detector import MadCLIP
    from madclip.export.engines import export_engine

    model = MadCLIP.load(detector, backbone=backbone, device="cpu")
    model = model if modality is None else model.of(modality)
    out = out or detector / "engines" / f"{engine}-{precision}"
    facts = export_engine(model, data or (), out, engine=engine, precision=precision)
    check = facts["check"]
    if check["note"]:
        note(f"note: {check['note']}")
    rule = "calibrated threshold" if check["rule"] == "threshold" else "order of pairs, as there is no calibration"
    print_facts(
        as_json,
        {"out": str(out), **facts},
        f"{out}: {engine} in {precision}; on {check['images']} images ({check['shots']} of the shots), "
        f"scores differ by up to {check['score']:.2g}, maps by up to {check['map']:.2g}, "
        f"{check['changed']:.1%} of decisions change, at most {check['upper']:.1%} at 95 % confidence ({rule})",
    )


def cache(
    limit: Annotated[
        str | None, typer.Option(metavar="SIZE", help="How large the cache may grow from now on, such as 5GB.")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Delete everything in the cache.")] = False,
    as_json: Json = False,
) -> None:
    """Show, limit or clear the tokens kept on disk.

    Tokens are what the backbone makes of an image; they derive from your images, so treat them alike.
    """
    from madclip.training.cache import TokenCache

    tokens = TokenCache()
    freed = tokens.clear() if clear else 0
    if limit is not None:
        tokens.limit = parse_bytes(limit)
    size, allowed = tokens.size(), tokens.limit
    facts = {
        "folder": str(tokens.folder),
        "images": len(tokens.entries()),
        "bytes": size,
        "limit": allowed,
        "freed": freed,
    }
    text = f"{facts['folder']}: tokens of {facts['images']} images, {_gigabytes(size)} of {_gigabytes(allowed)} allowed"
    print_facts(as_json, facts, text + (f"; {_gigabytes(freed)} set free" if clear else ""))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
