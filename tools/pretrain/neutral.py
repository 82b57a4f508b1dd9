"""Teach the text tower to say nothing where nothing was said; the vision tower stays as it is.

python -m tools.pretrain.neutral RUN/last.safetensors --tokenizer RUN/tokenizer.json --out RUN/neutral.safetensors

Health is what the images of a modality differ by most, so that any difference of two texts ranks them by it to some
degree. Here texts of words that no caption has come to differ across that direction only, while captions and states
keep the places that they had.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tools.pretrain import state
from tools.pretrain.measure import read
from tools.pretrain.texts import CONTEXTS, HEALTHY, LESION, encode
from tools.pretrain.tokenizer import END, START

from madclip.phantoms import captions, generate
from madclip.phantoms.captions import ABNORMAL_STATES, NAMES, NORMAL_STATES, OBJECTIVES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.pretrain.model import TextTower, Towers

SEED = 1 << 62
"""Of the phantoms that health is learned from: among the seeds of pre-training."""
NEUTRAL_WEIGHT, PLACE_WEIGHT = 3.0, 20.0
"""Of the separation by unrelated texts, and of the places of related ones; their differences weigh 1."""
FRAMES, CAPTIONS, PAIRS = 32, 48, 12
"""Pairs of unrelated texts, captions, and pairs of states without a modality, at each step."""
CONNECTORS = ("a", "an", "the", "of", "and", "in", "with", "on", "near", ".")
LONGEST = 36
"""Tokens of an unrelated text."""


class Health(NamedTuple):
    """How the embeddings of M modalities lie.

    Attributes:
        apart: [M, e], mean of the ill ones minus that of the others.
        spread: [M, e, e], covariance within the two classes.
    """

    apart: torch.Tensor
    spread: torch.Tensor


def health(images: torch.Tensor, labels: torch.Tensor) -> Health:
    """Of the embeddings [M, n, e] of every modality's images and their labels [M, n], 0 normal, 1 abnormal."""
    apart, spread = [], []
    for own, ill in zip(images, labels.bool(), strict=True):
        means = own[~ill].mean(0), own[ill].mean(0)
        centred = torch.cat([own[~ill] - means[0], own[ill] - means[1]])
        covariance = centred.T @ centred / len(centred)
        # A little of every direction: that of the fewest images is not known better.
        floor = 0.02 * covariance.diagonal().mean() * torch.eye(len(covariance))
        apart.append(means[1] - means[0])
        spread.append(covariance + floor)
    return Health(torch.stack(apart), torch.stack(spread))


def separation(difference: torch.Tensor, known: Health) -> torch.Tensor:
    """How far scores from two texts set ill images apart: squared distance of the means over the variance (Fisher).

    Args:
        difference: [P, e], of the two texts' unit embeddings.
        known: Of M modalities.

    Returns:
        [P, M]; 0 ranks by chance, and the length of the difference does not matter.
    """
    variance = torch.einsum("pi,mij,pj->pm", difference, known.spread, difference)
    return (difference @ known.apart.T).square() / (variance + 1e-6)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens that words are made up from.

    Attributes:
        start: The start token.
        end: The end token.
        inner: Tokens within a word.
        last: Tokens that end a word.
        free: Those of them that no caption or state has: words of their own.
        connectors: Tokens of CONNECTORS.
    """

    start: int
    end: int
    inner: tuple[int, ...]
    last: tuple[int, ...]
    free: tuple[int, ...]
    connectors: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, related: Sequence[str]) -> Vocabulary:
        """What texts that are `related` leave over."""
        taken = {token for encoding in tokenizer.encode_batch(list(related)) for token in encoding.ids}
        tokens = sorted((number, token) for token, number in tokenizer.get_vocab().items())
        words = [(number, token) for number, token in tokens if token not in (START, END)]
        last = tuple(number for number, token in words if token.endswith("</w>"))
        return cls(
            start=tokenizer.token_to_id(START),
            end=tokenizer.token_to_id(END),
            inner=tuple(number for number, token in words if not token.endswith("</w>")),
            last=last,
            free=tuple(number for number in last if number not in taken),
            connectors=tuple(tokenizer.encode(word).ids[1] for word in CONNECTORS),
        )

    def word(self, random: Random) -> list[int]:
        """A word that no caption has: one token that none of them uses, or up to four of any kind."""
        count = random.choice((0, 0, 1, 1, 2, 3))
        if not count:
            return [random.choice(self.free)]
        return [*(random.choice(self.inner) for _ in range(count)), random.choice(self.last)]

    def pair(self, random: Random) -> tuple[list[int], list[int]]:
        """Two texts that differ by their words alone."""
        frame = [[random.choice(self.connectors) for _ in range(random.choice((0, 1, 1, 2)))] for _ in range(3)]
        frame = frame[: random.choice((1, 1, 2, 2, 3))]
        one, other = (
            [token for connectors in frame for token in (*connectors, *self.word(random))][:LONGEST] for _ in range(2)
        )
        return [self.start, *one, self.end], [self.start, *other, self.end]


def states(modalities: Sequence[str], tokenizer: Tokenizer, vocabulary: Vocabulary, random: Random) -> list[str]:
    """Normal states, then the abnormal ones of the same things: modalities, tissue, and what has no name yet."""
    things = [random.choice((OBJECTIVES[m], *NAMES[m])) for m in modalities for _ in range(3)]
    things += [tokenizer.decode(vocabulary.word(random)) for _ in range(PAIRS // 2)]
    normal = [random.choice(NORMAL_STATES).format(thing) for thing in things]
    abnormal = [random.choice(ABNORMAL_STATES).format(thing) for thing in things]
    normal += [random.choice(HEALTHY) for _ in range(PAIRS // 2)]
    abnormal += [random.choice(LESION) for _ in range(PAIRS // 2)]
    return [*normal, *abnormal]


def unit(tower: TextTower, rows: Sequence[list[int]]) -> torch.Tensor:
    """Unit embeddings [N, e] of texts given as tokens."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[row[-1]] * (longest - len(row))] for row in rows])
    return F.normalize(tower(ids, torch.tensor([len(row) - 1 for row in rows])), dim=-1)


def neutralise(
    towers: Towers,
    tokenizer: Tokenizer,
    known: Health,
    written: Sequence[str],
    modalities: Sequence[str],
    *,
    steps: int,
    rate: float = 5e-4,
    seed: int = 0,
    log: int = 100,
) -> None:
    """Train the text tower in place.

    Args:
        towers: Pre-trained ones.
        tokenizer: Theirs.
        known: Of the modalities' images.
        written: Captions.
        modalities: Of the states.
        steps: Of Adam; the rate falls to nothing over them.
        rate: At the start.
        seed: Of all that is drawn.
        log: Steps between lines.
    """
    tower, random, generator = towers.text, Random(seed), torch.Generator().manual_seed(seed)
    teacher = copy.deepcopy(tower).requires_grad_(requires_grad=False)
    every = [
        s.format(n) for m in modalities for n in (OBJECTIVES[m], *NAMES[m]) for s in NORMAL_STATES + ABNORMAL_STATES
    ]
    vocabulary = Vocabulary.of(tokenizer, [*written, *every, *HEALTHY, *LESION])
    optimiser = torch.optim.Adam(tower.parameters(), lr=rate, betas=(0.9, 0.98))
    length, width = towers.config.text_length - CONTEXTS, towers.config.text_width
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * min(1, (step + 1) / 50) * (1 - step / steps)
        pairs = [vocabulary.pair(random) for _ in range(FRAMES)]
        one, other = unit(tower, [row for rows in zip(*pairs, strict=True) for row in rows]).chunk(2)
        differences = torch.cat([one - other, one - other.roll(1, 0), one.roll(3, 0) - one])
        neutral = separation(differences, known).mean()

        texts = [random.choice(written) for _ in range(CAPTIONS)]
        texts += states(modalities, tokenizer, vocabulary, random)
        ids, end = encode(tokenizer, [text + random.choice(("", ".")) for text in texts], length)
        drawn = 0.02 * torch.randn(len(texts), CONTEXTS, width, generator=generator)
        contexts = random.choice((None, None, drawn, 3 * drawn))
        now, before = (F.normalize(t(ids, end, contexts), dim=-1) for t in (tower, teacher))
        place = (now - before).square().sum(-1).mean()
        turned, told = (places[CAPTIONS:].chunk(2)[1] - places[CAPTIONS:].chunk(2)[0] for places in (now, before))
        turn = ((turned - told).square().sum(-1) / (told.square().sum(-1) + 1e-3)).mean()

        optimiser.zero_grad()
        (NEUTRAL_WEIGHT * neutral + PLACE_WEIGHT * place + turn).backward()
        optimiser.step()
        if step % log == log - 1:
            print(f"step {step + 1}: separation {neutral:.4f}, moved {place:.4f}, turned {turn:.4f}", flush=True)


def main() -> None:
    """Read a checkpoint, draw phantoms, write a checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json of the run")
    parser.add_argument("--out", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--images", type=int, default=384, help="phantoms of each modality")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    run = state.load(given.checkpoint)
    tokenizer = Tokenizer.from_file(str(given.tokenizer))
    generator = torch.Generator().manual_seed(0)
    images, labels, written = [], [], list[str]()
    for modality in run.stream.modalities:
        drawn = generate(modality, given.images, SEED, size=run.towers.config.image_size)
        images.append(read(run.towers, drawn.pixels.float() / 255)[0])
        labels.append(drawn.labels)
        written += [text for texts in captions(drawn.attributes, generator, 6) for text in texts]
        print(f"{modality}: {given.images} images", flush=True)
    known = health(torch.stack(images), torch.stack(labels))
    neutralise(run.towers, tokenizer, known, written, run.stream.modalities, steps=given.steps)
    state.save(run, given.out)


if __name__ == "__main__":
    main()
