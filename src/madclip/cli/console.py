"""What people and programs see of a command: progress, tables, JSON."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from madclip.progress import Progress

EVERY = 15.0
"""Seconds from one line to the next where nobody watches a terminal."""


def print_facts(as_json: bool, facts: dict[str, Any], text: str) -> None:
    """One JSON object for machines, or text for people."""
    shown = json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) if as_json else text
    typer.echo(_encodable(shown))


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns of text under a heading, with every cell as it was given."""
    from tabulate import tabulate

    typer.echo(_encodable(tabulate(rows, head, tablefmt="simple", disable_numparse=True)))


def note(text: str) -> None:
    """Tell people something on standard error, where it does not get into what a program reads."""
    typer.echo(_encodable(text), err=True)


def _encodable(text: str) -> str:
    # Names of files need not be valid Unicode; a lone surrogate escaped like this is JSON still.
    return text.encode("utf-8", "backslashreplace").decode()


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A Progress that draws one bar for each stage on standard error, or writes lines there if it is no terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield ProgressLines(lambda line: print(line, file=sys.stderr, flush=True))
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[said]}"), console=console) as bars:
        yield ProgressBars(bars)


class ProgressBars:
    """One bar for each stage, over all of its parts, with the part under way and the loss beside it."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}

    def __call__(self, stage: str, done: int, total: int, /, *, loss: float | None = None, part: str = "") -> None:
        """Move the bar of a stage; one that begins again is timed anew."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=None, said="")
        elif done < self._done[stage]:
            self._bars.reset(self._tasks[stage])
        self._done[stage] = done
        self._bars.update(self._tasks[stage], completed=done, total=total, said=_beside(loss, part))


class ProgressLines:
    """A line from time to time, the first after as long: what is quick says nothing.

    Args:
        write: Given each line.
        clock: Seconds, of which only differences count.
    """

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write, self._clock = write, clock
        self._last = clock()
        self._stage, self._start, self._from, self._done = "", self._last, 0, 0

    def __call__(self, stage: str, done: int, total: int, /, *, loss: float | None = None, part: str = "") -> None:
        """Write how far a stage is and how long the rest of it will take, where it is time to."""
        now = self._clock()
        if stage != self._stage or done < self._done:
            self._stage, self._start, self._from = stage, now, done
        self._done = done
        if now - self._last < EVERY:
            return
        self._last = now
        line = f"{stage}: {done} of {total}"
        if beside := _beside(loss, part):
            line += f", {beside}"
        if self._from < done < total:
            line += f", {_duration((now - self._start) / (done - self._from) * (total - done))} left"
        self._write(line)


def _beside(loss: float | None, part: str) -> str:
    return ", ".join(said for said in (part, "" if loss is None else f"loss {loss:.3f}") if said)


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes:.0f} min" if minutes < 100 else f"{hours:.1f} h"
