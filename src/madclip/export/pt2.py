"""PyTorch's exported program: one archive that runs where PyTorch does, without this package; float32 or bfloat16.

Reading such an archive runs what it holds. So this package reads only what it has just written, to check it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from madclip.export.libraries import quieten

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt
    from torch.export import ExportedProgram

MODEL = "model.pt2"


def write(program: ExportedProgram, folder: Path) -> None:
    """Write model.pt2; without example inputs, which would be pickled, and without stack traces, which name paths."""
    program.example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    quieten()
    torch.export.save(program, folder / MODEL)


class PT2Model:
    """An exported program, on the CPU.

    Args:
        folder: Where `write` put it; never an archive from elsewhere.

    Attributes:
        size: Side of the images that it takes, pixels.
    """

    def __init__(self, folder: Path) -> None:
        quieten()
        program = torch.export.load(folder / MODEL)
        (name,) = program.graph_signature.user_inputs
        (pixels,) = (node for node in program.graph.nodes if node.name == name)
        self.size, self._run = int(pixels.meta["val"].shape[-1]), program.module()

    def __call__(self, pixels: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Scores [B], maps [B, S, S] and pooled tokens [B, features] of pixels [B, 3, S, S] in 0..1."""
        with torch.inference_mode():
            return [found.numpy() for found in self._run(torch.from_numpy(pixels))]
