"""Write the bundled backbone from a checkpoint: python -m tools.pretrain.export CHECKPOINT --tokenizer FILE.

The folder is in Hugging Face's CLIP format, weights in half precision; what only training needs is left behind.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from tools.pretrain import state
from tools.pretrain.data import GROUP
from tools.pretrain.model import clip_config, clip_state
from tools.pretrain.tokenizer import END, START

if TYPE_CHECKING:
    from tools.pretrain.state import Run

BUNDLE = Path(__file__).parents[2] / "src/madclip/backbones/tiny"
LIMIT = 16_000_000
"""Bytes that the folder may take."""


def export(run: Run, tokenizer: Tokenizer, card: str, out: Path, said: dict[str, str] | None = None) -> int:
    """Write the bundle and return its size in bytes; each file is put in place as a whole.

    Args:
        run: The state to export.
        tokenizer: The one that it was trained with.
        card: Template of the model card, with fields in double braces.
        out: Folder, made where it is missing.
        said: Values of fields that the run does not know.

    Raises:
        ValueError: The bundle would be larger than LIMIT.
    """
    config = run.towers.config
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    weights = save({name: t.to(torch.float16) for name, t in clip_state(run.towers).items()}, {"format": "pt"})
    files = {
        "model.safetensors": weights,
        "config.json": _json(clip_config(config, start_id=start, end_id=end) | {"torch_dtype": "float16"}),
        "preprocessor_config.json": _json(_preprocessing(config.image_size, config.mean, config.std)),
        "tokenizer.json": (json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False) + "\n").encode(),
        "tokenizer_config.json": _json(
            {
                "tokenizer_class": "CLIPTokenizerFast",
                "model_max_length": config.text_length,
                "bos_token": START,
                "eos_token": END,
                "pad_token": END,
                "unk_token": END,
            }
        ),
        "README.md": fill(card, facts(run) | {"sha256": hashlib.sha256(weights).hexdigest()} | (said or {})).encode(),
    }
    size = sum(map(len, files.values()))
    if size > LIMIT:
        raise ValueError(f"the bundle takes {size:,} bytes, more than {LIMIT:,}: make the towers smaller")
    out.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        temporary = out / f"{name}.part"
        temporary.write_bytes(content)
        temporary.replace(out / name)
    return size


def facts(run: Run) -> dict[str, str]:
    """What the model card says of the run."""
    progress, plan = run.progress, run.plan
    return {
        "samples": f"{progress.samples:,}",
        "drawn": f"{run.stream.available(progress.step) * GROUP * len(run.stream.modalities):,}",
        "steps": f"{progress.step:,}",
        "minutes": f"{progress.seconds / 60:.0f}",
        "seed": str(run.stream.seed),
        "modalities": ", ".join(run.stream.modalities),
        "hardest": str(run.stream.hardest),
        "decay": f"{plan.decay:,}",
        "vision": f"{sum(p.numel() for p in run.towers.vision.parameters()):,}",
        "text": f"{sum(p.numel() for p in run.towers.text.parameters()):,}",
    }


def table(measured: list[dict[str, object]], untrained: list[dict[str, object]]) -> str:
    """Lines of measure.py as a table in Markdown, the untrained towers' values in brackets."""
    before = {(row["on"], key): value for row in untrained for key, value in row.items()}
    lines = []
    for row in measured:
        values = [
            f"{key} {value}" + (f" ({before[row['on'], key]})" if (row["on"], key) in before else "")
            for key, value in row.items()
            if key != "on"
        ]
        lines.append(f"| {row['on']} | {', '.join(values)} |")
    return "\n".join(["| on | AUROC (untrained towers of the same shape) |", "|---|---|", *lines])


def fill(template: str, values: dict[str, str]) -> str:
    """Replace {{name}} by its value.

    Raises:
        ValueError: A field has no value.
    """
    for name, value in values.items():
        template = template.replace("{{" + name + "}}", value)
    if "{{" in template:
        raise ValueError(f"the model card has a field without a value: {template[template.index('{{') :][:40]}")
    return template


def _preprocessing(size: int, mean: float, std: float) -> dict[str, object]:
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [mean] * 3,
        "image_std": [std] * 3,
        "do_convert_rgb": True,
    }


def _json(content: dict[str, object]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def main() -> None:
    """Write the bundle."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json of the run")
    parser.add_argument(
        "--card", type=Path, default=Path(__file__).parent / "card.md", help="template of the model card"
    )
    parser.add_argument("--out", type=Path, default=BUNDLE)
    parser.add_argument("--measured", type=Path, required=True, help="lines that measure.py printed of this checkpoint")
    parser.add_argument("--untrained", type=Path, required=True, help="lines that it printed of `untrained`")
    parser.add_argument("--history", default="", help="a sentence for the card: what preceded this run")
    given = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(given.tokenizer))
    measured, untrained = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (given.measured, given.untrained)
    )
    said = {"measured": table(measured, untrained), "history": given.history}
    card = given.card.read_text(encoding="utf-8")
    size = export(state.load(given.checkpoint), tokenizer, card, given.out, said)
    print(f"{given.out}: {size:,} bytes")


if __name__ == "__main__":
    main()
