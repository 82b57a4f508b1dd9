"""The same by madclip and by a peer, each in a process and an environment of its own, and how far apart they are."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

Arrays = dict[str, "npt.NDArray[np.float32]"]


def compare(script: str, usage: str | None, ours: Callable[[Path], Arrays], theirs: Callable[[Path], Arrays]) -> None:
    """Run a script once as either side, and print how far what they found is apart, by name.

    Args:
        script: The file that calls this.
        usage: Its docstring.
        ours: What madclip finds; it goes first, and leaves in the folder what the other side reads.
        theirs: What the peer finds, with the same names.
    """
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path)
    parser.add_argument("--side", choices=["ours", "theirs"])
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    if asked.side:
        found = {"ours": ours, "theirs": theirs}[asked.side](asked.folder)
        np.savez(asked.folder / f"{asked.side}.npz", allow_pickle=False, **found)
        return
    with tempfile.TemporaryDirectory() as folder:
        for side, python in (("ours", sys.executable), ("theirs", asked.environment / "bin" / "python")):
            subprocess.run([python, script, "--side", side, "--folder", folder], check=True)
        with np.load(Path(folder) / "ours.npz") as one, np.load(Path(folder) / "theirs.npz") as other:
            for name in one.files:
                a, b = one[name], other[name]
                print(f"{name}: means {a.mean():.6f} and {b.mean():.6f}, at most {np.abs(a - b).max():.1e} apart")
