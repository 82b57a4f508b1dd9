"""CFLOW-AD (Gudovskiy et al., WACV 2022) on tokens: conditional normalising flows of normal patches."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F

from madclip.methods.flow import TokenFlows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.methods.learning import Learning
    from madclip.training.shots import Shot

EPOCHS = 15


class CFlow(TokenFlows):
    """How probable a patch is where it lies, after normal patches.

    The authors take the largest likelihood from the test set and report the best epoch on it; here it comes from the
    shots, and the number of epochs is fixed.
    """

    name: ClassVar[str] = "cflow"
    title: ClassVar[str] = "CFLOW-AD on tokens (Gudovskiy et al., WACV 2022)"
    learns_from: ClassVar[Literal["nothing", "normal", "both"]] = "normal"

    def _learn(self, shots: Sequence[Shot], run: Learning) -> None:
        tokens = self.shot_tokens(shots, run)
        self._start(tokens, run)
        values = self.standard(tokens).transpose(1, 2).flatten(0, 1)
        patches = torch.arange(tokens.shape[2]).repeat(len(shots))
        self._train(values, patches, lambda likelihoods, _: likelihood_loss(likelihoods), EPOCHS, run)
        self._finish(tokens)


def likelihood_loss(likelihoods: torch.Tensor) -> torch.Tensor:
    """Mean of -log sigmoid of the log-likelihoods per channel [B]."""
    return -F.logsigmoid(likelihoods).mean()
