"""Labelled data sets as the command lines of this folder name them."""

from __future__ import annotations

from argparse import ArgumentTypeError
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
