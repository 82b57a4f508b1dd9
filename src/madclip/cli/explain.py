"""`madclip explain`: the page that shows what a detector learned, and why it says what it says of an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from madclip.cli.console import note, print_facts, shown_progress
from madclip.cli.options import AbnormalNames, Detector, Device, Json, NormalNames, Overwrite, SavedBackbone
from madclip.cli.outputs import check_page
from madclip.recipe import Axis

if TYPE_CHECKING:
    from madclip.data.ref import ImageRef
    from madclip.detector import MadCLIP


def explain(
    detector: Detector,
    image: Annotated[
        str | None,
        typer.Argument(
            help="An image, as for predict; of a volume, series or folder that with the highest score is explained. "
            "Without one, the detector alone."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML page to write, which needs no network.")] = Path(
        "explanation.html"
    ),
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="The folder or manifest that the shots are in, to show them: a detector keeps digests only; can be "
            "repeated, for each modality of a joint one."
        ),
    ] = None,
    modality: Annotated[
        str | None,
        typer.Option(help="Which modality of a joint detector; without it that of the image, or without an image all."),
    ] = None,
    normal: NormalNames = None,
    abnormal: AbnormalNames = None,
    axis: Annotated[
        Axis | None,
        typer.Option(help="How a volume is cut into slices; without it, as the detector learned from them."),
    ] = None,
    overwrite: Overwrite = False,
    backbone: SavedBackbone = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Show what was learned, and why an image has its score.

    A page with pictures says which taps and branches make the score and the map, which shots are most like the image,
    and what the prompts became; and which parts contribute nothing.
    """
    from madclip.cli.options import parse_reading
    from madclip.data.load import scan_dataset
    from madclip.detector import MadCLIP
    from madclip.explain import explain as explained
    from madclip.memory import kept_memory
    from madclip.report.explanation import write_explanation

    check_page(out, overwrite=overwrite)
    model = MadCLIP.load(detector, backbone=backbone, device=device)
    model = model if modality is None else model.of(modality)
    plane = axis or model.recipe.axis
    reading = parse_reading("none", normal, abnormal, axis=plane)
    labelled = [scan_dataset(one, reading) for one in data] if data else None
    with kept_memory(), shown_progress() as progress:
        chosen = None if image is None else _highest(model, image, plane)
        told = explained(model, chosen, data=labelled, progress=progress)
        write_explanation(told, out, detector=detector.name)
    lines = [f"{out}: look at it in a browser", *(f"- {line}" for line in told.findings)]
    print_facts(as_json, {"out": str(out), **told.to_dict()}, "\n".join(lines))


def _highest(model: MadCLIP, named: str, axis: str) -> ImageRef:
    """The image that is named, or of several the one with the highest score, which is said."""
    from madclip.data.inputs import expand_inputs
    from madclip.errors import DataError

    images = expand_inputs([named], axis).images
    if len(images) == 1:
        return images[0]
    best: tuple[float, int] | None = None
    for number, result in enumerate(model.predict_iter(images, native=False)):
        if isinstance(result, DataError):
            note(f"failed: {result}")
        elif best is None or result.score > best[0]:
            best = result.score, number
    if best is None:
        raise DataError(f"{named}: none of its {len(images)} images can be read")
    # By its number: names of scanner files often are a patient's.
    chosen = images[best[1]]
    mark = f" ({chosen.mark})" if chosen.mark else ""
    note(f"image {best[1] + 1} of {len(images)}{mark} has the highest score")
    return chosen
