"""`madclip bench`: tables, methods side by side, and speed."""

from __future__ import annotations

import typer

bench_app = typer.Typer(help="Tables of the paper, methods side by side, and speed.", no_args_is_help=True)
