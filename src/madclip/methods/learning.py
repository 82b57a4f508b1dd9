"""How the methods of comparison learn: what a fit hands them, and one small training loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from madclip.prediction import BATCH
from madclip.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from madclip.training.cache import TokenCache


@dataclass(frozen=True)
class Learning:
    """What a fit hands to a method besides the shots.

    Attributes:
        seed: Determines whatever the method leaves to chance.
        cache: Where tokens are kept on disk; None keeps them in memory.
        progress: Told of every image encoded and of every training step.
    """

    seed: int = 0
    cache: TokenCache | None = None
    progress: Progress = silent

    def generator(self) -> torch.Generator:
        """A new generator of the seed."""
        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True)
class Adam:
    """How a small model is trained.

    Attributes:
        epochs: Passes over the examples.
        rate: Learning rate.
        betas: Decay of the two moments.
        weight_decay: Added to the gradient, times the weights.
        batch: Examples of a step.
        clip: Largest norm of the gradient; None leaves it as it is.
        schedule: Factor of the rate at a share (from 0 to 1) of all steps; None keeps the rate.
    """

    epochs: int
    rate: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    weight_decay: float = 0.0
    batch: int = BATCH
    clip: float | None = None
    schedule: Callable[[float], float] | None = None


def optimise(
    parameters: Iterable[torch.nn.Parameter],
    count: int,
    loss_of: Callable[[torch.Tensor], torch.Tensor],
    how: Adam,
    run: Learning,
) -> None:
    """Train over `count` examples in batches that are drawn anew in every epoch.

    Args:
        parameters: What is learned.
        count: Number of examples.
        loss_of: Loss of a batch, given the numbers of its examples.
        how: Epochs, rate, and so on.
        run: Its seed determines the order; its progress is told of every step.
    """
    learned = list(parameters)
    optimiser = torch.optim.Adam(learned, lr=how.rate, betas=how.betas, weight_decay=how.weight_decay)
    generator = run.generator()
    total, done = how.epochs * -(-count // how.batch), 0
    with torch.enable_grad():
        for _ in range(how.epochs):
            for rows in torch.randperm(count, generator=generator).split(how.batch):
                if how.schedule:
                    optimiser.param_groups[0]["lr"] = how.rate * how.schedule(done / total)
                optimiser.zero_grad()
                loss = loss_of(rows)
                loss.backward()
                if how.clip:
                    torch.nn.utils.clip_grad_norm_(learned, how.clip)
                optimiser.step()
                done += 1
                run.progress("fit", done, total, loss=float(loss.detach()))
