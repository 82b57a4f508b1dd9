"""The training loop on cached tokens (method: section 6): deterministic, and resumable after a kill at any moment."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from madclip.errors import CheckpointError
from madclip.files import new_file
from madclip.memory import kept_memory
from madclip.progress import Progress, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

    from madclip.head.head import Head, Terms
    from madclip.recipe import Recipe
    from madclip.training.encode import TrainingSet

CHECKPOINT_FORMAT = 2


History = list[dict[str, float]]
"""Mean loss terms of every finished epoch."""


@dataclass(frozen=True)
class Checkpoint:
    """Where the state of a fit under way is kept, so that a fit that was killed can go on.

    Attributes:
        path: The file, written atomically.
        run: What the fit depends on besides its training set, as JSON values; the state of another run is refused.
        resume: Whether to go on from the file where there is one.
        seconds: Time between two writes.
    """

    path: Path
    run: dict[str, Any] = field(default_factory=dict)
    resume: bool = False
    seconds: float = 10.0


def epoch_order(labels: torch.Tensor, variants: int, seed: int, epoch: int) -> torch.Tensor:
    """Pairs (shot, variant) of an epoch in order, [M, 2]; a function of the seed and the epoch alone.

    With as many normal as abnormal shots every pair comes once. Otherwise the smaller class is repeated until both
    are equally frequent.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    pairs = torch.cartesian_prod(torch.arange(len(labels)), torch.arange(variants)).view(-1, 2)
    by_class = [pairs[labels[pairs[:, 0]] == c] for c in (0, 1)]
    most = max(map(len, by_class))
    balanced = []
    for members in by_class:
        rounds = [members[torch.randperm(len(members), generator=generator)] for _ in range(-(-most // len(members)))]
        balanced.append(torch.cat(rounds)[:most])
    every = torch.cat(balanced)
    return every[torch.randperm(len(every), generator=generator)]


def fit_head(
    head: Head,
    data: TrainingSet,
    recipe: Recipe,
    *,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    on_epoch: Callable[[int, Head], None] | None = None,
) -> History:
    """Train a head in place.

    Args:
        head: What is learned.
        data: Tokens, masks and labels of the shots' variants.
        recipe: Optimiser, schedule, batch size, epochs.
        seed: Determines the order of images.
        checkpoint: Where the state of the fit under way is kept; None keeps none.
        progress: Told of every step, as stage `fit`.
        on_epoch: Called after each epoch with the number of epochs done and the head.

    Raises:
        CheckpointError: The checkpoint belongs to another fit, or cannot be read or written.
    """

    def done(epoch: int) -> None:
        if on_epoch:
            on_epoch(epoch, head)

    return fit_heads(head, [(head, data)], recipe, seed=seed, checkpoint=checkpoint, progress=progress, on_epoch=done)


@kept_memory()
def fit_heads(
    learned: nn.Module,
    sets: Sequence[tuple[Head, TrainingSet]],
    recipe: Recipe,
    *,
    seed: int = 0,
    checkpoint: Checkpoint | None = None,
    progress: Progress = silent,
    on_epoch: Callable[[int], None] | None = None,
) -> History:
    """Train heads that share weights, in place and in one pass over all sets; each step is on images of one set.

    Args:
        learned: What holds the parameters of all heads.
        sets: Each head, and what it learns from.
        recipe: As for `fit_head`, and so are the rest.
        seed: Determines the order of images, and of sets.
        checkpoint: See `fit_head`.
        progress: See `fit_head`.
        on_epoch: Called after each epoch with the number of epochs done.

    Raises:
        CheckpointError: See `fit_head`.
    """
    optimiser = new_optimiser(learned, recipe)
    state = _State(learned, optimiser, checkpoint.run if checkpoint else {})
    if checkpoint and checkpoint.resume and checkpoint.path.exists():
        state.load(checkpoint.path)
    batches = len(_batches(sets, recipe.batch_size, seed, 0))
    total = batches * recipe.epochs
    saved = time.monotonic()
    for epoch in range(state.step // batches, recipe.epochs):
        for number, pairs in _batches(sets, recipe.batch_size, seed, epoch)[state.step - epoch * batches :]:
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(recipe, state.step / total)
            head, data = sets[number]
            terms = training_step(head, optimiser, data, pairs)
            state.advance(terms, batches)
            progress("fit", state.step, total, loss=sum(terms.values()))
            if checkpoint and time.monotonic() - saved >= checkpoint.seconds:
                state.save(checkpoint.path)
                saved = time.monotonic()
        if on_epoch:
            on_epoch(epoch + 1)
    return state.history


def _batches(
    sets: Sequence[tuple[Head, TrainingSet]], size: int, seed: int, epoch: int
) -> list[tuple[int, torch.Tensor]]:
    """The steps of an epoch: the number of a set, and pairs (shot, variant) of it; those of several sets mixed."""
    every = [
        (number, pairs)
        for number, (_, data) in enumerate(sets)
        for pairs in epoch_order(data.labels, data.masks.shape[1], seed, epoch).split(size)
    ]
    if len(sets) == 1:
        return every
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return [every[i] for i in torch.randperm(len(every), generator=generator).tolist()]


def new_optimiser(head: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay; all of a step in one pass over the weights."""
    return torch.optim.AdamW(
        head.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay, fused=True
    )


def _schedule(recipe: Recipe, progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress)) if recipe.schedule == "cosine" else 1.0


def batch_terms(
    head: Head, tokens: torch.Tensor, labels: torch.Tensor, masks: torch.Tensor | None, masked: torch.Tensor | None
) -> Terms:
    """Loss terms of a batch from its tokens [B, T, G, d]; the rest as for `Head.loss`."""
    return head.loss(head(tokens.unbind(1), head.text()), labels, masks, masked)


def training_step(
    head: Head,
    optimiser: torch.optim.Optimizer,
    data: TrainingSet,
    pairs: torch.Tensor,
) -> dict[str, float]:
    """One step on a batch of pairs (shot, variant) [M, 2]; its loss terms, summed over taps."""
    device = next(head.parameters()).device
    shots, variants = pairs.unbind(1)
    # Tap by tap in memory, as the head reads them.
    tokens = torch.stack([data.tokens[i][v] for i, v in pairs.tolist()], 1).to(device).transpose(0, 1)
    masked = data.masked[shots].nonzero()[:, 0]
    masks = data.masks[shots[masked], variants[masked]].to(device) if len(masked) else None
    which = None if len(masked) == len(shots) else masked.to(device)
    optimiser.zero_grad(set_to_none=True)
    terms = batch_terms(head, tokens, data.labels[shots].to(device), masks, which)
    terms.total.backward()
    optimiser.step()
    return {name: value.sum().item() for name, value in terms._asdict().items()}


class _State:
    """All that a fit under way consists of."""

    def __init__(self, head: nn.Module, optimiser: torch.optim.Optimizer, run: dict[str, Any]) -> None:
        self.parameters = dict(head.named_parameters())
        self.optimiser, self.run = optimiser, run
        self.step, self.sums = 0, dict[str, float]()
        self.history: History = []

    def advance(self, terms: dict[str, float], batches: int) -> None:
        self.step += 1
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in terms.items()}
        if self.step % batches == 0:
            self.history.append({name: value / batches for name, value in self.sums.items()})
            self.sums = {}

    def save(self, path: Path) -> None:
        tensors = {f"parameter/{name}": p.detach() for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            for key, value in self.optimiser.state[p].items():
                tensors[f"optimiser/{key}/{name}"] = value
        facts = {
            "format": CHECKPOINT_FORMAT,
            "run": self.run,
            "step": self.step,
            "sums": self.sums,
            "history": self.history,
        }
        whole = {name: value.contiguous() for name, value in tensors.items()}
        try:
            with new_file(path) as partial:
                save_file(whole, partial, metadata={"facts": json.dumps(facts)})
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: cannot save the fit under way ({error})") from error

    def load(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: not the state of a fit; delete it to start anew ({error})") from error
        if facts.get("format") != CHECKPOINT_FORMAT or facts["run"] != json.loads(json.dumps(self.run)):
            changed = [
                key for key in self.run if facts.get("run", {}).get(key) != json.loads(json.dumps(self.run[key]))
            ]
            raise CheckpointError(
                f"{path}: the state of another fit ({', '.join(changed) or 'format'} differ); "
                "fit without --resume to start anew"
            )
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[f"parameter/{name}"])
                kept = (key for key in tensors if key.startswith("optimiser/") and key.endswith(f"/{name}"))
                self.optimiser.state[p] = {key.split("/")[1]: tensors[key].to(p.device) for key in kept}
        self.step, self.sums = facts["step"], facts["sums"]
        self.history = facts["history"]
