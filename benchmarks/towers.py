"""How far the towers are from timm's and open_clip's at the published sizes, with random weights.

    PEERS/python tools/peer_towers.py full FOLDER [NAME ...]
    python benchmarks/towers.py FOLDER [NAME ...]

The first command makes weights and what the peers compute from them (0.8 to 1.5 GB each), where timm and open_clip
are; the second reads them as any user's file. Differences are relative to the largest value, the bound is 1e-5.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

TEXTS = ["A photo of a brain.", "damaged retinal_OCT, with flaw", "x"]
"""Those of tools/peer_towers.py."""


def main() -> None:
    """Print a line for each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    print("| towers | tokens at the taps | image embeddings | texts | token ids | seconds to load |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in given.names or sorted(f.name for f in given.folder.iterdir() if f.is_dir()):
        print("| " + " | ".join([name, *compare(given.folder / name)]) + " |", flush=True)


def compare(folder: Path) -> list[str]:
    """The cells of one folder's line."""
    import torch

    from madclip.backbones.build import build
    from madclip.backbones.sources import find_checkpoint
    from madclip.backbones.spec import Backbone

    with np.load(folder / "expected.npz") as arrays:
        wanted = {name: arrays[name] for name in arrays}
    pixels = torch.from_numpy(wanted["pixels"]).float()
    start = time.perf_counter()
    checkpoint, entry, name = find_checkpoint(str(folder))
    place: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}
    size = int(pixels.shape[2]), int(pixels.shape[3])
    tower = build(checkpoint, name=name, entry=entry, image_size=size, **place)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        streams = tower.encode_image(pixels)
        taps = max(relative(stream, wanted[f"tokens{i}"]) for i, stream in enumerate(streams))
        cells = ["", "", ""]
        if isinstance(tower, Backbone):
            rows = [[*tower.start_ids, *ids, *tower.end_ids] for ids in tower.tokenize(TEXTS)]
            padded = [row + [tower.pad_id] * (tower.spec.text_length - len(row)) for row in rows]
            cells = [
                f"{relative(tower.embed_image(streams[-1]), wanted['image']):.1e}",
                f"{relative(tower.encode_text(TEXTS), wanted['text']):.1e}",
                "equal" if padded == wanted["ids"].tolist() else "differ",
            ]
    return [f"{taps:.1e}", *cells, f"{seconds:.1f}"]


def relative(found: torch.Tensor, wanted: np.ndarray) -> float:
    """The largest difference over the largest value."""
    return float(np.abs(found.numpy() - wanted).max() / np.abs(wanted).max())


if __name__ == "__main__":
    main()
