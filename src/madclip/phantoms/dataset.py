"""Phantoms as a data set on disk, in the BMAD layout that every command reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from madclip.errors import DataError
from madclip.files import new_folder
from madclip.phantoms import generate

STREAMS = 1 << 40
"""Seeds of written benchmarks start here."""


def write_phantoms(
    out: Path | str,
    modality: str,
    normal: int,
    abnormal: int,
    seed: int,
    difficulty: float = 0.5,
    size: int = 240,
    *,
    shots: int = 32,
) -> Path:
    """Write a benchmark: `valid/` with shots of both classes, `test/` with the images asked for, and `captions.jsonl`.

    Args:
        out: New or empty folder.
        modality: One of `MODALITIES`.
        normal: Normal images in `test/`.
        abnormal: Abnormal images in `test/`.
        seed: Determines everything; `valid/` and `test/` have different images.
        difficulty: 0..1.
        size: Pixels of a side.
        shots: Images of each class in `valid/`.

    Returns:
        The folder that was written.

    Raises:
        DataError: The folder has content or cannot be written, or an argument is out of range.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not an empty folder; give a new folder or remove it first")
    if min(normal, abnormal, shots) < 0 or normal + abnormal + shots == 0:
        raise DataError(f"a benchmark needs images: normal {normal}, abnormal {abnormal}, shots {shots}")
    try:
        with new_folder(out) as building:
            rows = []
            for part, counts in (("valid", (shots, shots)), ("test", (normal, abnormal))):
                for label, count in enumerate(counts):
                    rows += _write_class(building, part, label, count, (modality, seed, difficulty, size))
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (building / "captions.jsonl").write_text(text, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{out}: cannot write there ({error.strerror or error})") from error
    return out


def _write_class(
    root: Path, part: str, label: int, count: int, settings: tuple[str, int, float, int]
) -> list[dict[str, Any]]:
    """Images of one class of one part; their rows of `captions.jsonl`."""
    modality, seed, difficulty, size = settings
    name = ("good", "Ungood")[label]
    images, masks = root / part / name / "img", root / part / name / "anomaly_mask"
    images.mkdir(parents=True)
    if label:
        masks.mkdir()
    if count == 0:
        return []
    # Four streams of a seed: the two parts and the two classes never share an image, nor do they share one with
    # `generate(..., seed)` at the seeds that anything is trained on.
    stream = STREAMS + 4 * seed + 2 * (part == "test") + label
    drawn = generate(modality, count, stream, size=size, difficulty=difficulty, abnormal=float(label))
    rows = []
    for number in range(count):
        file = images / f"{modality}_{part}_{name.lower()}_{number:05d}.png"
        Image.fromarray(drawn.pixels[number].permute(1, 2, 0).contiguous().numpy()).save(file)
        if label:
            Image.fromarray(drawn.masks[number].byte().mul(255).numpy()).save(masks / file.name)
        path = file.relative_to(root).as_posix()
        rows.append({"image": path, "caption": drawn.captions[number], **drawn.attributes[number]})
    return rows
