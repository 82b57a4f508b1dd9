"""The bundled backbone's own byte-pair encoding: CLIP's kind, learned from the phantoms' captions and a word list.

Every text encodes, since single bytes are tokens too: an unknown word becomes its parts.
"""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from madclip.phantoms.captions import FINDINGS, FINDINGS_OF, OBJECTIVES, SYNONYMS, captions

START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = Path(__file__).parent / "words.txt"
SPLIT = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
"""How CLIP cuts a text before pairs are joined: words, single digits, runs of other signs."""


def learn_tokenizer(size: int) -> Tokenizer:
    """Learn a vocabulary of `size` tokens; the last two are start and end. Same input, same bytes."""
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size - 2,
        min_frequency=2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return _complete(tokenizer, size, alphabet)


def corpus(count: int = 20_000) -> list[str]:
    """Captions of drawn attributes and, often enough to become whole tokens, the word list."""
    words = WORDS.read_text(encoding="utf-8").split()
    draw = random.Random(0)
    attributes = [
        {
            "modality": modality,
            "label": label,
            "finding": draw.choice(FINDINGS_OF[modality]),
            "brightness": draw.choice(tuple(SYNONYMS)),
            "size": draw.choice(("small", "medium", "large")),
            "side": draw.choice(("left", "right", "middle", "both")),
            "height": draw.choice(("upper", "middle", "lower")),
        }
        for _, modality, label in product(range(count // 16), OBJECTIVES, (0, 1))
    ]
    written = [row[0] for row in captions(attributes, torch.Generator().manual_seed(0), 1)]
    terms = [term for synonyms in FINDINGS.values() for term in synonyms]
    return written + 20 * words + 20 * terms


def _complete(tokenizer: Tokenizer, size: int, alphabet: list[str]) -> Tokenizer:
    """Every byte as a word's end too, and start and end as the last two tokens, as in CLIP."""
    content = json.loads(tokenizer.to_str())
    merges = [tuple(pair) for pair in content["model"]["merges"]]
    single = [*alphabet, *(f"{byte}</w>" for byte in alphabet)]
    joined = list(dict.fromkeys("".join(pair) for pair in merges))
    tokens = [*single, *(token for token in joined if token not in set(single))][: size - 2]
    known = {token: number for number, token in enumerate([*tokens, START, END])}
    if len(known) < size:
        raise ValueError(f"the corpus gives {len(known)} tokens only: ask for as many, not {size}")
    merges = [pair for pair in merges if all(part in known for part in (*pair, "".join(pair)))]
    tokenizer.model = models.BPE(vocab=known, merges=merges, continuing_subword_prefix="", end_of_word_suffix="</w>")
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (START, END)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, known[START]), (END, known[END])]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
