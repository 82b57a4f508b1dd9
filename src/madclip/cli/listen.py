"""`madclip listen`: a DICOM storage service that predicts what arrives."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from madclip.cli.console import note
from madclip.cli.options import Detector, Device, SavedBackbone
from madclip.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def listen(
    detector: Detector,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen at.")],
    sender: Annotated[
        list[str], typer.Option("--from", metavar="AETITLE", help="An AE title that may send; can be repeated.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A folder for what arrives, results, and what is still to be sent.")
    ],
    title: Annotated[str, typer.Option(help="Our AE title.")] = "MADCLIP",
    host: Annotated[str, typer.Option(help="The address to listen at; by default only this machine.")] = "127.0.0.1",
    to: Annotated[
        str | None, typer.Option(metavar="HOST:PORT:AETITLE|URL", help="Where results go: by C-STORE, or to DICOMweb.")
    ] = None,
    dicom: Annotated[
        str, typer.Option(metavar="seg,map,picture,report", help="Which DICOM objects are made of each series.")
    ] = "seg,report",
    region: Annotated[
        float | None, typer.Option(min=0, max=1, help="As for predict: the value of a map that bounds the SEG.")
    ] = None,
    quiet: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a new image after which a study is complete.")
    ] = 30.0,
    backbone: SavedBackbone = None,
    device: Device = "auto",
) -> None:
    """Predict studies that scanners and archives send.

    A DICOM storage service: each study is predicted when it is complete, and its results are sent on. Only AE titles
    that are named may send. Each study is handled once, also after a restart; what could not be sent waits on disk and
    is tried again. It runs until Ctrl-C.
    """
    from madclip.clinical.listen import Spool, handle, serve
    from madclip.data.inputs import expand_inputs
    from madclip.detector import MadCLIP
    from madclip.memory import kept_memory
    from madclip.report.dicom import parse_kinds
    from madclip.report.plan import Output
    from madclip.report.predictions import predict_folder

    send = _sender(to, title)
    output = Output(dicom=parse_kinds(dicom), region=region)
    model = MadCLIP.load(detector, backbone=backbone, device=device)
    spool = Spool(out, quiet)

    def predict(study: Path, folder: Path, run: int) -> None:
        found = expand_inputs([study], model.recipe.axis)
        again = replace(output, run=run)
        predict_folder(model, found, folder, output=again, about={"Detector": detector.name})

    server = serve(spool, sender, title, (host, port))
    note(f"listening at {host}:{port} as {title}; Ctrl-C ends it")
    try:
        with kept_memory():
            while True:
                for line in handle(spool, predict, send):
                    note(line)
                time.sleep(min(1.0, quiet / 2))
    finally:
        server.shutdown()


def _sender(to: str | None, title: str) -> Callable[[Sequence[Path]], None]:
    """What sends DICOM objects on to where the user says; without a place they stay in the results."""
    if to is None:
        return lambda _: None
    if to.startswith(("http://", "https://")):
        from madclip.clinical.dicomweb import store

        def stow(paths: Sequence[Path]) -> None:
            store(to, paths)

        return stow
    from madclip.clinical.listen import Peer, send_to

    peer = Peer.parse(to)
    if peer.title == title:
        raise RecipeError(f"{to}: results would be sent to ourselves; name another AE title")
    return lambda paths: send_to(peer, title, paths)
