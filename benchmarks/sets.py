"""Labelled data sets as the command lines of this folder name them."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import NamedTuple


class LabelledSet(NamedTuple):
    """A data set: its name in tables, its folder, and what its images show."""

    name: str
    folder: str
    objective: str

    @classmethod
    def parse(cls, text: str) -> LabelledSet:
        """From NAME=FOLDER:OBJECTIVE.

        Raises:
            ArgumentTypeError: A part is missing.
        """
        name, _, rest = text.partition("=")
        folder, _, objective = rest.rpartition(":")
        if not (name and folder and objective):
            raise ArgumentTypeError(f"{text!r} is not NAME=FOLDER:OBJECTIVE")
        return cls(name, folder, objective)


def sets_and_page(usage: str | None) -> Namespace:
    """What was typed for a script that measures on sets, keeps its numbers and shows them: `sets`, `out` and `docs`."""
    parser = ArgumentParser(description=usage, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=LabelledSet.parse, metavar="NAME=FOLDER:OBJECTIVE")
    parser.add_argument("--out", type=Path, required=True, help="where numbers are kept, and not computed again")
    parser.add_argument("--docs", type=Path, help="page to write the tables into")
    return parser.parse_args()
