"""The texts of a step beside the captions: states of an image and of a patch, as prompts will say them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from madclip.phantoms.captions import ABNORMAL_STATES, NAMES, NORMAL_STATES, OBJECTIVES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer
    from tools.pretrain.data import Batch

LESION = (
    "lesion",
    "abnormal tissue",
    "lesion area",
    "abnormality",
    "diseased tissue",
    "pathology",
    "anomaly",
    "defect",
)
HEALTHY = (
    "normal tissue",
    "healthy tissue",
    "tissue without lesion",
    "normal area",
    "healthy anatomy",
    "background",
    "normal structure",
    "no lesion",
)
EVERYDAY = (
    "dog",
    "cat",
    "bird",
    "fish",
    "horse",
    "car",
    "truck",
    "bus",
    "train",
    "plane",
    "boat",
    "house",
    "room",
    "table",
    "chair",
    "door",
    "window",
    "tree",
    "flower",
    "grass",
    "sky",
    "sea",
    "river",
    "mountain",
    "street",
    "food",
    "apple",
    "paper",
    "stone",
    "glass",
    "monday",
    "friday",
    "summer",
    "money",
    "music",
    "book",
    "game",
    "king",
    "song",
    "city",
)
"""Words that are true of no phantom."""
UNRELATED = 8
"""Texts of such words at each step: they match no image, so that they come to say nothing about health."""
GENERIC = 4
"""Pairs of texts that name no modality, drawn at each step."""
CONTEXTS = 8
"""Vectors that stand before a state in half of the steps, as they do in learned prompts."""


@dataclass(frozen=True)
class States:
    """Pairs of state texts and how they belong to the images of a batch.

    Attributes:
        texts: Normal ones first, then the P abnormal ones in the same order, then unrelated ones: [N].
        pairs: P.
        match: [B, N] bool, whether a text is true of an image.
        pair: [B], which pair the patches of an image are compared with.
        generic: [N] bool, whether a text names no modality.
        contexts: [N, CONTEXTS, w], or None.
    """

    texts: list[str]
    pairs: int
    match: torch.Tensor
    pair: torch.Tensor
    generic: torch.Tensor
    contexts: torch.Tensor | None


def draw_states(batch: Batch, modalities: tuple[str, ...], width: int, generator: torch.Generator) -> States:
    """One pair of each modality and GENERIC pairs; an image's patches get either its modality's or a generic one."""

    def pick(options: Sequence[str]) -> str:
        return options[int(torch.randint(len(options), (), generator=generator))]

    normal, abnormal = [], []
    for modality in modalities:
        subject = pick((OBJECTIVES[modality], OBJECTIVES[modality], *NAMES[modality]))
        normal.append(pick(NORMAL_STATES).format(subject))
        abnormal.append(pick(ABNORMAL_STATES).format(subject))
    for _ in range(GENERIC):
        normal.append(pick(HEALTHY))
        abnormal.append(pick(LESION))
    kinds, count = len(modalities), len(batch.labels)
    same = torch.cat([batch.modality[:, None] == torch.arange(kinds), torch.ones(count, GENERIC, dtype=torch.bool)], 1)
    ill = batch.labels.bool()[:, None]
    generic = kinds + torch.randint(GENERIC, (count,), generator=generator)
    specific = torch.rand(count, generator=generator) < 0.5
    pair = torch.where(specific, batch.modality, generic)
    dotted = torch.rand((), generator=generator) < 0.5
    drawn = CONTEXTS if torch.rand((), generator=generator) < 0.5 else 0
    unrelated = [f"a {pick(EVERYDAY)} and a {pick(EVERYDAY)}" for _ in range(UNRELATED // 2)]
    unrelated += [pick(EVERYDAY) for _ in range(UNRELATED // 2)]
    texts = [text + "." if dotted else text for text in (*normal, *abnormal, *unrelated)]
    nothing = torch.zeros(count, UNRELATED, dtype=torch.bool)
    contexts = 0.02 * torch.randn(len(texts), CONTEXTS, width, generator=generator)
    return States(
        texts=texts,
        pairs=kinds + GENERIC,
        match=torch.cat([same & ~ill, same & ill, nothing], dim=1),
        pair=pair,
        generic=torch.cat([(torch.arange(kinds + GENERIC) >= kinds).repeat(2), nothing[0]]),
        contexts=contexts if drawn else None,
    )


def encode(tokenizer: Tokenizer, texts: list[str], length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [N, L] with start and end, cut to `length` with the end kept, padded; and the end's place [N]."""
    rows = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    rows = [row if len(row) <= length else [*row[: length - 1], row[-1]] for row in rows]
    longest = max(map(len, rows))
    padded = [row + [row[-1]] * (longest - len(row)) for row in rows]
    return torch.tensor(padded), torch.tensor([len(row) - 1 for row in rows])
