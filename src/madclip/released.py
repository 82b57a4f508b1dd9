"""Checkpoints that the authors of the paper published, as the state of a detector (method: section 8)."""

from __future__ import annotations

from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch

from madclip.errors import CheckpointError
from madclip.files import digest, first_line
from madclip.head.head import Head
from madclip.state import Fitted, Provenance
from madclip.storage import load_exactly

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from madclip.backbones.spec import Backbone
    from madclip.recipe import Recipe

_BRANCHES = ("normal", "abnormal")


def load_released(path: Path, recipe: Recipe, load: Callable[[], Backbone], objective: str) -> Fitted:
    """The state of a detector of the `released` recipe from a published checkpoint; see MadCLIP.from_released.

    The backbone, which may be a download, is loaded only once the checkpoint has been read.
    """
    states = _read_released(path)
    backbone = load()
    for name in ("prompt_maker_normal", "prompt_maker_abnormal"):
        _check_same_text_tower(states[name], backbone, path)
    head = Head(recipe, backbone, objective)
    taps = len(backbone.spec.taps)
    try:
        layers = [
            [
                [states[f"{branch}_det_adapters"][f"{tap}.fc{layer}.0.weight"] for layer in (1, 2, 3)]
                for branch in _BRANCHES
            ]
            for tap in range(taps)
        ]
        contexts = [
            [
                states[f"prompt_maker_{branch}"][f"prompt_learner.ctx.{branch}_{position}"]
                for position in recipe.positions
            ]
            for branch in _BRANCHES
        ]
        tensors = {
            "adapters.shared": torch.stack([torch.stack([b[0].float() for b in tap]) for tap in layers]),
            "adapters.heads": torch.stack(
                [torch.stack([torch.stack([b[1].float(), b[2].float()]) for b in tap]) for tap in layers]
            ),
            "prompts.contexts": torch.stack([torch.stack([c.float() for c in group]) for group in contexts]),
        }
    except KeyError as error:
        raise CheckpointError(f"{path}: not a released checkpoint (no tensor {error})") from None
    except (RuntimeError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: tensors do not fit together ({error})") from error
    load_exactly(head, tensors, path)
    provenance = Provenance(
        source="released checkpoint",
        sha256=digest(path),
        masks=True,  # the released code reads maps off the segmentation head, whatever it was trained on
        uncalibrated="not calibrated: the published checkpoint brings no threshold; `calibrate` adds one",
    )
    return Fitted(head, recipe, provenance)


def _read_released(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    wanted = [f"{branch}_det_adapters" for branch in _BRANCHES] + [f"prompt_maker_{branch}" for branch in _BRANCHES]
    try:
        states = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except UnpicklingError:  # what torch says then is how to run the code, which is no advice to give
        raise CheckpointError(
            f"{path}: damaged, or holds Python objects beside tensors, which could run code, and was not loaded"
        ) from None
    except Exception as error:  # noqa: BLE001 -- a damaged pickle may raise anything
        raise CheckpointError(f"{path}: not a checkpoint of plain tensors, or damaged ({first_line(error)})") from None
    if not isinstance(states, dict) or not all(isinstance(states.get(name), dict) for name in wanted):
        raise CheckpointError(f"{path}: not a released checkpoint; it needs the state dicts {', '.join(wanted)}")
    found = {name: states[name] for name in wanted}
    if not all(isinstance(value, torch.Tensor) for state in found.values() for value in state.values()):
        raise CheckpointError(f"{path}: not a released checkpoint; its state dicts hold something else than tensors")
    return found


def _check_same_text_tower(state: dict[str, torch.Tensor], backbone: Backbone, path: Path) -> None:
    """Published files carry a copy of CLIP's text tower: its token embeddings tell which CLIP it was."""
    for name, table in state.items():
        if not name.endswith("token_embedding.weight"):
            continue
        ids = torch.arange(min(256, len(table)), device=backbone.device)
        own = backbone.embed_tokens(ids[None])[0].float().cpu()
        # Published tensors may be in half precision.
        if own.shape[1:] != table.shape[1:] or not torch.allclose(own, table[: len(own)].float(), atol=2e-3):
            raise CheckpointError(
                f"{path}: trained with another CLIP than {backbone.spec.id} (its copy of the text tower differs); "
                "the published detectors need OpenAI's ViT-L/14@336px"
            )
