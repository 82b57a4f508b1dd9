"""The commands under one name, and how an error ends them. `madclip --help` shows them."""

from __future__ import annotations

import errno
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, TextIO, cast

import typer

from madclip.cli.bench import bench_app, benchmark_app
from madclip.cli.calibrate import calibrate
from madclip.cli.console import note
from madclip.cli.data import data_app
from madclip.cli.demo import demo, phantoms
from madclip.cli.explain import explain
from madclip.cli.fit import fit, refit, repeat
from madclip.cli.licences import licences
from madclip.cli.listen import listen
from madclip.cli.models import backbones, cache, export, import_released
from madclip.cli.predict import evaluate, predict
from madclip.cli.serve import serve
from madclip.errors import MadCLIPError, MadCLIPWarning

app = typer.Typer(
    name="madclip",
    help="Few-shot medical anomaly detection with a frozen CLIP. Research software, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_COMMANDS: list[Callable[..., None]] = [fit, refit, calibrate, predict, evaluate, explain, repeat]
_COMMANDS += [export, listen, serve, import_released, backbones, cache, licences, phantoms, demo]
for command in _COMMANDS:
    app.command()(command)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench", no_args_is_help=True)
app.add_typer(benchmark_app, name="benchmark")

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
"""What may go wrong with a place that the user chose to write to."""
_UsageError = cast("type[Exception]", typer.BadParameter.__base__)
"""Typer brings a click of its own or uses the one installed: this is the class of whichever it is."""


@app.callback(invoke_without_command=True)
def _top(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where in the program an error arose.")] = False,  # noqa: ARG001
) -> None:
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"madclip {installed('madclip')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main() -> None:
    """Run the command line; errors that a user can mend are one line and exit code 2, Ctrl-C is 130."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    _note_warnings()
    try:
        words = [argument for argument in arguments if argument != "--debug"]
        code = app(args=words, prog_name="madclip", standalone_mode=False)
    except _UsageError as error:
        code = _refused(error)
    except MadCLIPError as error:
        if debug:
            raise
        code = _failed(str(error))
    except OSError as error:
        if debug or error.errno not in _DISK:
            raise
        code = _failed(f"{error.filename or 'the disk'}: {error.strerror}")
    if code == 130:  # typer makes this of Ctrl-C, without a word
        note("interrupted")
    raise SystemExit(code)


def _note_warnings() -> None:
    """Let warnings of this package be one line, said once; those of other libraries stay as they are."""
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, MadCLIPWarning):
            note(f"note: {message}")
        else:
            shown(message, category, filename, lineno, file, line)

    warnings.simplefilter("once", MadCLIPWarning)
    warnings.showwarning = show


def _failed(reason: str) -> int:
    note(f"error: {reason}")
    return 2


def _refused(error: Exception) -> int:
    """Say in one line what is wrong with the words that were typed, and where help is."""
    message = error.format_message()  # type: ignore[attr-defined]
    if "\n" in message:  # a group without a command: its help
        note(message)
        return 2
    where = error.ctx.command_path if error.ctx else "madclip"  # type: ignore[attr-defined]
    return _failed(f"{message.removesuffix('.').replace('Value error, ', '')} (see `{where} --help`)")
