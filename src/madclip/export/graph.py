"""A detector as one function of pixels, which other engines can run."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import nn

from madclip.backbones.load import open_backbone
from madclip.detector import MadCLIP
from madclip.errors import CheckpointError
from madclip.export.libraries import quieten
from madclip.head.scorer import pool
from madclip.training.encode import encode_for

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SLACK = 0.01
"""How far pixels may lie outside 0..1 by the rounding of whoever resizes them."""


class DetectorGraph(nn.Module):
    """Pixels to scores, maps and pooled tokens; the texts are constants.

    Args:
        detector: Fitted, in float32 on the CPU (`in_float32`).
        dtype: What the backbone and the adapters' products compute in.
    """

    text: torch.Tensor

    def __init__(self, detector: MadCLIP, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        fitted = detector.state
        same = dtype == detector.backbone.dtype
        self.backbone = detector.backbone if same else deepcopy(detector.backbone).to(dtype)
        self.head, self.recipe, self.readout = fitted.head, fitted.recipe, fitted.readout
        with torch.no_grad():
            self.register_buffer("text", fitted.text.clone())
        self.requires_grad_(requires_grad=False)
        self.eval()

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pixels [B, 3, S, S] in 0..1 -> scores [B], maps [B, S, S], pooled tokens [B, features], all float32.

        An image with a pixel outside 0..1 (by more than rounding), NaN included, gives NaN. Some engines turn NaN into
        harmless numbers on the way, so this is asked of the pixels; a comparison with NaN is false in all of them.
        """
        tokens, patches = encode_for(self.head, self.backbone, self.recipe.view, pixels)
        image, maps = self.head.judge(tokens, self.text, self.readout)
        usable = (pixels > -SLACK) & (pixels < 1 + SLACK)
        wrong = torch.where(usable.flatten(1).all(1), 0.0, torch.nan)
        return image + wrong, maps + wrong[:, None, None], pool(torch.stack(patches, 1)).float() + wrong[:, None]


def in_float32(detector: MadCLIP) -> MadCLIP:
    """The same detector in float32 on the CPU; a backbone held in less is read again from where it came.

    Raises:
        RecipeError: The detector is not fitted.
        CheckpointError: The backbone is not the one that the detector was fitted with any more.
    """
    fitted = detector.state
    held, spec = detector.backbone, detector.backbone.spec
    if held.dtype == torch.float32:
        backbone = held if held.device.type == "cpu" else deepcopy(held).cpu()
    else:
        backbone = open_backbone(detector.recipe, spec.source, "cpu", "float32")
        if backbone.fingerprint != held.fingerprint:
            raise CheckpointError(f"{spec.source}: not the backbone that this detector was fitted with any more")
    same = MadCLIP(detector.recipe, backbone=backbone, objective=detector.objective)
    same.fitted = fitted.on(backbone, detector.objective)
    return same


def traced(graph: DetectorGraph) -> ExportedProgram:
    """The graph as PyTorch's export sees it, for any number of images at once."""
    quieten()
    size = graph.recipe.image_size
    example = torch.zeros(2, 3, size, size)
    with torch.no_grad():
        graph(example)  # constants that are computed once are then there, as numbers
        return torch.export.export(graph, (example,), dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1)}})
