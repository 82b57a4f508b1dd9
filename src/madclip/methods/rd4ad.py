"""RD4AD (Deng and Li, Anomaly Detection via Reverse Distillation from One-Class Embedding, CVPR 2022) on tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from madclip.head.memory import smooth
from madclip.methods.base import Baseline
from madclip.methods.distillation import SIGMA, WIDTH, Residual, image_distance, patch_distance, seeded, to_planes
from madclip.methods.learning import Adam, Learning, optimise
from madclip.methods.tokens import Standard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.training.shots import Shot

EPOCHS, RATE = 100, 5e-3


class RD4AD(Baseline):
    """A student that says the taps again, last first, from a narrow embedding of all of them; it fails on the abnormal.

    The taps are of one size, so that nothing is sampled down or up. Students are one epoch's work here: the number of
    epochs is fixed, where the authors look at the test set every ten.
    """

    name: ClassVar[str] = "rd4ad"
    title: ClassVar[str] = "RD4AD on tokens (Deng and Li, CVPR 2022)"
    learns_from: ClassVar[Literal["nothing", "normal", "both"]] = "normal"
    image_score: ClassVar[str] = "largest value of the map"

    def _learn(self, shots: Sequence[Shot], run: Learning) -> None:
        tokens = self.shot_tokens(shots, run)
        self.standard = Standard.of(tokens)
        planes = to_planes(self.standard(tokens), self.backbone.grid)
        self.student = seeded(lambda: Student(tokens.shape[1], tokens.shape[3]), run.seed)

        def loss_of(rows: torch.Tensor) -> torch.Tensor:
            return image_distance(self.student(planes[rows]), planes[rows]).mean(0).sum()

        optimise(self.student.parameters(), len(planes), loss_of, Adam(EPOCHS, RATE), run)
        self.student.eval()

    @torch.inference_mode()
    def score(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Baseline.score`."""
        planes = to_planes(self.standard(self.image_tokens(pixels)), self.backbone.grid)
        maps = smooth(self.upsample(reverse_map(self.student(planes), planes)), SIGMA).clamp(0, 1)
        return maps.amax((1, 2)), maps


class Student(torch.nn.Module):
    """The one-class embedding and the decoder that gives back the taps from it, the last first."""

    def __init__(self, taps: int, channels: int) -> None:
        super().__init__()
        self.embed = torch.nn.Sequential(
            torch.nn.Conv2d(taps * channels, WIDTH, 1, bias=False),
            torch.nn.BatchNorm2d(WIDTH),
            torch.nn.ReLU(),
            Residual(),
            Residual(),
        )
        self.decode = torch.nn.ModuleList(Residual() for _ in range(taps))
        self.say = torch.nn.ModuleList(torch.nn.Conv2d(WIDTH, channels, 1) for _ in range(taps))

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """Planes of the taps [B, T, d, R, C] -> what the decoder says they are."""
        hidden = self.embed(planes.flatten(1, 2))
        said = []
        for decode, say in zip(self.decode, self.say, strict=True):
            hidden = decode(hidden)
            said.append(say(hidden))
        return torch.stack(said[::-1], 1)


def reverse_map(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Half of one minus the cosine, mean over taps (the authors' sum over 2 T): planes [B, T, d, R, C] -> [B, G]."""
    return patch_distance(student, teacher).mean(1) / 2
