"""What the commands share: values as typed, tables, JSON, progress bars."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from madclip.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def parse_recipe(name: str, changes: list[str] | None) -> Any:
    """A preset with the changes given as FIELD=VALUE."""
    from madclip.recipe import Recipe, parse_field

    return Recipe.preset(name, **dict(parse_field(text) for text in changes or []))


def parse_shots(text: str) -> int | tuple[int, int] | None:
    """`16`, `16,8` (normal, abnormal) or `all` (None)."""
    if text == "all":
        return None
    parts = text.split(",")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise RecipeError(f"--shots is a number, NORMAL,ABNORMAL, or all, not {text!r}")
    return int(parts[0]) if len(parts) == 1 else (int(parts[0]), int(parts[1]))


def parse_select(text: str) -> Any:
    """How the epoch is chosen."""
    if text not in ("last", "val", "test-best"):
        raise RecipeError(f"--select is last, val or test-best, not {text!r}")
    return text


def parse_equal_shots(text: str) -> int:
    """Shots of a published list, which are as many of each class."""
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


def gigabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e9:.2f} GB"


def print_facts(as_json: bool, facts: dict[str, Any], text: str) -> None:
    """One JSON object for machines, or text for people."""
    shown = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) if as_json else text
    # Names of files need not be valid Unicode; a lone surrogate escaped like this is JSON still.
    typer.echo(shown.encode("utf-8", "backslashreplace").decode())


def print_table(head: list[str], rows: list[list[str]]) -> None:
    """Columns of text."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@contextmanager
def bar(what: str) -> Iterator[Callable[..., None]]:
    """One progress bar; call it with (done, total) or (done, total, loss)."""
    with bars() as progress:
        yield progress(what)


@contextmanager
def bars() -> Iterator[Callable[[str], Callable[..., None]]]:
    """Progress bars on standard error, shown only to people: give each a name, then call it as `bar` says."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[loss]}"), console=console, disable=not console.is_terminal) as bar:

        def add(what: str) -> Callable[..., None]:
            task = bar.add_task(what, total=None, loss="", visible=False)

            def advance(done: int, total: int, loss: float | None = None) -> None:
                shown = "" if loss is None else f"loss {loss:.3f}"
                bar.update(task, completed=done, total=total, loss=shown, visible=True)

            return advance

        yield add
