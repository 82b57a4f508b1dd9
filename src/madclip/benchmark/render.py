"""Tables as Markdown, CSV, LaTeX and HTML."""

from __future__ import annotations

import csv
import html
import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tabulate import LATEX_ESCAPE_RULES, tabulate

from madclip.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Format = Literal["md", "csv", "tex", "html"]
DAGGER = "†"


@dataclass(frozen=True)
class Table:
    """Text, ready to be written in any format.

    Attributes:
        title: Stands above it.
        head: Names of columns.
        rows: As many cells each.
        notes: Stand below it.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def render(tables: Sequence[Table], kind: Format) -> str:
    """Tables as text.

    Raises:
        DataError: No such format.
    """
    if kind not in WRITERS:
        raise DataError(f"no format {kind!r}: {', '.join(WRITERS)}")
    body = "\n\n".join(WRITERS[kind](table) for table in tables) + "\n"
    return f'<!doctype html>\n<meta charset="utf-8">\n{body}' if kind == "html" else body


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of text."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (head, *rows)]
    return str(tabulate(lines[1:], lines[0], "github", disable_numparse=True))


def _markdown(table: Table) -> str:
    return "\n".join([f"### {table.title}", "", markdown(table.head, table.rows), *(f"\n{n}" for n in table.notes)])


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f"# {table.title}"])
    writer.writerow(table.head)
    writer.writerows(table.rows)
    return text.getvalue().rstrip("\n")


def _latex(table: Table) -> str:
    body = str(tabulate(table.rows, table.head, "latex", disable_numparse=True))
    # A bracket after \\ would be read as its argument.
    body = re.sub(r"^ \[", " {}[", body, flags=re.MULTILINE)
    caption = " ".join(f"{part.removesuffix('.')}." for part in (table.title, *table.notes))
    escaped = "".join(LATEX_ESCAPE_RULES.get(character, character) for character in caption)
    text = "\n".join([r"\begin{table}", rf"\caption{{{escaped}}}", body, r"\end{table}"])
    return text.replace(DAGGER, r"\dag{}")


def _html(table: Table) -> str:
    body = str(tabulate(table.rows, table.head, "html", disable_numparse=True))
    return "\n".join([f"<h3>{html.escape(table.title)}</h3>", body, *(f"<p>{html.escape(n)}</p>" for n in table.notes)])


WRITERS = {"md": _markdown, "csv": _csv, "tex": _latex, "html": _html}
