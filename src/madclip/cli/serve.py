"""`madclip serve`: the page for people who do not program, and the REST API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from madclip.cli.console import note


def serve(
    data: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders of images to open; more can be opened and uploaded on the page."),
    ] = None,
    project: Annotated[Path, typer.Option(help="The folder that labels, detectors and results are kept in.")] = Path(
        "madclip-project"
    ),
    host: Annotated[str, typer.Option(help="The address to listen at; by default only this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port to listen at; 0 takes a free one.")] = 8765,
    token_file: Annotated[
        Path | None,
        typer.Option(help="Ask for a token, whose digest is in this file; where there is no file, one is made."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            "--backbone",
            "-b",
            help="The frozen CLIP of the next fit, as for `madclip fit`; without it what the project has.",
        ),
    ] = None,
    objective: Annotated[
        str | None, typer.Option(help='What the images show, as a few English words such as "Brain".')
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Draw images of no patient and open them.")] = False,
) -> None:
    """Open a page on which to label, learn, look and correct.

    It is the REST API for programs as well. It runs until Ctrl-C, and goes on where it was with the same project.
    """
    from madclip.serve.app import Serving, serve

    folders = list(data or ())
    if demo:
        from madclip.serve.demo import draw_demo

        folders.append(draw_demo(project))
        objective = objective or "Brain"
    serve(Serving(project, host, port, token_file, folders, backbone, objective), note)
