"""The numbers that the paper printed, kept apart from those that are measured here."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

from madclip.errors import RecipeError

Table = Literal["table1", "table2", "table3", "ablations", "normal-only", "zero-shot"]
Metric = Literal["AC", "AS"]


def published(table: Table, set: str, method: str, shots: int | None, metric: Metric) -> float | None:  # noqa: A002
    """A number of the paper, or None where it reports none.

    Args:
        table: `table1`, `table2`, `table3` or `ablations`; `normal-only` and `zero-shot` are other papers' numbers.
        set: A set of the table or `Average`; in Table 3 `SOURCE->TARGET`, for example `Chest->NIHChest`.
        method: As in the paper, in any case; for the ablations their letter, `a` to `f`.
        shots: Images of each class; None for the ablations, whose text does not say.
        metric: `AC` or `AS`.

    Returns:
        AUROC in percent; for the ablations the drop of the average, in points.

    Raises:
        RecipeError: There is no such table or metric.
    """
    if table not in get_args(Table) or metric not in get_args(Metric):
        raise RecipeError(
            f"the paper has no {metric!r} in {table!r}; "
            f"tables: {', '.join(get_args(Table))}; metrics: {', '.join(get_args(Metric))}"
        )
    return _numbers().get((table, set.lower(), method.lower(), shots, metric))


def protocol(table: Table) -> str:
    """How numbers came about that are not the paper's own, in a sentence; empty for the paper's."""
    found: str = _file().get("protocols", {}).get(table, "")
    return found


def published_rows(table: Table) -> list[tuple[str, str, str, float]]:
    """Method, set, task and number of every entry of a table, in the order of the file."""
    return [(method, name, task, value) for kind, name, method, _, task, value in _file()["rows"] if kind == table]


@cache
def _file() -> dict[str, Any]:
    text = files("madclip.benchmark").joinpath("published.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


@cache
def _numbers() -> dict[tuple[str, str, str, int | None, str], float]:
    return {
        (table, name.lower(), method.lower(), shots, metric): float(value)
        for table, name, method, shots, metric, value in _file()["rows"]
    }
