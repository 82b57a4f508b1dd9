"""Tables of an experiment in Markdown, CSV, LaTeX and HTML; published numbers have a column of their own."""

from __future__ import annotations

import csv
import html
import io
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from madclip.benchmark.experiments import ABLATIONS, Cell, tasks_of
from madclip.benchmark.published import published
from madclip.benchmark.registry import registered
from madclip.errors import DataError, RecipeError
from madclip.evaluation.compare import mean_interval, paired_delong

if TYPE_CHECKING:
    from collections.abc import Sequence

TASK_METRIC = {"AC": "image_auroc", "AS": "pixel_auroc"}
PUBLISHED_AS = {
    "madclip": "MadCLIP",
    "paper": "MadCLIP",
    "released": "MadCLIP",
    "patchcore": "PatchCore",
    "april-gan": "APRIL-GAN",
    "mvfa": "MVFA",
    "mediclip": "MediCLIP",
}
"""Names of our methods in the paper's tables."""

Format = Literal["md", "csv", "tex", "html"]


@dataclass(frozen=True)
class Table:
    """Text, ready to be written in any format.

    Attributes:
        title: Above it.
        head: Names of columns.
        rows: As many cells each.
        notes: Below it.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def tables_of(
    experiment: str, cells: Sequence[Cell], found: dict[Cell, dict[str, Any]], *, notes: Sequence[str] = ()
) -> list[Table]:
    """All tables of an experiment; cells that were not run are shown as such.

    Args:
        experiment: Its name.
        cells: All of it.
        found: Those that are finished, from `read_cells`.
        notes: Shown below the first table: with which backbone, on what machine.
    """
    if experiment == "ablations":
        made = [_ablations(cells, found)]
    elif experiment == "real":
        made = [*_by_shots(cells, found), *_paired(cells, found)]
    else:
        made = [_beside_published(experiment, cells, found)]
    first, *rest = made
    return [Table(first.title, first.head, first.rows, (*first.notes, *notes)), *rest]


def _values(found: dict[Cell, dict[str, Any]], task: str) -> dict[tuple[str, int, str], dict[int, float]]:
    """By set, shots and method, the AUROC of each seed in percent."""
    values: dict[tuple[str, int, str], dict[int, float]] = defaultdict(dict)
    for cell, facts in found.items():
        value = facts["metrics"][TASK_METRIC[task]][0]
        if value is not None:
            values[cell.set, cell.shots, cell.method][cell.seed] = 100 * value
    return values


def _ours(draws: dict[int, float]) -> str:
    if not draws:
        return "not run"
    estimate = mean_interval(list(draws.values()))
    assert estimate.value is not None  # noqa: S101
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.1f}"
    return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}]"


def _beside_published(experiment: str, cells: Sequence[Cell], found: dict[Cell, dict[str, Any]]) -> Table:
    rows = []
    own: set[str] = set()
    for name, shots, method in dict.fromkeys((cell.set, cell.shots, cell.method) for cell in cells):
        for task in tasks_of(name):
            draws = _values(found, task)[name, shots, method]
            theirs = published(experiment, name, PUBLISHED_AS.get(method, method), shots, task)  # type: ignore[arg-type]
            difference = "-"
            if theirs is not None and draws:
                difference = _signed({seed: value - theirs for seed, value in draws.items()})
            mark = "*" if _own_split(name) else ""
            own |= {mark} - {""}
            shown = "-" if theirs is None else f"{theirs:.2f}"
            rows.append((name + mark, task, str(shots), method, _ours(draws), shown, difference))
    head = ("set", "task", "shots", "method", "ours", "published (ViT-L/14)", "ours minus published")
    notes: tuple[str, ...] = ("AUROC in percent, mean over draws of shots with Student's 95 % interval.",)
    if own:
        notes += ("* own split: none was published, so ours is another sample of the same originals.",)
    return Table(f"{experiment}: ours beside the published numbers", head, tuple(rows), notes)


def _own_split(name: str) -> bool:
    try:
        return any(registered(part).own_split for part in name.split("->"))
    except RecipeError:
        return False


def _by_shots(cells: Sequence[Cell], found: dict[Cell, dict[str, Any]]) -> list[Table]:
    made = []
    shots = sorted({cell.shots for cell in cells})
    methods = list(dict.fromkeys(cell.method for cell in cells))
    for name in dict.fromkeys(cell.set for cell in cells):
        for task in tasks_of(name):
            values = _values(found, task)
            if task == "AS" and not any(values[name, count, method] for count in shots for method in methods):
                continue
            rows = tuple((method, *(_ours(values[name, count, method]) for count in shots)) for method in methods)
            what = "images" if task == "AC" else "pixels"
            head = ("method", *(f"{count} shots" for count in shots))
            note = "AUROC in percent, mean over draws of shots with Student's 95 % interval."
            made.append(Table(f"{name}, {what}", head, rows, (note,)))
    return made


def _paired(cells: Sequence[Cell], found: dict[Cell, dict[str, Any]], reference: str = "madclip") -> list[Table]:
    """Every method against MadCLIP on the same shots and test images, at the most shots."""
    most = max(cell.shots for cell in cells)
    methods = [m for m in dict.fromkeys(cell.method for cell in cells) if m != reference]
    rows = []
    for name in dict.fromkeys(cell.set for cell in cells):
        for method in methods:
            differences, clear = {}, 0
            for cell in (c for c in found if (c.set, c.shots, c.method) == (name, most, method)):
                ours = found.get(Cell(name, most, cell.seed, reference))
                if ours is None or ours["labels"] != found[cell]["labels"]:
                    continue
                paired = paired_delong(ours["labels"], ours["scores"], found[cell]["scores"])
                if paired.value is None or paired.low is None or paired.high is None:
                    continue
                differences[cell.seed] = 100 * paired.value
                clear += not paired.low <= 0 <= paired.high
            if differences:
                rows.append((name, method, _signed(differences), f"{clear} of {len(differences)}"))
    if not rows:
        return []
    head = ("set", "against", f"{reference} minus it", "draws with a clear difference")
    note = (
        f"Image AUROC, points, {most} shots, same test images. A draw is clear where the paired DeLong interval "
        "excludes 0; it speaks of these shots, the interval over draws of any."
    )
    return [Table(f"{reference} against each method", head, tuple(rows), (note,))]


def _ablations(cells: Sequence[Cell], found: dict[Cell, dict[str, Any]]) -> Table:
    """Drop of the mean over sets when one switch is changed, from draw to draw."""
    rows = []
    for preset in dict.fromkeys(cell.method.partition("-")[0] for cell in cells):
        for letter, (what, _) in ABLATIONS.items():
            for task in ("AC", "AS"):
                values = _values(found, task)
                drops: dict[int, list[float]] = defaultdict(list)
                for (name, shots, method), draws in list(values.items()):
                    if method == f"{preset}-{letter}":
                        for seed, value in draws.items():
                            if seed in values[name, shots, preset]:
                                drops[seed].append(values[name, shots, preset][seed] - value)
                theirs = published("ablations", "Average", letter, None, task)
                ours = {seed: sum(of) / len(of) for seed, of in drops.items()}
                rows.append(
                    (
                        preset,
                        letter,
                        what,
                        task,
                        _signed(ours) if ours else "not run",
                        "-" if theirs is None else f"{theirs:+.2f}",
                    )
                )
    head = ("recipe", "", "change", "task", "drop, ours", "drop, published (ViT-L/14)")
    notes = ("Points of AUROC lost by the change, mean over sets and draws, with Student's 95 % interval over draws.",)
    return Table("Ablations", head, tuple(rows), notes)


def _signed(draws: dict[int, float]) -> str:
    estimate = mean_interval(list(draws.values()))
    assert estimate.value is not None  # noqa: S101
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:+.1f}"
    return f"{estimate.value:+.1f} [{estimate.low:+.1f}, {estimate.high:+.1f}]"


def render(tables: Sequence[Table], kind: Format) -> str:
    """Tables as text.

    Raises:
        DataError: No such format.
    """
    if kind not in WRITERS:
        raise DataError(f"no format {kind!r}: {', '.join(WRITERS)}")
    return "\n\n".join(WRITERS[kind](table) for table in tables) + "\n"


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rows = [line(table.head), "|" + "---|" * len(table.head), *map(line, table.rows)]
    return "\n".join([f"### {table.title}", "", *rows, *(f"\n{note}" for note in table.notes)])


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([f"# {table.title}"])
    writer.writerow(table.head)
    writer.writerows(table.rows)
    return text.getvalue().rstrip("\n")


def _latex(table: Table) -> str:
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", ">": r"$>$"}

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(special.get(c, c) for c in cell) for cell in cells) + r" \\"

    return "\n".join(
        [
            r"\begin{table}",
            r"\caption{" + line([table.title, *table.notes]).removesuffix(r" \\").replace(" & ", ". ") + "}",
            r"\begin{tabular}{" + "l" * len(table.head) + "}",
            r"\hline",
            line(table.head),
            r"\hline",
            *map(line, table.rows),
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def _html(table: Table) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return "\n".join(
        [
            f"<h3>{html.escape(table.title)}</h3>",
            "<table>",
            f"<thead>{line(table.head, 'th')}</thead>",
            "<tbody>",
            *(line(row, "td") for row in table.rows),
            "</tbody>",
            "</table>",
            *(f"<p>{html.escape(note)}</p>" for note in table.notes),
        ]
    )


WRITERS = {"md": _markdown, "csv": _csv, "tex": _latex, "html": _html}
