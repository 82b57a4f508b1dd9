"""PyTorch's exported program: one archive that runs where PyTorch does, without this package; float32 or bfloat16."""

from __future__ import annotations

import json
import zipfile
from typing import TYPE_CHECKING

import torch

from madclip.errors import CheckpointError
from madclip.export.quiet import quiet

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
    with quiet():
        torch.export.save(program, folder / MODEL)
    check_plain(folder / MODEL)


class PT2Model:
    """An exported program, on the CPU.

    Args:
        folder: Where `write` put it.

    Raises:
        CheckpointError: The archive holds a pickle.
    """

    def __init__(self, folder: Path) -> None:
        check_plain(folder / MODEL)
        with quiet():
            self._run = torch.export.load(folder / MODEL).module()

    def __call__(self, pixels: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        """Scores [B], maps [B, S, S] and pooled tokens [B, features] of pixels [B, 3, S, S] in 0..1."""
        with torch.inference_mode():
            return [found.numpy() for found in self._run(torch.from_numpy(pixels))]


def check_plain(path: Path) -> None:
    """See that an archive holds weights as plain bytes and nothing that PyTorch would unpickle.

    Raises:
        CheckpointError: It does, or is no such archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            tables = [name for name in sizes if name.endswith(("_weights_config.json", "_constants_config.json"))]
            entries = [entry for name in tables for entry in json.loads(archive.read(name))["config"].values()]
            pickled = any(entry["use_pickle"] for entry in entries)
    except (OSError, zipfile.BadZipFile, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: not an exported program ({error!r}); export again") from error
    examples = any(size for name, size in sizes.items() if "/sample_inputs/" in name)
    if len(tables) != 2 or pickled or examples:
        raise CheckpointError(f"{path}: holds a pickle, which could run code; only programs without one are read")
