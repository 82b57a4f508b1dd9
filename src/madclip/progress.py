"""How whoever waits is told how far a long computation is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as work goes on; the command line draws it, a server forwards it, a test records it."""

    def __call__(self, stage: str, done: int, total: int, /, *, loss: float | None = None, part: str = "") -> None:
        """Say how far a stage is.

        Args:
            stage: What is being done, one word or two: `encode`, `fit`, `out-of-fold`, `evaluate`.
            done: Units that are finished, over the whole of the stage.
            total: Units that the stage has.
            loss: The loss of the training step just done.
            part: Which part of the stage this is, as `fold 2 of 4`.
        """


def silent(stage: str, done: int, total: int, /, *, loss: float | None = None, part: str = "") -> None:
    """A Progress that nobody sees."""
