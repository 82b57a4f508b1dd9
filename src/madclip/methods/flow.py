"""Conditional normalising flows on patch tokens: what CFLOW-AD and BGAD share."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from madclip.errors import MissingExtraError
from madclip.methods.base import Baseline
from madclip.methods.learning import Adam, Learning, optimise
from madclip.methods.tokens import Standard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BLOCKS, CLAMP = 8, 1.9
CHANNELS = 128
"""Numbers of a token that a flow reads, and of the code of its position."""
RATE, FIBRES = 2e-3, 512
WARM_UP = 0.1
"""Share of the steps in which the rate rises from a tenth."""


class Flow(torch.nn.Module):
    """A conditional normalising flow: affine couplings, each followed by a fixed permutation of the channels.

    Args:
        channels: Size of what it models.
        condition: Size of what that depends on.
        seed: Determines the permutations and the initial weights.

    Raises:
        MissingExtraError: FrEIA is not installed.
    """

    def __init__(self, channels: int, condition: int, seed: int = 0) -> None:
        super().__init__()
        framework, modules = _freia()
        self.channels = channels
        with _seeded(seed):
            self.couplings = framework.SequenceINN(channels)
            for _ in range(BLOCKS):
                self.couplings.append(
                    modules.AllInOneBlock,
                    cond=0,
                    cond_shape=(condition,),
                    subnet_constructor=_subnet,
                    affine_clamping=CLAMP,
                    global_affine_type="SOFTPLUS",
                )

    def log_likelihood(self, values: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        """Natural logarithm of the density: [N, channels] given [N, condition] -> [N]."""
        latent, log_jacobian = self.couplings(values, [condition])
        normal = -0.5 * (latent.square().sum(1) + self.channels * math.log(2 * math.pi))
        likelihood: torch.Tensor = normal + log_jacobian
        return likelihood


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within it, the generators that FrEIA draws from (torch's and numpy's own) start from a seed."""
    before = np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002


def _subnet(inputs: int, outputs: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(inputs, 2 * inputs), torch.nn.ReLU(), torch.nn.Linear(2 * inputs, outputs)
    )


def _freia() -> tuple[Any, Any]:
    try:
        from FrEIA import framework, modules
    except ImportError as error:
        raise MissingExtraError.of("this method needs FrEIA", "bench", str(error)) from None
    return framework, modules


def position_code(grid: tuple[int, int], size: int = CHANNELS) -> torch.Tensor:
    """Sines and cosines of each patch's row and column at falling frequencies: [G, size]."""
    quarter = size // 4
    rates = torch.exp(-math.log(10_000) * torch.arange(quarter) / quarter)
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [where.flatten()[:, None] * rates for where in (rows, columns)]
    return torch.cat([part for angle in angles for part in (angle.sin(), angle.cos())], 1)


def warm_cosine(share: float) -> float:
    """Factor of the learning rate: up from a tenth over the warm-up, then down along half a cosine."""
    if share < WARM_UP:
        return 0.1 + 0.9 * share / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (share - WARM_UP) / (1 - WARM_UP)))


class TokenFlows(Baseline):
    """A flow for each tap that learns how normal patches are spread where they lie; improbable ones are abnormal.

    Tokens are standardised channel by channel and projected onto 128 random directions, since a step of a flow over
    768 or 1,024 channels takes seconds.
    """

    image_score: ClassVar[str] = "largest value of the map"

    def _start(self, normal: torch.Tensor, run: Learning) -> None:
        """New flows for tokens that are spread like those of the normal images [N, T, G, d]."""
        self.standard = Standard.of(normal, CHANNELS, run.generator())
        channels = self.standard(normal[:1]).shape[3]
        self.flows = [Flow(channels, CHANNELS, run.seed + tap) for tap in range(normal.shape[1])]
        self.positions = position_code(self.backbone.grid)

    def _train(
        self,
        values: torch.Tensor,
        patches: torch.Tensor,
        loss_of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        epochs: int,
        run: Learning,
    ) -> None:
        """Train all flows at once, each on its tap of the same patches.

        Args:
            values: [M, T, k], what flows read.
            patches: [M], which patch of the grid each one is.
            loss_of: Log-likelihoods per channel [B] of one tap, and the numbers of their patches -> their loss.
            epochs: Passes over all patches.
            run: Seed and progress.
        """

        def loss(rows: torch.Tensor) -> torch.Tensor:
            condition = self.positions[patches[rows]]
            found = [flow.log_likelihood(values[rows, tap], condition) for tap, flow in enumerate(self.flows)]
            return torch.stack([loss_of(one / values.shape[2], rows) for one in found]).sum()

        parameters = [parameter for flow in self.flows for parameter in flow.parameters()]
        how = Adam(epochs, RATE, (0.9, 0.999), batch=FIBRES, schedule=warm_cosine)
        optimise(parameters, len(values), loss, how, run)

    @torch.no_grad()
    def _finish(self, normal: torch.Tensor) -> None:
        """Keep the likelihood of the most probable patch of the normal images [N, T, G, d], tap by tap: [T]."""
        self.peak = self.likelihoods(normal).flatten(1).amax(1)

    @torch.no_grad()
    def likelihoods(self, tokens: torch.Tensor) -> torch.Tensor:
        """Log-likelihood per channel of tokens [B, T, G, d]: [T, B, G]."""
        values = self.standard(tokens)
        where = self.positions.repeat(len(tokens), 1)
        found = [flow.log_likelihood(values[:, tap].flatten(0, 1), where) for tap, flow in enumerate(self.flows)]
        shape = (len(found), len(tokens), tokens.shape[2])
        return torch.stack(found).view(shape) / values.shape[3]

    @torch.inference_mode()
    def score(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Baseline.score`."""
        maps = self.upsample(improbable(self.likelihoods(self.image_tokens(pixels)), self.peak))
        return maps.amax((1, 2)), maps


def improbable(likelihoods: torch.Tensor, peak: torch.Tensor) -> torch.Tensor:
    """One minus the mean over taps of the likelihood relative to the most probable normal patch, at most 1.

    Args:
        likelihoods: Logarithms per channel, [T, B, G].
        peak: The largest of the normal images, [T].

    Returns:
        [B, G] in 0..1.
    """
    return 1 - (likelihoods - peak[:, None, None]).clamp(max=0).exp().mean(0)
