"""What was learned in the space of texts: which words contexts lie near, and where the two text directions point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from madclip.head.head import Head
from madclip.head.memory import NormalMemory
from madclip.head.prompts import STATES, fixed_text_features
from madclip.head.scorer import words_of
from madclip.head.zero_shot import TEMPERATURE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from madclip.backbones.spec import Backbone
    from madclip.state import Fitted

NEAREST = 3
"""Words that are named of each context."""
DRAWS = 200
"""Random vectors that say how near a word lies by chance."""


@dataclass(frozen=True)
class NearWord:
    """A word, and the cosine of its token embedding to a vector."""

    word: str
    cosine: float


@dataclass(frozen=True)
class Context:
    """One learned context token.

    Attributes:
        label: 0 of the normal prompts, 1 of the abnormal ones.
        prompt: The prompt that it stands in, as a pattern such as `[…] damaged Brain`, or all that share it.
        number: Which of the prompt's contexts it is, from 0.
        nearest: The words whose embeddings are nearest by cosine, nearest first.
        moved: How far training moved it, in parts of the length that it began with; None where that is not known.
    """

    label: int
    prompt: str
    number: int
    nearest: tuple[NearWord, ...]
    moved: float | None


@dataclass(frozen=True)
class Texts:
    """Where the two text directions point, and what the contexts became.

    Attributes:
        between: Cosine of the normal to the abnormal text.
        to_fixed: Cosine of each, normal and abnormal, to that of the fixed prompts; None where it is that.
        change: Cosine of their difference, abnormal minus normal, to that of the fixed prompts; None as before.
        from_start: Cosine of their difference to what it was before training; None where nothing was trained, or
            where the start is not known.
        lowest: No score and no pixel of a map can lie below it, whatever the image.
        highest: And none above it.
        contexts: Every learned context; empty where none was learned.
        by_chance: The cosine to the nearest word that 95 % of random vectors stay below; None without contexts.
    """

    between: float
    to_fixed: tuple[float, float] | None
    change: float | None
    from_start: float | None
    lowest: float
    highest: float
    contexts: tuple[Context, ...] = ()
    by_chance: float | None = None


@torch.no_grad()
def texts_of(fitted: Fitted, backbone: Backbone, objective: str) -> Texts | None:
    """What a detector's texts are; None where it uses none."""
    text = fitted.text.float()
    if not text.numel():
        return None
    head = fitted.head
    if not isinstance(head, Head):
        reach = float((text[:, 1] - text[:, 0]).norm()) / TEMPERATURE
        low, high = _between(reach)
        if isinstance(head, NormalMemory):  # the rest of the score is a distance, from 0 to 1
            low, high = head.weight * low, 1 - head.weight + head.weight * high
        return Texts(_cosine(text[:, 0], text[:, 1]), None, None, None, low, high)
    recipe = fitted.recipe
    fixed = fixed_text_features(backbone, words_of(recipe, objective)).to(text)
    start = start_of(fitted, backbone, objective)
    reach = 2 * float((text[:, 1] - text[:, 0]).norm()) if recipe.contrast else 2.0
    low, high = _between(reach)
    contexts: tuple[Context, ...] = ()
    by_chance = None
    if head.prompts is not None and recipe.contexts:
        words, table = word_table(backbone)
        began = start.prompts.contexts if start and start.prompts else None
        contexts = _contexts(head, words_of(recipe, objective), began, words, table)
        by_chance = _by_chance(table)
    learned = head.prompts is not None
    return Texts(
        between=_cosine(text[:, 0], text[:, 1]),
        to_fixed=(_cosine(text[:, 0], fixed[:, 0]), _cosine(text[:, 1], fixed[:, 1])) if learned else None,
        change=_cosine(text[:, 1] - text[:, 0], fixed[:, 1] - fixed[:, 0]) if learned else None,
        from_start=_change(text, start.text().float()) if start and learned else None,
        lowest=low,
        highest=high,
        contexts=contexts,
        by_chance=by_chance,
    )


def start_of(fitted: Fitted, backbone: Backbone, objective: str) -> Head | None:
    """The head as it was before training, made anew from the seed; None where that does not say it."""
    facts = fitted.provenance
    if not isinstance(fitted.head, Head) or facts.seed is None or facts.refits or facts.source:
        return None
    return Head(fitted.recipe, backbone, objective, seed=facts.seed)


def word_table(backbone: Backbone) -> tuple[list[str], torch.Tensor]:
    """Whole words of the vocabulary, and their token embeddings at unit length, [V, text width]."""
    words = backbone.words
    ids = torch.tensor(list(words), device=backbone.device)
    table = F.normalize(backbone.embed_tokens(ids[None])[0].float(), dim=-1)
    return list(words.values()), table


def nearest_words(vectors: torch.Tensor, words: list[str], table: torch.Tensor) -> list[tuple[NearWord, ...]]:
    """The words of a table [V, w] nearest to each of the vectors [N, w] by cosine, nearest first."""
    found = (F.normalize(vectors.float(), dim=-1) @ table.mT).topk(min(NEAREST, len(words)), dim=-1)
    return [
        tuple(NearWord(words[i], value) for i, value in zip(places, values, strict=True))
        for places, values in zip(found.indices.tolist(), found.values.tolist(), strict=True)
    ]


def _contexts(
    head: Head, objective: str, began: torch.Tensor | None, words: list[str], table: torch.Tensor
) -> tuple[Context, ...]:
    assert head.prompts is not None  # noqa: S101
    learned = head.prompts.contexts.detach()
    moved = None if began is None else ((learned - began).norm(dim=-1) / began.norm(dim=-1)).flatten().tolist()
    near = nearest_words(learned.flatten(0, -2), words, table)
    classes, positions, states, count = learned.shape[:4]
    made = []
    for place, one in enumerate(near):
        rest, number = divmod(place, count)
        rest, state = divmod(rest, states)
        label, position = divmod(rest, positions)
        said = STATES[label][state].format(objective) if states > 1 else "all prompts of the class"
        prompt = _PATTERNS[head.recipe.positions[position]].format(said)
        made.append(Context(label, prompt, number, one, None if moved is None else moved[place]))
    assert len(made) == classes * positions * states * count  # noqa: S101
    return tuple(made)


_PATTERNS: Mapping[str, str] = {"end": "[…] {}", "front": "{} […]", "middle": "[…] {} […]"}
"""Where the contexts stand."""


def _by_chance(table: torch.Tensor) -> float:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(DRAWS, table.shape[1], generator=generator).to(table)
    best = (F.normalize(vectors, dim=-1) @ table.mT).amax(1)
    return float(best.quantile(0.95))


def _cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(F.cosine_similarity(one, other, dim=0))


def _change(text: torch.Tensor, before: torch.Tensor) -> float:
    return _cosine(text[:, 1] - text[:, 0], before[:, 1] - before[:, 0])


def _between(reach: float) -> tuple[float, float]:
    """The lowest and the highest value of a sigmoid whose argument is at most `reach` on either side of 0."""
    low = float(torch.tensor(-reach).sigmoid())
    return low, 1 - low
