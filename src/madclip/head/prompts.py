"""Prompts of both classes: learned contexts around state words, or a fixed ensemble (method: section 3)."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from madclip.errors import RecipeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from madclip.backbones.spec import Backbone, TextAttention
    from madclip.recipe import Position

NORMAL_STATES = (
    "{}",
    "flawless {}",
    "perfect {}",
    "unblemished {}",
    "{} without flaw",
    "{} without defect",
    "{} without damage",
)
ABNORMAL_STATES = (
    "damaged {}",
    "broken {}",
    "{} with flaw",
    "{} with defect",
    "{} with damage",
    "disease {}",
    "abnormal {}",
)
STATES = (NORMAL_STATES, ABNORMAL_STATES)
_SLOT = -1


class Prompts(nn.Module):
    """Learned prompts: 7 states per class and position, each with its contexts, through the frozen text tower.

    Attributes:
        contexts: [2, positions, 7 (or 1 where a class shares them), M, text width]; classes normal, abnormal.
    """

    embeddings: torch.Tensor
    slots: torch.Tensor
    end: torch.Tensor

    def __init__(
        self,
        backbone: Backbone,
        objective: str,
        *,
        contexts: int = 8,
        shared: bool = False,
        positions: Sequence[Position] = ("end",),
        attention: TextAttention = "native",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.attention: TextAttention = attention
        rows = prompt_ids(backbone, objective, contexts, positions)
        length = backbone.spec.text_length
        longest = max(map(len, rows))
        if longest > length:
            raise RecipeError(
                f"objective {objective!r} is too long: the longest prompt takes {longest} tokens, "
                f"the text tower of {backbone.spec.id} has {length}"
            )
        if not backbone.spec.reads_padding and attention == "native":
            length = longest  # what follows the end token cannot matter
        ids = torch.tensor([row + [backbone.pad_id] * (length - len(row)) for row in rows])
        slot = ids == _SLOT
        frozen = backbone.embed_tokens(ids.masked_fill(slot, backbone.pad_id).to(backbone.device)).float()
        self.register_buffer("embeddings", frozen, persistent=False)
        self.register_buffer("slots", slot.to(backbone.device), persistent=False)
        ends = [len(row) - 1 for row in rows]
        self.register_buffer("end", torch.tensor(ends, device=backbone.device), persistent=False)
        states = 1 if shared else len(NORMAL_STATES)
        shape = (len(STATES), len(positions), states, contexts, backbone.spec.text_width)
        self.contexts = nn.Parameter(0.02 * torch.randn(shape, generator=generator))

    def prompt_embeddings(self) -> torch.Tensor:
        """Token embeddings of all prompts with the contexts in place: [2 x positions x 7, L, text width].

        The order is class, position, state.
        """
        each = self.contexts.expand(-1, -1, len(NORMAL_STATES), -1, -1).flatten(0, 2)
        # Picked by place: a scatter by mask would wait for a GPU, to count.
        number = (self.slots.cumsum(1) - 1).clamp_min(0)[..., None].expand(-1, -1, each.shape[-1])
        return torch.where(self.slots[..., None], each.gather(1, number), self.embeddings)

    def forward(self, backbone: Backbone) -> torch.Tensor:
        """Text features [e, 2]: t_n and t_ab, of unit length."""
        encoded = backbone.encode_embeddings(
            self.prompt_embeddings().to(backbone.dtype), self.end, attention=self.attention
        )
        return F.normalize(encoded.float().view(len(STATES), -1, encoded.shape[-1]).mean(1), dim=-1).mT


def prompt_ids(backbone: Backbone, objective: str, contexts: int, positions: Sequence[Position]) -> list[list[int]]:
    """Token ids of all prompts from start to end token, -1 where a context stands; order class, position, state."""
    stop = backbone.tokenize(["."])[0]
    rows = []
    for states in STATES:
        words = backbone.tokenize([state.format(objective) for state in states])
        for position in positions:
            before = {"end": contexts, "front": 0, "middle": contexts // 2}[position]
            for state in words:
                slots = [_SLOT] * before, [_SLOT] * (contexts - before)
                rows.append([*backbone.start_ids, *slots[0], *state, *slots[1], *stop, *backbone.end_ids])
    return rows


def fixed_text_features(backbone: Backbone, objective: str) -> torch.Tensor:
    """Ablation a: hand-crafted ensemble of every state in every template; [e, 2], of unit length."""
    templates: list[str] = json.loads(files("madclip.head").joinpath("templates.json").read_text())
    columns = []
    for states in STATES:
        texts = [template.format(state.format(objective)) for state in states for template in templates]
        encoded = torch.cat([backbone.encode_text(texts[i : i + 64]) for i in range(0, len(texts), 64)])
        columns.append(F.normalize(F.normalize(encoded.float(), dim=-1).mean(0), dim=0))
    return torch.stack(columns, 1)
