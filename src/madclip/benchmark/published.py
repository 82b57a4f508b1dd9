"""The numbers that the paper printed, kept apart from those that are measured here."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

from madclip.errors import RecipeError

Table = Literal["table1", "table2", "table3", "ablations"]
Metric = Literal["AC", "AS"]


def published(table: Table, set: str, method: str, shots: int | None, metric: Metric) -> float | None:  # noqa: A002
    """A number of the paper, or None where it reports none.

    Args:
        table: `table1`, `table2`, `table3` or `ablations`.
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


@cache
def _numbers() -> dict[tuple[str, str, str, int | None, str], float]:
    text = files("madclip.benchmark").joinpath("published.json").read_text(encoding="utf-8")
    return {
        (table, name.lower(), method.lower(), shots, metric): float(value)
        for table, name, method, shots, metric, value in json.loads(text)["rows"]
    }
