"""The data sets of the paper's tables: what they hold, where they come from, and how many images there should be."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from madclip.errors import RecipeError

if TYPE_CHECKING:
    from madclip.data.check import CheckReport, Problem


@dataclass(frozen=True)
class RegisteredSet:
    """One data set of the paper's tables.

    Attributes:
        name: As in the tables.
        aliases: Other names, such as the folder of BMAD.
        title: For a person.
        objective: What the images show, as in the paper's prompts.
        tasks: `AC` (which images), `AS` (which pixels); `AS` only where there are masks.
        counts: By split, the images in `total`, and `normal` and `abnormal` where they are known; empty where no split
            was published.
        layout: Its folders, as they are read.
        licence: Licence of the images; "see the source" where it cannot be said in a word.
        obtain: Where it comes from.
        citation: What to cite.
        own_split: No rule of the split was published: one made from the original download is our own.
        note: What else a reader of a table should know.
    """

    name: str
    aliases: tuple[str, ...]
    title: str
    objective: str
    tasks: tuple[str, ...]
    counts: dict[str, dict[str, int]]
    layout: str
    licence: str
    obtain: str
    citation: str
    own_split: bool
    note: str

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return asdict(self)

    @property
    def folders(self) -> tuple[str, ...]:
        """Names of folders that nobody gives a set of his own: the set's name and those of published downloads."""
        return self.name, *(alias for alias in self.aliases if "_" in alias)


@cache
def all_sets() -> tuple[RegisteredSet, ...]:
    """Every registered set, those of Tables 1 and 2 before the targets of Table 3."""
    text = files("madclip.benchmark").joinpath("registry.json").read_text(encoding="utf-8")
    return tuple(
        RegisteredSet(**{**entry, "aliases": tuple(entry["aliases"]), "tasks": tuple(entry["tasks"])})
        for entry in json.loads(text)["sets"]
    )


def registered(name: str) -> RegisteredSet:
    """The set of a name or an alias, in any case.

    Raises:
        RecipeError: There is none.
    """
    for entry in all_sets():
        if name.lower() in {known.lower() for known in (entry.name, *entry.aliases)}:
            return entry
    raise RecipeError(f"{name!r} is not a registered set; known: {', '.join(entry.name for entry in all_sets())}")


def by_name(name: str) -> RegisteredSet | None:
    """The set of exactly this name."""
    return next((entry for entry in all_sets() if entry.name == name), None)


def by_folder(name: str) -> RegisteredSet | None:
    """The set that a folder of exactly this name holds, to go by the name alone."""
    return next((entry for entry in all_sets() if name in entry.folders), None)


def compare_counts(entry: RegisteredSet, report: CheckReport) -> tuple[Problem, ...]:
    """An error for each split whose images are not as many as the registered ones.

    A missing training split is none: nothing is learned from it.
    """
    from madclip.data.check import KINDS, Problem

    severity, meaning = KINDS["counts"]
    problems = []
    for split, expected in entry.counts.items():
        counted = report.counts.get(split, {"normal": 0, "abnormal": 0})
        found = {**counted, "total": counted["normal"] + counted["abnormal"]}
        if split == "train" and not found["total"]:
            continue
        wrong = [
            f"{found[what]} {what} instead of {number}" for what, number in expected.items() if found[what] != number
        ]
        if wrong:
            problems.append(Problem(severity, "counts", f"{meaning} ({entry.name}, {split}): {', '.join(wrong)}", ()))
    return tuple(problems)
