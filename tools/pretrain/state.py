"""A run on disk: weights, moments and where it stands, in one file without pickle, replaced as a whole."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tools.pretrain.data import Stream
from tools.pretrain.model import TowerConfig, Towers, load_clip_state

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
SCALARS = ("log_scale", "bias", "state_log_scale", "state_bias", "dense_log_scale", "dense_bias")
"""Temperatures and biases: they have far to go, and learn ten times as fast."""


@dataclass(frozen=True)
class Plan:
    """What a run does; with the code and the machine it determines every byte.

    Attributes:
        samples: Images to see in all, the decay included.
        decay: Images of the decay, at the end or from the signal on.
        full: Share of the decay that sees all patches.
        keep: Share of the patches that a view keeps before that.
        rate: Learning rate of the stable phase.
        warmup: Steps to reach it.
        weight_decay: Of matrices.
        dtype: Of forward and backward.
        teacher: A vision tower whose tokens are predicted too; empty for none.
    """

    samples: int = 400_000
    decay: int = 60_000
    full: float = 0.4
    keep: float = 0.25
    rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.05
    dtype: str = "bfloat16"
    teacher: str = ""


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: Steps done.
        samples: Images seen, each time that one is seen.
        seconds: Spent training so far.
        decay_from: Images seen when the decay began; None in the stable phase.
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    decay_from: int | None = None


@dataclass(frozen=True)
class Run:
    """All that a checkpoint holds."""

    towers: Towers
    optimiser: torch.optim.AdamW
    plan: Plan
    stream: Stream
    progress: Progress


def start(plan: Plan, stream: Stream, config: TowerConfig) -> Run:
    """A run at step 0."""
    towers = Towers(config).initialise(torch.Generator().manual_seed(stream.seed))
    return Run(towers, _optimiser(towers, plan), plan, stream, Progress())


def start_from(folder: Path, plan: Plan, stream: Stream, config: TowerConfig) -> Run:
    """A run at step 0 whose towers are those of an exported folder; what only training needs is new.

    Raises:
        KeyError: The folder's weights are not of such towers.
        RuntimeError: They have other sizes.
    """
    run = start(plan, stream, config)
    load_clip_state(run.towers, load_file(folder / "model.safetensors"))
    return run


def save(run: Run, path: Path) -> None:
    """Write a checkpoint under a temporary name, then put it in place."""
    tensors = {}
    for name, parameter in run.towers.named_parameters():
        moments = run.optimiser.state[parameter]
        tensors[f"weight.{name}"] = parameter.detach()
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"{key}.{name}"] = moments[key] if moments else torch.zeros_like(parameter)
    facts = {
        "format": FORMAT,
        "config": asdict(run.towers.config),
        "stream": asdict(run.stream),
        "plan": asdict(run.plan),
        "progress": asdict(run.progress),
    }
    temporary = path.with_suffix(".part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, {"run": json.dumps(facts)})
    temporary.replace(path)


def load(path: Path) -> Run:
    """Read a checkpoint.

    Raises:
        ValueError: The file is of another format.
    """
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["run"])
        if facts["format"] != FORMAT:
            raise ValueError(f"{path} is of format {facts['format']}, not {FORMAT}: use the code that wrote it")
        towers = Towers(TowerConfig(**facts["config"]))
        plan = Plan(**facts["plan"])
        stream = Stream(**facts["stream"] | {"modalities": tuple(facts["stream"]["modalities"])})
        optimiser = _optimiser(towers, plan)
        step = facts["progress"]["step"]
        for name, parameter in towers.named_parameters():
            parameter.data.copy_(file.get_tensor(f"weight.{name}"))
            optimiser.state[parameter] = {"step": torch.tensor(float(step))} | {
                key: file.get_tensor(f"{key}.{name}") for key in ("exp_avg", "exp_avg_sq")
            }
    return Run(towers, optimiser, plan, stream, Progress(**facts["progress"]))


def _optimiser(towers: Towers, plan: Plan) -> torch.optim.AdamW:
    matrices = [p for p in towers.parameters() if p.dim() > 1]
    vectors = [p for name, p in towers.named_parameters() if p.dim() < 2 and name not in SCALARS]
    scalars = [p for name, p in towers.named_parameters() if name in SCALARS]
    groups = [
        {"params": matrices, "weight_decay": plan.weight_decay, "factor": 1.0},
        {"params": vectors, "weight_decay": 0.0, "factor": 1.0},
        {"params": scalars, "weight_decay": 0.0, "factor": 10.0},
    ]
    return torch.optim.AdamW(groups, lr=plan.rate, betas=(0.9, 0.98), eps=1e-6, fused=True)
